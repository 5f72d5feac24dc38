"""The API beside other ways to serve the same events: ClickHouse's predefined HTTP handlers, Datasette, roapi.

A predefined handler calls the same endpoint view from ClickHouse's own configuration. Datasette (SQLite, an index on
``event_time``) and roapi (DataFusion, the events in memory) run the tutorial's SQL: they have no models. Every answer
is compared with the API's before it is timed.

``BENCH_PEER_EVENTS`` sets the number of events; 10 million by default.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
import statistics
import subprocess
import time
import venv
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

import pyarrow.parquet as pq
import urllib3
from clickhouse_connect.driver.client import Client

from benchmarks.data import COLUMNS, insert_sample
from benchmarks.report import table
from benchmarks.sandbox import dbt, sandbox, start
from warehouse.connection import admin_token, serve_password
from warehouse.processes import Part, free_port
from warehouse.settings import PROJECT_DIR, Settings

RUNS = 20
PEER_RUNS = 3
RAGGED = {"start_date": "2026-09-03 10:20:30", "end_date": "2026-10-01 07:01:02"}
QUESTIONS: list[tuple[str, str, dict[str, str]]] = [
    ("events_by_type", "all days", {}),
    ("events_by_type", "28 ragged days", RAGGED),
    ("user_sessions", "all days", {}),
    ("user_sessions", "28 ragged days", RAGGED),
]
# The tutorial's queries; {day} is each engine's own expression for the day of event_time.
SQL = {
    "events_by_type": "select event_type, count(*) as event_count from app_events where {bounds} "
    "group by event_type order by event_count desc, event_type",
    "user_sessions": "select {day} as day, count(distinct session_id) as total_sessions, "
    "count(distinct user_id) as total_users from app_events where {bounds} group by {day} order by 1 desc",
}
COMPARED = {
    "events_by_type": ("event_type", "event_count"),
    "user_sessions": ("day", "total_sessions", "total_users"),
}
DEFAULTS = {"start_date": "1970-01-01 00:00:00", "end_date": "2106-02-07 06:28:15"}

Rows = list[tuple[str, ...]]
Call = Callable[[str, dict[str, str]], bytes]


def run() -> str:
    """p50 of each question to each server, and how much faster the API is."""
    events = int(os.environ.get("BENCH_PEER_EVENTS", "10000000"))
    with sandbox(api=True, configuration=_handlers) as (settings, client):
        insert_sample(client, settings, events)
        client.command(f"optimize table {settings.database}.app_events final")
        dbt("run", "--select", "rollups")
        folder = settings.data_dir / "peers"
        programs = _install(folder)
        parquet = _export(client, settings, folder)
        servers: dict[str, Call] = {"API": partial(_api, settings), "predefined handler": partial(_handler, settings)}
        peers: dict[str, Callable[[], tuple[Part, Call]]] = {
            "Datasette": partial(_datasette, programs, parquet, folder),
            "roapi": partial(_roapi, programs, parquet, folder),
        }
        answers = {question[:2]: _rows(question[0], servers["API"](question[0], question[2])) for question in QUESTIONS}
        times = {
            name: [_p50(name, call, question, answers, RUNS) for question in QUESTIONS]
            for name, call in servers.items()
        }
        for name, start_peer in peers.items():
            part, call = start_peer()
            try:
                times[name] = [_p50(name, call, question, answers, PEER_RUNS) for question in QUESTIONS]
            finally:
                part.kill_all()
    rows = []
    for index, (endpoint, words, _) in enumerate(QUESTIONS):
        ours = times["API"][index]
        cells = [f"{times[name][index]:,.1f} ({times[name][index] / ours:,.2f}x)" for name in list(times)[1:]]
        rows.append([endpoint, words, f"{ours:,.1f}", *cells])
    return table(
        f"The API beside other servers of the same {events:,} events, p50 in ms (times the API's)",
        ["endpoint", "parameters", *times],
        rows,
    )


def _p50(
    name: str,
    call: Call,
    question: tuple[str, str, dict[str, str]],
    answers: Mapping[tuple[str, str], Rows],
    runs: int,
) -> float:
    endpoint, words, bounds = question
    if _rows(endpoint, call(endpoint, bounds)) != answers[endpoint, words]:
        raise RuntimeError(f"{name}, {endpoint} {words}: the answer differs from the API's")
    latencies = []
    for _ in range(runs):
        began = time.perf_counter()
        call(endpoint, bounds)
        latencies.append(1000 * (time.perf_counter() - began))
    print(f"{name} {endpoint} {words}: {statistics.median(latencies):.1f} ms", flush=True)
    return statistics.median(latencies)


def _rows(endpoint: str, csv_answer: bytes) -> Rows:
    """The columns that are compared, as text; times cut to their day."""
    rows = csv.DictReader(io.StringIO(csv_answer.decode()))
    return [
        tuple(row[column][:10] if column == "day" else row[column] for column in COMPARED[endpoint]) for row in rows
    ]


_pool = urllib3.PoolManager(retries=False)


def _get(url: str, **request: object) -> bytes:
    answer = _pool.request("POST" if "body" in request else "GET", url, timeout=600, **request)  # type: ignore[arg-type]  # any of them
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {answer.data[:500]!r}")
    return answer.data


def _api(settings: Settings, endpoint: str, bounds: dict[str, str]) -> bytes:
    url = f"http://127.0.0.1:{settings.api_port}/v0/pipes/{endpoint}.csv?{urlencode(bounds)}"
    return _get(url, headers={"Authorization": f"Bearer {admin_token(settings)}"})


def _handlers(settings: Settings) -> dict[str, object]:
    """ClickHouse's configuration of a handler for each endpoint; a parameter that is not sent is null."""
    others = {"events_by_type": ("app_version",), "user_sessions": ("country", "device_type")}
    rules = []
    for endpoint, names in others.items():
        arguments = [f"{name} = {{{name}:Nullable(DateTime('UTC'))}}" for name in DEFAULTS]
        arguments += [f"{name} = {{{name}:Nullable(String)}}" for name in names]
        query = f"select * from {settings.api_database}.{endpoint}({', '.join(arguments)}) format CSVWithNames"
        rules.append(
            {"url": f"/{endpoint}", "methods": "GET", "handler": {"type": "predefined_query_handler", "query": query}}
        )
    return {"http_handlers": {"rule": rules, "defaults": ""}}


def _handler(settings: Settings, endpoint: str, bounds: dict[str, str]) -> bytes:
    credentials = {"user": settings.serve_user, "password": serve_password(settings)}
    return _get(f"http://127.0.0.1:{settings.clickhouse_port}/{endpoint}?{urlencode(credentials | bounds)}")


def _install(folder: Path) -> Path:
    """An environment of the peers' own; the folder of its programs."""
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / "bin"
    requirements = PROJECT_DIR / "benchmarks" / "peers.txt"
    subprocess.run([programs / "pip", "install", "--quiet", "--requirement", requirements], check=True)
    return programs


def _export(client: Client, settings: Settings, folder: Path) -> Path:
    path = folder / "app_events.parquet"
    stream = client.raw_stream(f"select {COLUMNS} from {settings.database}.app_events", fmt="Parquet")
    with path.open("wb") as file:
        for piece in stream:
            file.write(piece)
    return path


def _datasette(programs: Path, parquet: Path, folder: Path) -> tuple[Part, Call]:
    path = folder / "events.db"
    with sqlite3.connect(path) as database:
        database.execute("pragma synchronous = off")
        database.execute(f"create table app_events ({COLUMNS})")
        places = ", ".join("?" * len(COLUMNS.split(", ")))
        for batch in pq.ParquetFile(parquet).iter_batches(100_000):
            columns = [column.cast("string") for column in batch.columns]
            rows = zip(*(column.to_pylist() for column in columns), strict=True)
            database.executemany(f"insert into app_events values ({places})", rows)
        # SQLite compares text: the tutorial's form, without the zone that Arrow writes.
        database.execute("update app_events set event_time = substr(event_time, 1, 19)")
        database.execute("create index by_time on app_events (event_time)")
        database.execute("analyze")
    bounds = "event_time >= :start_date and event_time <= :end_date"
    queries = {name: {"sql": sql.format(bounds=bounds, day="substr(event_time, 1, 10)")} for name, sql in SQL.items()}
    metadata = folder / "metadata.json"
    metadata.write_text(json.dumps({"databases": {"events": {"queries": queries}}}))
    port = free_port()
    command = [str(programs / "datasette"), "serve", str(path), "--metadata", str(metadata), "--port", str(port)]
    command += ["--setting", "sql_time_limit_ms", "600000", "--setting", "max_returned_rows", "20000"]

    def call(endpoint: str, given: dict[str, str]) -> bytes:
        return _get(f"http://127.0.0.1:{port}/events/{endpoint}.csv?{urlencode(DEFAULTS | given)}")

    return start("datasette", command, f"http://127.0.0.1:{port}/-/versions.json", folder, os.environ), call


def _roapi(programs: Path, parquet: Path, folder: Path) -> tuple[Part, Call]:
    port = free_port()
    command = [
        str(programs / "roapi"),
        "--addr-http",
        f"127.0.0.1:{port}",
        "--addr-postgres",
        f"127.0.0.1:{free_port()}",
    ]
    command += ["--table", f"app_events={parquet}"]

    def call(endpoint: str, given: dict[str, str]) -> bytes:
        bounds = DEFAULTS | given
        where = f"event_time >= timestamp '{bounds['start_date']}Z' and event_time <= timestamp '{bounds['end_date']}Z'"
        sql = SQL[endpoint].format(bounds=where, day="date_trunc('day', event_time)")
        return _get(f"http://127.0.0.1:{port}/api/sql", body=sql.encode(), headers={"Accept": "application/csv"})

    return start("roapi", command, f"http://127.0.0.1:{port}/api/schema", folder, os.environ), call
