"""Promise 4: an endpoint answers what the tutorial's SQL answers over the distinct events, whatever happened before.

Random histories (inserts, copies, late events, deletes, builds that stop half-way) and random parameters, compared with
the tutorial's own SQL. `EXACTNESS_EXAMPLES` sets the number of histories (each is asked 18 times).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from conftest import Dbt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from warehouse.connection import connect
from warehouse.settings import Settings

HISTORIES = int(os.environ.get("EXACTNESS_EXAMPLES", "12"))
HOURLY = ("events_by_type_hourly", "event_properties_hourly", "sessions_hourly")
DAILY = ("events_by_type_daily", "event_properties_daily", "daily_sessions")
COLUMNS = (
    "event_id, user_id, event_type, event_time, app_version, device_type, os_version, country, properties, session_id"
)
PROPERTIES = (
    '{"key":"screen","value":"home"}',
    '{"key":"screen","value":"cart"}',
    '{"screen":"product","value":834}',
    '{"a":{"b":[1,"x"],"c":null,"d":true},"e":{}}',
    '{"key":"price","value":{"amount":1.5}}',
    "no object",
    "",
)
# Both ends of DateTime, the ends of months, days and hours, and hours that lie side by side.
TIMES = [
    datetime(*parts, tzinfo=UTC)
    for parts in (
        (1970, 1, 1, 0, 0, 0),
        (2024, 2, 29, 23, 59, 59),
        (2024, 3, 1, 0, 0, 0),
        (2024, 3, 1, 0, 59, 59),
        (2024, 3, 1, 1, 0, 0),
        (2024, 3, 1, 1, 30, 0),
        (2024, 3, 1, 23, 59, 59),
        (2024, 3, 2, 0, 0, 0),
        (2024, 3, 2, 12, 0, 1),
        (2024, 3, 31, 23, 59, 59),
        (2106, 2, 7, 6, 28, 15),
    )
]


@dataclass
class Warehouse:
    """The tables, the incremental builds as dbt wrote them, and the endpoints as the API's user."""

    client: Client
    serve: Client
    settings: Settings
    builds: dict[str, str]

    def empty(self) -> None:
        for table in ("app_events", *HOURLY, *DAILY):
            self.client.command(f"truncate table {self.settings.database}.{table}")

    def insert(self, events: list[dict[str, Any]]) -> None:
        lines = "\n".join(json.dumps(event | {"event_time": f"{event['event_time']:%F %T}"}) for event in events)
        self.client.raw_insert(
            f"{self.settings.database}.app_events",
            insert_block=lines,
            fmt="JSONEachRow",
            settings={"insert_deduplicate": 0, "max_partitions_per_insert_block": 0},
        )

    def build(self, models: tuple[str, ...]) -> None:
        for model in models:
            self.client.command(self.builds[model])

    def endpoint(self, name: str, **parameters: Any) -> list[tuple]:
        arguments = ", ".join(f"{key} = {literal(value)}" for key, value in parameters.items())
        return self.serve.query(f"select * from {self.settings.api_database}.{name}({arguments})").result_rows

    def plain(self, sql: str) -> list[tuple]:
        return self.client.query(
            sql.replace("app_events", f"(select distinct {COLUMNS} from {self.settings.database}.app_events)")
        ).result_rows


def literal(value: Any) -> str:
    if value is None:
        return "NULL"
    return f"'{value:%F %T}'" if isinstance(value, datetime) else f"'{value}'"


def where(start_date: datetime | None, end_date: datetime | None, **filters: str | None) -> str:
    conditions = ["1=1"]
    if start_date:
        conditions.append(f"event_time >= {literal(start_date)}")
    if end_date:
        conditions.append(f"event_time <= {literal(end_date)}")
    conditions += [f"{column} = '{value}'" for column, value in filters.items() if value not in (None, "all")]
    return " AND ".join(conditions)


def pairs(properties: str) -> list[tuple[str, str]]:
    """The pairs that contract.md promises, found without SQL."""

    def text(value: Any) -> str:
        if value is None or isinstance(value, str):
            return value or ""
        return json.dumps(value, separators=(",", ":"))

    def expand(path: str, value: Any) -> list[tuple[str, str]]:
        if isinstance(value, dict) and value:
            return [pair for key, member in value.items() for pair in expand(f"{path}.{key}", member)]
        return [(path, text(value))]

    try:
        document = json.loads(properties)
    except ValueError:
        return []
    if not isinstance(document, dict):
        return []
    key, value = document.get("key"), document.get("value", {})
    if len(document) == 2 and isinstance(key, str) and not isinstance(value, dict | list):
        return [(key, text(value))]
    return [pair for name, member in document.items() for pair in expand(name, member)]


def assert_exact(warehouse: Warehouse, start_date: datetime | None, end_date: datetime | None, pick: int) -> None:
    """All endpoints of the tutorial, for one pair of bounds and one choice of filters, against its SQL."""
    version = (None, "1.0", "all", "2.0", "9.9")[pick % 5]
    country = (None, "FR", "all", "US", "")[pick // 5 % 5]
    device = (None, "phone", "tablet", "all")[pick // 25 % 4]
    event_type = (None, "tap", "open")[pick // 100 % 3]

    assert warehouse.endpoint(
        "events_by_type", start_date=start_date, end_date=end_date, app_version=version
    ) == warehouse.plain(
        "SELECT event_type, count() as event_count FROM app_events "
        f"WHERE {where(start_date, end_date, app_version=version)} "
        "GROUP BY event_type ORDER BY event_count DESC, event_type"
    )
    assert warehouse.endpoint(
        "user_sessions", start_date=start_date, end_date=end_date, country=country, device_type=device
    ) == warehouse.plain(
        "SELECT date(event_time) as day, count(distinct session_id) as total_sessions, "
        "count(distinct user_id) as total_users, "
        "count(distinct session_id) / count(distinct user_id) as sessions_per_user FROM app_events "
        f"WHERE {where(start_date, end_date, country=country, device_type=device)} GROUP BY day ORDER BY day DESC"
    )
    events = warehouse.plain(
        f"SELECT event_type, properties FROM app_events WHERE {where(start_date, end_date, event_type=event_type)}"
    )
    counted = Counter((kind, *pair) for kind, properties in events for pair in pairs(properties))
    assert (
        warehouse.endpoint(
            "event_properties",
            start_date=start_date,
            end_date=end_date,
            event_type=event_type,
            property_key=None,
            limit=None,
        )
        == [(*row, count) for row, count in sorted(counted.items(), key=lambda item: (-item[1], item[0]))][:100]
    )


@pytest.fixture(scope="module")
def warehouse(settings: Settings, dbt: Dbt) -> Warehouse:
    dbt("build")
    client = connect(settings)
    dbt("run", "--select", "rollups")  # the second run writes the incremental statements
    builds = {model: dbt.compiled(f"rollups/{model}.sql") for model in HOURLY + DAILY}
    return Warehouse(client, connect(settings, as_serve_user=True), settings, builds)


@st.composite
def event(draw: st.DrawFn) -> dict[str, Any]:
    number = draw(st.integers(0, 40))
    time = draw(st.sampled_from(TIMES)) + timedelta(seconds=draw(st.sampled_from([0, 0, 0, 1, 1799])))
    # Everything else follows from (event_id, event_time): a copy is the same event.
    salt = number * 7 + time.second + time.hour * 3
    return {
        "event_id": f"e{number}",
        "user_id": f"u{salt % 5}",
        "event_type": ("tap", "open", "error")[salt % 3],
        "event_time": min(time, TIMES[-1]),
        "app_version": ("1.0", "2.0")[number % 2],
        "device_type": ("phone", "tablet", "")[salt % 3],
        "os_version": "17",
        "country": ("FR", "US", "")[salt // 3 % 3],
        "properties": PROPERTIES[salt % len(PROPERTIES)],
        "session_id": f"s{salt % 7}",
    }


steps = st.one_of(
    st.tuples(st.just("insert"), st.lists(event(), min_size=1, max_size=30)),
    st.tuples(st.just("insert again"), st.integers(0, 5)),
    # A build that is killed has finished any number of its models, in the order of the graph.
    st.tuples(st.just("build"), st.permutations(HOURLY), st.permutations(DAILY), st.integers(0, 6)),
    st.tuples(st.just("build"), st.just(HOURLY), st.just(DAILY), st.just(6)),
    st.tuples(st.just("delete"), st.booleans(), st.sampled_from(["user", "hour", "event", "all"]), st.integers(0, 10)),
    st.tuples(st.just("empty rollup"), st.sampled_from(HOURLY + DAILY)),
)
bound = st.none() | st.builds(
    lambda time, seconds: max(TIMES[0], min(TIMES[-1], time + timedelta(seconds=seconds))),
    st.sampled_from(TIMES),
    st.sampled_from([0, -1, 1, 1800, 3599, 86399, -86400]),
)


def take(warehouse: Warehouse, step: tuple, inserted: list[list[dict[str, Any]]]) -> None:
    table = f"{warehouse.settings.database}.app_events"
    match step:
        case ("insert", events):
            inserted.append(events)
            warehouse.insert(events)
        case ("insert again", number) if inserted:
            warehouse.insert(inserted[number % len(inserted)])
        case ("build", hourly, daily, finished):
            warehouse.build((*hourly, *daily)[:finished])
        case ("delete", lightweight, what, number):
            condition = {
                "user": f"user_id = 'u{number % 5}'",
                "hour": f"toStartOfHour(event_time) = toStartOfHour({literal(TIMES[number])}::DateTime('UTC'))",
                "event": f"event_id = 'e{number}'",
                "all": "1",
            }[what]
            if lightweight:
                warehouse.client.command(f"delete from {table} where {condition}")
            else:
                warehouse.client.command(f"alter table {table} delete where {condition} settings mutations_sync = 1")
        case ("empty rollup", name):
            warehouse.client.command(f"truncate table {warehouse.settings.database}.{name}")


@settings(
    max_examples=HISTORIES,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    history=st.lists(steps, min_size=2, max_size=10),
    questions=st.lists(st.tuples(bound, bound, st.integers(0, 299)), min_size=5, max_size=5),
)
def test_answers_equal_the_tutorial_after_any_history(
    warehouse: Warehouse, history: list[tuple], questions: list[tuple]
) -> None:
    warehouse.empty()
    inserted: list[list[dict[str, Any]]] = []
    for step in history:
        take(warehouse, step, inserted)
    assert_exact(warehouse, None, None, 0)
    for start_date, end_date, pick in questions:
        assert_exact(warehouse, start_date, end_date, pick)


def test_of_copies_that_differ_the_first_counts_before_and_after_a_build(warehouse: Warehouse) -> None:
    base = {"event_id": "e1", "event_time": TIMES[5], "user_id": "u1", "session_id": "s1", "properties": ""}
    copies = [base | {"event_type": kind, "country": country} for kind in ("b", "a", "c") for country in ("FR", "US")]
    for order in (copies, copies[::-1]):
        warehouse.empty()
        for line, copy in enumerate(order):
            warehouse.insert([copy | {"inserted_at": f"2026-01-01 00:00:00.{line:03}"}])
        for build in ((), HOURLY, DAILY):
            warehouse.build(build)
            assert warehouse.endpoint("events_by_type", start_date=None, end_date=None, app_version=None) == [
                (order[0]["event_type"], 1)
            ]
            assert [
                sessions
                for country in ("FR", "US")
                for _, sessions, _, _ in warehouse.endpoint(
                    "user_sessions", start_date=None, end_date=None, country=country, device_type=None
                )
            ] == [1]


def test_only_the_periods_that_changed_are_built_again(warehouse: Warehouse) -> None:
    warehouse.empty()
    warehouse.insert(
        [
            {"event_id": f"e{hour}", "event_type": "tap", "event_time": TIMES[2] + timedelta(hours=hour)}
            for hour in range(72)
        ]
    )
    warehouse.build(HOURLY + DAILY)

    def built() -> dict[str, int]:
        return {
            model: warehouse.client.query(f"select count() from {warehouse.settings.database}.{model}").first_row[0]
            for model in HOURLY + DAILY
        }

    # Merges would remove replaced rows while they are being counted.
    for model in HOURLY + DAILY:
        warehouse.client.command(f"system stop merges {warehouse.settings.database}.{model}")
    try:
        before = built()
        warehouse.build(HOURLY + DAILY)
        assert built() == before
        warehouse.insert([{"event_id": "late", "event_type": "tap", "event_time": TIMES[2] + timedelta(hours=30)}])
        warehouse.build(HOURLY + DAILY)
        assert built() == {model: rows + 1 for model, rows in before.items()}
    finally:
        for model in HOURLY + DAILY:
            warehouse.client.command(f"system start merges {warehouse.settings.database}.{model}")


def test_a_long_history_builds_in_one_run_and_leaves_few_parts(warehouse: Warehouse) -> None:
    warehouse.empty()
    warehouse.client.command(
        f"insert into {warehouse.settings.database}.app_events ({COLUMNS}) "
        "select toString(number), toString(number % 1000), 'tap', "
        "toDateTime('2004-01-01', 'UTC') + number % 8000 * 86400 + number % 86400, '1', 'phone', '1', 'FR', '', '' "
        "from numbers(160000) settings max_partitions_per_insert_block = 0"
    )
    warehouse.build(HOURLY + DAILY)
    parts = warehouse.client.query(
        f"select max(parts) from (select table, count() as parts from system.parts where active "
        f"and database = '{warehouse.settings.database}' and table in {HOURLY + DAILY} group by table)"
    ).first_row[0]
    assert parts < 20
    assert_exact(warehouse, None, None, 0)
    assert_exact(warehouse, TIMES[1], None, 0)
