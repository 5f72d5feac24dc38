"""Rows per second through the doors, beside a bare INSERT of the same lines into the same engine in the same run."""

from __future__ import annotations

import io
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import urllib3
from clickhouse_connect.driver.client import Client

from benchmarks.data import COLUMNS
from benchmarks.load import expect_200, load
from benchmarks.report import table
from benchmarks.sandbox import sandbox
from warehouse.connection import admin_token
from warehouse.landing import QUIET_SECONDS
from warehouse.sample import write_sample
from warehouse.settings import Settings

# Requests are few where each is large: every cell takes seconds, not minutes.
BATCHES = {1: 200, 100: 120, 10_000: 32}
CLIENTS = (1, 8)


def run(events: int = 1_000_000) -> str:
    """Tables for files and for HTTP; `events` lines in the file."""
    with sandbox(api=True) as (settings, client):
        bare_table(client, settings)
        return _files(settings, client, events) + "\n" + _http(settings, client)


def bare_table(client: Client, settings: Settings) -> None:
    """A table like ``app_events`` with nothing beside it: the baseline's target."""
    client.command(
        f"create table bare as {settings.database}.app_events engine = MergeTree "
        "partition by toYYYYMM(event_time) order by (event_time, event_type, user_id)"
    )
    client.command("alter table bare drop projection content_by_hour")


def sample(client: Client, events: int, seed: int) -> bytes:
    """Synthetic events as NDJSON."""
    output = io.BytesIO()
    write_sample(client, output, events=events, days=90, until=datetime(2026, 11, 1, tzinfo=UTC), seed=seed)
    return output.getvalue()


def settle(client: Client) -> None:
    """Wait until the disk and the merges have finished what the one side started, before the other is timed."""
    os.sync()
    while client.query("select count() from system.merges").result_rows[0][0]:
        time.sleep(0.2)


def bare_insert(client: Client, lines: bytes) -> float:
    """Seconds that the baseline takes for these lines."""
    began = time.perf_counter()
    client.raw_insert("bare", COLUMNS.split(", "), lines, fmt="JSONEachRow", settings={"insert_deduplicate": 0})
    return time.perf_counter() - began


def _files(settings: Settings, client: Client, events: int) -> str:
    from orchestration.defs.ingestion import ingest_files  # reads the environment that the sandbox has set

    rows = []
    for repetition in range(3):
        lines = sample(client, events, seed=repetition)
        settle(client)
        bare = events / bare_insert(client, lines)
        path = Path(settings.landing_url) / f"{repetition}.ndjson"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(lines)
        settle(client)
        time.sleep(QUIET_SECONDS)
        began = time.perf_counter()
        result = dg.materialize([ingest_files])
        seconds = time.perf_counter() - began
        [event] = result.asset_materializations_for_node("ingest_files")[:1]
        if event.metadata["rows"].value != events:
            raise RuntimeError(f"{event.metadata['rows'].value} rows of {events} were kept")
        rows.append((f"{events:,}", f"{events / seconds:,.0f}", f"{bare:,.0f}", f"{events / seconds / bare:.2f}"))
    return table("Files through the Dagster asset", ["events", "rows/s", "bare INSERT, rows/s", "ratio"], rows)


def _http(settings: Settings, client: Client) -> str:
    url = f"http://127.0.0.1:{settings.api_port}/v0/events?name=app_events"
    headers = {"Authorization": f"Bearer {admin_token(settings)}"}
    bare_url = (
        f"http://127.0.0.1:{settings.clickhouse_port}/?insert_deduplicate=0&async_insert=0"
        f"&query=INSERT+INTO+bare+({COLUMNS.replace(' ', '')})+FORMAT+JSONEachRow"
    )
    rows = []
    for size, requests in BATCHES.items():
        for clients in CLIENTS:
            lines = sample(client, size * requests, seed=1000 + size + clients).splitlines(keepends=True)
            bodies = [b"".join(lines[index * size : (index + 1) * size]) for index in range(requests)]

            def bare(pool: urllib3.PoolManager, index: int, bodies: list[bytes] = bodies) -> None:
                expect_200(pool.request("POST", bare_url, body=bodies[index]))

            def ours(pool: urllib3.PoolManager, index: int, bodies: list[bytes] = bodies) -> None:
                expect_200(pool.request("POST", url, body=bodies[index], headers=headers))

            settle(client)
            direct = load(bare, requests=requests, clients=clients)
            settle(client)
            api = load(ours, requests=requests, clients=clients)
            ratio = api.per_second / direct.per_second
            rows.append(
                (
                    f"{size:,}",
                    clients,
                    f"{size * api.per_second:,.0f}",
                    f"{size * direct.per_second:,.0f}",
                    f"{ratio:.2f}",
                    f"{api.p50_ms:.0f} / {api.p99_ms:.0f}",
                    f"{direct.p50_ms:.0f} / {direct.p99_ms:.0f}",
                )
            )
    return table(
        "POST /v0/events",
        ["batch", "clients", "rows/s", "bare INSERT, rows/s", "ratio", "p50 / p99 ms", "bare p50 / p99 ms"],
        rows,
    )
