"""Work on what is already in: asked for over HTTP or by a command, done one at a time, finished after any interruption.

A job is a row of ``jobs``. Whoever does jobs, a command or Dagster, holds the landing folder's lock meanwhile; a job
that is ``working`` while nobody holds it was interrupted, and is done again by whoever comes next. So each kind of work
has to give the same result when it is done again from any point on.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import dotenv
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from warehouse.conditions import ConditionError
from warehouse.connection import connect, refusal
from warehouse.landing import folder_lock
from warehouse.preflight import clickhouse_url
from warehouse.settings import PROJECT_DIR, Settings, SettingsError

# The longest that an insert may go on before a job gives up waiting for its end: a first build reads every event.
SETTLE_SECONDS = 900
POLL_SECONDS = 0.05


class JobError(Exception):
    """A job that cannot be done; the message says why in one sentence."""


class Interrupted(Exception):
    """A job past the point of no return that ClickHouse did not finish; it stays ``working`` and is done again."""


@dataclass(frozen=True)
class Job:
    """One row of ``jobs``, its latest state.

    Attributes:
        arguments: by the kind; the README's page on quarantine and erasure lists them.
        cutoff: rows that came after this second are not touched; None until it is known.
        statistics: what it did, by place.
    """

    job_id: str
    kind: str
    arguments: dict[str, Any]
    status: str
    created_at: datetime.datetime
    started_at: datetime.datetime | None = None
    cutoff: datetime.datetime | None = None
    rows_affected: int = 0
    statistics: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: str = ""


def unfinished_jobs(client: Client, settings: Settings) -> list[Job]:
    """The jobs to do, in their order: interrupted ones first, then by when they were asked for."""
    columns = [field.name for field in dataclasses.fields(Job)]
    rows = client.query(
        f"select {', '.join(columns)} from {settings.database}.jobs final "
        "where status in ('waiting', 'working') order by status = 'waiting', created_at, job_id"
    ).result_rows
    return [_job(dict(zip(columns, row, strict=True))) for row in rows]


def _job(row: dict[str, Any]) -> Job:
    for name, value in row.items():
        if isinstance(value, datetime.datetime):
            row[name] = value.replace(tzinfo=datetime.UTC)
    for name in ("arguments", "statistics"):
        try:
            row[name] = json.loads(row[name])
        except ValueError:
            row[name] = {}
    return Job(**row)


@contextmanager
def to_the_end() -> Iterator[None]:
    """What has to be finished because the account tells of it already."""
    try:
        yield
    except ClickHouseError as error:
        raise Interrupted(f"ClickHouse did not finish it; it is done again: {refusal(error)}.") from error


def do_jobs(client: Client, settings: Settings) -> Iterator[Job]:
    """Do every job that waits or was interrupted, one after the other, and yield each as it ended.

    Raises:
        clickhouse_connect.driver.exceptions.ClickHouseError, Interrupted: ClickHouse is away; run it again.
    """
    with folder_lock(settings, exclusive=True):
        for job in unfinished_jobs(client, settings):
            yield _do(client, settings, job)


def do_now(client: Client, settings: Settings, kind: str, arguments: dict[str, Any]) -> Job:
    """Do one job at once, after those that were interrupted, and return it as it ended.

    Raises:
        clickhouse_connect.driver.exceptions.ClickHouseError, Interrupted: Dagster goes on with it later.
    """
    with folder_lock(settings, exclusive=True):
        for job in unfinished_jobs(client, settings):
            if job.status == "working":
                _do(client, settings, job)
        return _do(client, settings, Job(uuid.uuid4().hex, kind, arguments, "working", _now(client)))


def command(
    kind: str, arguments: dict[str, Any], dry_run: Callable[[Client, Settings], dict[str, Any]] | None = None
) -> None:
    """Do one job for a command line: print what it did, or end with one sentence that says why it did not.

    Args:
        dry_run: says what the job would do; it is called instead.
    """
    dotenv.load_dotenv(PROJECT_DIR / ".env")
    # It reports failed connections to the terminal itself.
    logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)
    try:
        settings = Settings.from_env()
        client = connect(settings)
        if dry_run:
            statistics = dry_run(client, settings)
        else:
            job = do_now(client, settings, kind, arguments)
            if job.error:
                sys.exit(job.error)
            statistics = job.statistics
        print(json.dumps(statistics))
    except (ConditionError, SettingsError, Interrupted) as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(_unreadable(error))
    except ClickHouseError as error:
        why = f"none answers at {clickhouse_url(settings)}" if getattr(error, "code", None) is None else refusal(error)
        sys.exit(f"ClickHouse did not do it (CLICKHOUSE_HOST, CLICKHOUSE_PORT): {why}.")


def _unreadable(error: OSError) -> str:
    return f"The landing folder cannot be read or written: {error.strerror or error}."


def _do(client: Client, settings: Settings, job: Job) -> Job:
    from warehouse import erase, replay  # they are what is done, and know what a job is

    kinds = {"delete_data": erase.delete_data, "truncate": erase.truncate, "replay": replay.replay}
    job = _write(client, settings, replace(job, status="working", started_at=job.started_at or _now(client)))
    try:
        statistics = kinds[job.kind](client, settings, job)
    except JobError as error:
        done = replace(job, status="error", error=str(error))
    except OSError as error:
        done = replace(job, status="error", error=_unreadable(error))
    except ClickHouseError as error:
        if getattr(error, "code", None) is None:
            raise  # it is away: the job goes on when it is back
        done = replace(job, status="error", error=f"ClickHouse refused: {refusal(error)}.")
    except Interrupted:
        raise
    except Exception:
        # Left as it is, it would be tried again and again, and the jobs behind it never.
        _write(client, settings, replace(job, status="error", error="It failed; the log of the run says why."))
        raise
    else:
        done = replace(job, status="done", rows_affected=statistics["rows_affected"], statistics=statistics)
    return _write(client, settings, done)


def cutoff(client: Client, settings: Settings, job: Job) -> str:
    """The last second whose rows are the job's, in SQL; when this returns, no more rows of it or earlier will come.

    Raises:
        JobError: an insert does not end.
    """
    second = job.cutoff
    if second is None:
        second = _now(client).replace(microsecond=0)
        while _now(client).replace(microsecond=0) <= second:  # less, when the clock is set back
            time.sleep(POLL_SECONDS)
        settle(client, settings)
        _write(client, settings, replace(job, cutoff=second))
    return f"toDateTime({int(second.timestamp())}, 'UTC')"


def settle(client: Client, settings: Settings) -> None:
    """Wait until every insert into the project's tables that goes on now has ended.

    Raises:
        JobError: one does not.
    """

    def running() -> set[str]:
        # What comes from Kafka is no process; its consumer asks for messages again once those before are in.
        found = client.query(
            "select query_id from system.processes where query_kind = 'Insert' "
            "and (current_database = {database:String} or position(query, {database:String}) > 0) "
            "union all "
            "select concat(consumer_id, ' ', toString(last_poll_time)) from system.kafka_consumers "
            "where database = {database:String} and is_currently_used",
            parameters={"database": settings.database},
        )
        return {query_id for (query_id,) in found.result_rows}

    pending = running()
    deadline = time.monotonic() + SETTLE_SECONDS
    while pending:
        if time.monotonic() > deadline:
            raise JobError(f"An insert has been going on for more than {SETTLE_SECONDS} s; end it and ask again.")
        time.sleep(POLL_SECONDS)
        pending &= running()


def _write(client: Client, settings: Settings, job: Job) -> Job:
    row = dataclasses.asdict(job)
    row["arguments"] = json.dumps(job.arguments)
    row["statistics"] = json.dumps(job.statistics) if job.statistics else ""
    row["updated_at"] = _now(client)
    client.insert(
        f"{settings.database}.jobs",
        [list(row.values())],
        column_names=list(row),
        settings={"async_insert": 0, "insert_deduplicate": 0},
    )
    return job


def _now(client: Client) -> datetime.datetime:
    # ClickHouse's clock, as in the row that the request wrote: the latest state wins.
    return client.query("select now64(6, 'UTC')").result_rows[0][0].replace(tzinfo=datetime.UTC)
