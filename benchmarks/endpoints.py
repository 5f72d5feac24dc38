"""The endpoints beside the tutorial's SQL on app_events: every answer is compared before it is timed.

Beside each endpoint in the same run, call by call:

- the floor: the endpoint told that nothing is stale, which leaves what it reads and how it is planned, and added to
  that the two bare reads without which nobody can tell what is stale;
- the endpoint without counting once: copies of an event are not looked for.

``BENCH_EVENTS`` sets the numbers of events, separated by commas; 10 and 100 million by default.
"""

from __future__ import annotations

import os
import re
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
HALF_HOUR = {"start_date": "2026-09-03 10:20:30", "end_date": "2026-09-03 10:50:30"}
# A whole hour lies in it, and nothing longer: the endpoint's own way, with the least that it can spare.
TWO_HOURS = {"start_date": "2026-09-03 10:20:30", "end_date": "2026-09-03 12:20:30"}
# The tutorial reads the members key and value; objects of the other shape give a pair for each member.
PAIRS = (
    "if(JSONHas(properties, 'key'), [(JSONExtractString(properties, 'key'), JSONExtractString(properties, 'value'))], "
    "[('screen', JSONExtractString(properties, 'screen')), ('value', toString(JSONExtractInt(properties, 'value')))])"
)


@dataclass(frozen=True)
class Question:
    """One row of the table: the view that the API asks, its parameters, and how many times faster it should be."""

    view: str
    name: str
    parameters: dict[str, str] = field(default_factory=dict)
    aim: str = ""

    @property
    def endpoint(self) -> str:
        return self.view.removesuffix("__from_events")


QUESTIONS = [
    Question("user_sessions", "all days", aim="300"),
    Question("user_sessions", "28 ragged days", RAGGED, "50"),
    Question(
        "user_sessions",
        "28 ragged days, one country and device",
        RAGGED | {"country": "FR", "device_type": "tablet"},
        "50",
    ),
    Question("user_sessions", "2 hours", TWO_HOURS, "1 / 1.2"),
    Question("user_sessions__from_events", "30 minutes", HALF_HOUR, "1 / 1.2"),
    Question("event_properties", "all days", aim="300"),
    Question("event_properties", "28 ragged days", RAGGED, "50"),
    Question("event_properties", "all days, one type", {"event_type": "purchase"}, "20"),
    Question("event_properties", "2 hours", TWO_HOURS, "1 / 1.2"),
    Question("event_properties__from_events", "30 minutes", HALF_HOUR, "1 / 1.2"),
    Question("events_by_type", "all days", aim="10"),
    Question("events_by_type", "28 ragged days", RAGGED, "3"),
    Question("events_by_type", "all days, one version", {"app_version": "4.3.1"}, "3"),
    Question("events_by_type", "2 hours", TWO_HOURS, "1 / 1.2"),
    Question("events_by_type__from_events", "30 minutes", HALF_HOUR, "1 / 1.2"),
]
PARTS = {
    "user_sessions": "sessions_parts",
    "event_properties": "event_properties_parts",
    "events_by_type": "events_by_type_parts",
}
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
class Times:
    """p50 in ms of one question."""

    plain: float
    ours: float
    floor: float
    copies_counted: float


@dataclass(frozen=True)
class Measured:
    answers: list[Times]
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
        _make_variants(client, settings)
        answers = []
        for question in QUESTIONS:
            answers.append(_times(client, settings, question))
            print(f"{events:,} {question.view} {question.name}: {answers[-1]}", flush=True)
        storage = _storage_ratio(client, settings)
        rebuild_wall, rebuild_clickhouse = _late_events(client, settings)
        return Measured(answers, storage, first_build, nothing_to_do, rebuild_wall, rebuild_clickhouse)


def _make_variants(client: Client, settings: Settings) -> None:
    """The endpoints and their parts once more, in databases `told` (that nothing is stale) and `copies`."""

    def definition(database: str, name: str) -> str:
        return str(
            client.query(
                "select as_select from system.tables where database = {database:String} and name = {name:String}",
                parameters={"database": database, "name": name},
            ).result_rows[0][0]
        )

    nothing_stale = r"WITH tuple(CAST([], 'Array(DateTime(\\'UTC\\'))')) AS stale"
    changes = {
        "told": (r"(?s)WITH \(SELECT tuple\(groupUniqArrayArray.*?\) AS stale", nothing_stale),
        "copies": (r"ORDER BY event_time ASC, event_id ASC.*? LIMIT 1 BY event_time, event_id", ""),
    }
    for variant, (pattern, replacement) in changes.items():
        client.command(f"create database {variant}")
        for parts in PARTS.values():
            sql, count = re.subn(pattern, replacement, definition(settings.database, parts))
            if count != 1:
                raise RuntimeError(f"{parts} is not what this benchmark takes it for")
            client.command(f"create view {variant}.{parts} as {sql}")
        for view in {question.view for question in QUESTIONS}:
            sql = definition(settings.api_database, view)
            if view.endswith("__from_events") and variant == "copies":
                sql = re.sub(pattern, replacement, sql)
            for parts in PARTS.values():
                sql = sql.replace(f"{settings.database}.{parts}", f"{variant}.{parts}")
            client.command(f"create view {variant}.{view} definer = current_user sql security definer as {sql}")


def _times(client: Client, settings: Settings, question: Question) -> Times:
    plain, call = _plain(settings, question), _call(settings.api_database, question)
    told, copies = _call("told", question), _call("copies", question)
    answer = client.query(plain).result_rows
    if any(client.query(query).result_rows != answer for query in (call, told, copies)):
        raise RuntimeError(f"{question.view} {question.name}: the answers differ")
    content = (
        "select toStartOfHour(event_time) as hour, count(), sum(content_hash) "
        f"from {settings.database}.app_events group by hour format Null"
    )
    rollup = PARTS[question.endpoint].replace("_parts", "_periods")
    markers = f"select period, input_rows, input_fingerprint from {settings.database}.{rollup} final format Null"
    ours, floor, copies_counted, now, built, nothing = _p50s(
        client, [call, told, copies, content, markers, "select 1"], RUNS
    )
    if not question.view.endswith("__from_events"):  # which asks nobody what is stale
        floor += now + built - 2 * nothing
    return Times(_p50s(client, [plain], PLAIN_RUNS)[0], ours, floor, copies_counted)


def _call(database: str, question: Question) -> str:
    arguments = ", ".join(
        f"{name} = '{question.parameters[name]}'" if name in question.parameters else f"{name} = NULL"
        for name in PARAMETERS[question.endpoint]
    )
    return f"select * from {database}.{question.view}({arguments})"


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


def _p50s(client: Client, queries: list[str], runs: int) -> list[float]:
    """Of each query in ms; asked in turn, so that whatever else goes on falls on all of them."""
    latencies: list[list[float]] = [[] for _ in queries]
    for _ in range(runs):
        for query, found in zip(queries, latencies, strict=True):
            began = time.perf_counter()
            client.raw_query(query)
            found.append(1000 * (time.perf_counter() - began))
    return [statistics.median(found) for found in latencies]


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
            times = result.answers[index]
            cells += [
                f"{times.plain:,.0f}",
                f"{times.ours:.1f}",
                f"{times.plain / times.ours:,.1f}x",
                f"{times.ours / times.floor:.2f}",
                f"{times.ours / times.copies_counted:.2f}",
            ]
        growth = f"{measured[-1].answers[index].ours / measured[0].answers[index].ours:.2f}"
        rows.append([question.endpoint, question.name, *cells, f"≥ {question.aim}x", growth])
    header = ["endpoint", "parameters"]
    for count in counts:
        header += [
            f"plain SQL at {count / 1e6:,.0f} M, ms",
            "endpoint, ms",
            "faster",
            "of the floor",
            "of copies counted",
        ]
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
