"""The endpoints beside the tutorial's SQL on app_events: every answer is compared before it is timed.

``BENCH_EVENTS`` sets the numbers of events, separated by commas; 10 and 100 million by default.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass, field

from clickhouse_connect.driver.client import Client

from benchmarks.data import COLUMNS, insert_sample
from benchmarks.report import table
from benchmarks.sandbox import dbt, sandbox
from warehouse.sample import SAMPLE_SQL
from warehouse.settings import Settings

RUNS = 20
PLAIN_RUNS = 3
RAGGED = {"start_date": "2026-09-03 10:20:30", "end_date": "2026-10-01 07:01:02"}
HOUR = {"start_date": "2026-09-03 10:20:30", "end_date": "2026-09-03 10:50:30"}
# The tutorial reads the members key and value; objects of the other shape give a pair for each member.
PAIRS = (
    "if(JSONHas(properties, 'key'), [(JSONExtractString(properties, 'key'), JSONExtractString(properties, 'value'))], "
    "[('screen', JSONExtractString(properties, 'screen')), ('value', toString(JSONExtractInt(properties, 'value')))])"
)


@dataclass(frozen=True)
class Question:
    """One row of the table: an endpoint, its parameters, and how many times faster it should be."""

    endpoint: str
    name: str
    parameters: dict[str, str] = field(default_factory=dict)
    aim: str = ""


QUESTIONS = [
    Question("user_sessions", "all days", aim="300"),
    Question("user_sessions", "28 ragged days", RAGGED, "50"),
    Question(
        "user_sessions",
        "28 ragged days, one country and device",
        RAGGED | {"country": "FR", "device_type": "tablet"},
        "50",
    ),
    Question("user_sessions", "30 minutes", HOUR, "1 / 1.2"),
    Question("event_properties", "all days", aim="300"),
    Question("event_properties", "28 ragged days", RAGGED, "50"),
    Question("event_properties", "all days, one type", {"event_type": "purchase"}, "20"),
    Question("event_properties", "30 minutes", HOUR, "1 / 1.2"),
    Question("events_by_type", "all days", aim="10"),
    Question("events_by_type", "28 ragged days", RAGGED, "3"),
    Question("events_by_type", "all days, one version", {"app_version": "4.3.1"}, "3"),
    Question("events_by_type", "30 minutes", HOUR, "1 / 1.2"),
]
PARAMETERS = {
    "user_sessions": ("start_date", "end_date", "country", "device_type"),
    "event_properties": ("start_date", "end_date", "event_type", "property_key", "limit"),
    "events_by_type": ("start_date", "end_date", "app_version"),
}


def run() -> str:
    """Speed, storage and the cost of builds at each number of events."""
    counts = [int(count) for count in os.environ.get("BENCH_EVENTS", "10000000,100000000").split(",")]
    measured = [_measure(events) for events in counts]
    return "\n".join(_answers(counts, measured) + _builds(counts, measured))


@dataclass(frozen=True)
class Measured:
    plain: list[float]
    ours: list[float]
    storage_ratio: float
    first_build: float
    nothing_to_do: float
    rebuild_wall: float
    rebuild_clickhouse: float


def _measure(events: int) -> Measured:
    with sandbox() as (settings, client):
        insert_sample(client, settings, events)
        # The benchmark times queries, not merges that happen to go on beside them.
        client.command(f"optimize table {settings.database}.app_events final")
        first_build = dbt("run", "--select", "rollups")
        nothing_to_do = dbt("build", "--select", "rollups", "endpoints", "--exclude-resource-type", "unit_test", "test")
        plain, ours = [], []
        for question in QUESTIONS:
            theirs = _plain(settings, question)
            call = _call(settings, question)
            if client.query(theirs).result_rows != client.query(call).result_rows:
                raise RuntimeError(f"{question.endpoint} {question.name}: the answers differ")
            plain.append(_p50(client, theirs, PLAIN_RUNS))
            ours.append(_p50(client, call, RUNS))
            print(
                f"{events:,} {question.endpoint} {question.name}: {plain[-1]:.1f} ms plain, {ours[-1]:.1f} ms",
                flush=True,
            )
        storage = _storage_ratio(client, settings)
        rebuild_wall, rebuild_clickhouse = _late_events(client, settings)
        return Measured(plain, ours, storage, first_build, nothing_to_do, rebuild_wall, rebuild_clickhouse)


def _call(settings: Settings, question: Question) -> str:
    arguments = ", ".join(
        f"{name} = '{question.parameters[name]}'" if name in question.parameters else f"{name} = NULL"
        for name in PARAMETERS[question.endpoint]
    )
    return f"select * from {settings.api_database}.{question.endpoint}({arguments})"


def _plain(settings: Settings, question: Question) -> str:
    operators = {"start_date": "event_time >=", "end_date": "event_time <="}
    conditions = " and ".join(
        ["1 = 1", *(f"{operators.get(name, f'{name} =')} '{value}'" for name, value in question.parameters.items())]
    )
    events = f"{settings.database}.app_events"
    return {
        "events_by_type": f"select event_type, count() as event_count from {events} where {conditions} "
        "group by event_type order by event_count desc, event_type",
        "event_properties": "select event_type, pair.1 as property_key, pair.2 as property_value, count() as count "
        f"from {events} array join {PAIRS} as pair where {conditions} "
        "group by event_type, property_key, property_value "
        "order by count desc, event_type, property_key, property_value limit 100",
        "user_sessions": "select date(event_time) as day, count(distinct session_id) as total_sessions, "
        "count(distinct user_id) as total_users, "
        "count(distinct session_id) / count(distinct user_id) as sessions_per_user "
        f"from {events} where {conditions} group by day order by day desc",
    }[question.endpoint]


def _p50(client: Client, query: str, runs: int) -> float:
    latencies = []
    for _ in range(runs):
        began = time.perf_counter()
        client.raw_query(query)
        latencies.append(1000 * (time.perf_counter() - began))
    return statistics.median(latencies)


def _storage_ratio(client: Client, settings: Settings) -> float:
    return float(
        client.query(
            "select sumIf(bytes_on_disk, endsWith(table, '_periods')) / "
            "sumIf(bytes_on_disk, table = 'app_events') from system.parts "
            "where active and database = {database:String}",
            parameters={"database": settings.database},
        ).result_rows[0][0]
    )


def _late_events(client: Client, settings: Settings) -> tuple[float, float]:
    """Seconds that a build takes after 100,000 new events in 3 hours: wall time, and ClickHouse's share."""
    client.command(
        f"insert into {settings.database}.app_events ({COLUMNS}) select * replace "
        "(concat('late_', event_id) as event_id, "
        "toDateTime('2026-09-20 06:00:00', 'UTC') + cityHash64(event_id) % 10800 as event_time) "
        f"from ({SAMPLE_SQL.read_text()})",
        parameters={"events": 100_000, "days": 90, "until": "2026-11-01 00:00:00", "seed": 2},
        settings={"insert_deduplicate": 0},
    )
    began = client.command("select now64(6)")
    wall = dbt("run", "--select", "rollups")
    client.command("system flush logs")
    clickhouse = client.query(
        "select sum(query_duration_ms) / 1000 from system.query_log where type = 'QueryFinish' "
        f"and event_time_microseconds >= '{began}' and query ilike '%insert into%' and query like '%dbt%'"
    ).result_rows[0][0]
    return wall, float(clickhouse)


def _answers(counts: list[int], measured: list[Measured]) -> list[str]:
    rows = []
    for index, question in enumerate(QUESTIONS):
        cells: list[str] = []
        for result in measured:
            plain, ours = result.plain[index], result.ours[index]
            cells += [f"{plain:,.0f}", f"{ours:.1f}", f"{plain / ours:,.1f}x"]
        growth = f"{measured[-1].ours[index] / measured[0].ours[index]:.2f}"
        rows.append([question.endpoint, question.name, *cells, f"≥ {question.aim}x", growth])
    header = ["endpoint", "parameters"]
    for count in counts:
        header += [f"plain SQL at {count / 1e6:,.0f} M, ms", "endpoint, ms", "faster"]
    return [table("Endpoints beside the tutorial's SQL, p50", [*header, "aim", "growth"], rows)]


def _builds(counts: list[int], measured: list[Measured]) -> list[str]:
    names = {
        "rollups / app_events on disk": lambda result: f"{result.storage_ratio:.2f}",
        "first build, s": lambda result: f"{result.first_build:.1f}",
        "build with nothing to do, s": lambda result: f"{result.nothing_to_do:.1f}",
        "build after 100,000 events in 3 hours, s": lambda result: f"{result.rebuild_wall:.1f}",
        "  of it in ClickHouse, s": lambda result: f"{result.rebuild_clickhouse:.2f}",
    }
    rows = [[name, *(show(result) for result in measured)] for name, show in names.items()]
    return [table("Builds and storage", ["", *(f"{count / 1e6:,.0f} M events" for count in counts)], rows)]
