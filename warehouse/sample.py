"""Synthetic events: ``python -m warehouse.sample`` writes them to the landing folder, a file or standard output.

The running ClickHouse makes them (``sample_events.sql``), so memory stays bounded whatever their number.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, cast

import dotenv
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from warehouse.connection import connect
from warehouse.landing import LandingFolder
from warehouse.settings import PROJECT_DIR, Settings, SettingsError

SAMPLE_SQL = PROJECT_DIR / "warehouse" / "sample_events.sql"
COPY_BYTES = 1 << 20


def write_sample(client: Client, output: IO[bytes], *, events: int, days: int, until: datetime, seed: int) -> None:
    """Write synthetic events as NDJSON, byte for byte the same for the same arguments.

    Args:
        client: the ClickHouse that makes them; it needs no tables.
        events: number of lines, exactly.
        days: length of the time that they cover, at least 1.
        until: UTC; no event is later.
        seed: another seed means other users and other events.

    Raises:
        clickhouse_connect.driver.exceptions.ClickHouseError: the server does not answer or gave up.
    """
    parameters = {"events": events, "days": days, "until": until.strftime("%Y-%m-%d %H:%M:%S"), "seed": seed}
    # One thread: several would give the same lines in another order, and so another content for the same seed.
    settings = {"max_threads": 1}
    stream = cast(
        IO[bytes],
        client.raw_stream(SAMPLE_SQL.read_text(), parameters=parameters, settings=settings, fmt="JSONEachRow"),
    )
    with stream:
        while chunk := stream.read(COPY_BYTES):
            output.write(chunk)


def land_sample(
    client: Client, settings: Settings, name: str, *, events: int, days: int, until: datetime, seed: int
) -> str:
    """Put synthetic events into the landing folder as a file that appears whole, and return its path or URL.

    Arguments and errors are those of :func:`write_sample`; `name` is the file's.
    """
    folder = LandingFolder(settings)
    with folder.write(name) as output:
        write_sample(client, output, events=events, days=days, until=until, seed=seed)
    return folder.full(name)


def main() -> None:
    dotenv.load_dotenv(PROJECT_DIR / ".env")
    parser = argparse.ArgumentParser(
        prog="python -m warehouse.sample",
        description="Write synthetic events as NDJSON into the landing folder, from where they are ingested.",
    )
    parser.add_argument("--events", type=int, default=100_000, help="how many (default: 100000)")
    parser.add_argument("--days", type=int, default=30, help="over how many days (default: 30)")
    parser.add_argument(
        "--seed", type=int, default=1, help="the same seed and --until give the same events (default: 1)"
    )
    parser.add_argument(
        "--until",
        type=datetime.fromisoformat,
        default=datetime.now(UTC),
        help="no event is later; UTC unless it has an offset (default: now)",
    )
    parser.add_argument("--output", metavar="FILE", help="write to FILE, - for standard output, instead of landing")
    arguments = parser.parse_args()
    until = arguments.until if arguments.until.tzinfo else arguments.until.replace(tzinfo=UTC)
    until = until.astimezone(UTC)
    days_since_1970 = int(until.timestamp() // 86400)
    if arguments.events < 0 or arguments.seed < 0 or not 1 <= arguments.days <= min(65535, days_since_1970):
        parser.error("--events and --seed take numbers from 0, --days takes 1 up to the days between 1970 and --until.")
    what = {"events": arguments.events, "days": arguments.days, "until": until, "seed": arguments.seed}
    try:
        settings = Settings.from_env()
        client = connect(settings)
        if arguments.output is None:
            name = f"sample-{arguments.events}-{arguments.days}d-{until:%Y%m%dT%H%M%S}-{arguments.seed}.ndjson"
            print(land_sample(client, settings, name, **what))
        elif arguments.output == "-":
            write_sample(client, sys.stdout.buffer, **what)
        else:
            with Path(arguments.output).open("wb") as output:
                write_sample(client, output, **what)
    except ClickHouseError as error:
        sys.exit(f"ClickHouse did not make the events (CLICKHOUSE_HOST, CLICKHOUSE_PORT): {error}")
    except (SettingsError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
