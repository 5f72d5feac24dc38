"""What the tests of exactness share: questions with the plain SQL that answers them, and dbt runs taken apart."""

from __future__ import annotations

import json
import os
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from clickhouse_connect.driver.client import Client
from conftest import Dbt

from warehouse.connection import connect
from warehouse.framing import frames
from warehouse.landing import land
from warehouse.settings import Settings

Event = dict[str, Any]
Answer = list[tuple[Any, ...]]

# As the endpoints' YAML has them; each call names all of its view's parameters.
PARAMETERS = {
    "events_by_type": ("start_date", "end_date", "app_version"),
    "event_properties": ("start_date", "end_date", "event_type", "property_key", "limit"),
    "user_sessions": ("start_date", "end_date", "country", "device_type"),
    "events_by_category": ("start_date", "end_date", "app_version"),
    "sessions_by_country": ("start_date", "end_date", "region"),
}
# For these `all` means not filtered.
ALL_IS_ANY = ("app_version", "country", "device_type")


@dataclass(frozen=True)
class Question:
    """One call of an endpoint; a parameter that is None or missing is not given."""

    endpoint: str
    parameters: dict[str, Any]

    def call(self, database: str) -> str:
        """The call, as a table of the endpoint's view in `database`."""
        arguments = (f"{name} = {literal(self.parameters.get(name))}" for name in PARAMETERS[self.endpoint])
        return f"{database}.{self.endpoint}({', '.join(arguments)})"

    def plain(self, database: str) -> str:
        """The SQL of the tutorial over the distinct events; for the repository's own endpoints, SQL in its manner.

        That of `event_properties` reads the members `key` and `value`: it is right for properties of that shape only.
        """
        return {
            "events_by_type": (
                f"SELECT event_type, count() as event_count FROM {distinct_events(database)} "
                f"WHERE {self.where('app_version')} GROUP BY event_type ORDER BY event_count DESC, event_type"
            ),
            "event_properties": (
                "SELECT event_type, JSONExtractString(properties, 'key') as property_key, "
                "JSONExtractString(properties, 'value') as property_value, count() as count "
                f"FROM {distinct_events(database)} WHERE {self.where('event_type', 'property_key')} "
                "GROUP BY event_type, property_key, property_value "
                f"ORDER BY count DESC, event_type, property_key, property_value LIMIT {self.limit}"
            ),
            "user_sessions": (
                "SELECT date(event_time) as day, count(distinct session_id) as total_sessions, "
                "count(distinct user_id) as total_users, "
                "count(distinct session_id) / count(distinct user_id) as sessions_per_user "
                f"FROM {distinct_events(database)} WHERE {self.where('country', 'device_type')} "
                "GROUP BY day ORDER BY day DESC"
            ),
            "events_by_category": (
                "SELECT if(known.category = '', 'uncategorised', known.category) as named, count() as event_count "
                f"FROM {distinct_events(database)} as events "
                f"LEFT JOIN {database}.event_categories as known ON known.event_type = events.event_type "
                f"WHERE {self.where('app_version')} GROUP BY named ORDER BY event_count DESC, named"
            ),
            "sessions_by_country": (
                "SELECT date(event_time) as day, events.country as code, country_name, region, "
                "count(distinct session_id) as total_sessions, count(distinct user_id) as total_users "
                f"FROM {distinct_events(database)} as events "
                f"LEFT JOIN {database}.countries as known ON known.country = events.country "
                f"WHERE {self.where('region')} GROUP BY day, code, country_name, region "
                "ORDER BY day DESC, total_sessions DESC, code"
            ),
        }[self.endpoint]

    def where(self, *filters: str) -> str:
        conditions = ["1=1"]
        if start := self.parameters.get("start_date"):
            conditions.append(f"event_time >= {literal(start)}")
        if end := self.parameters.get("end_date"):
            conditions.append(f"event_time <= {literal(end)}")
        for name in filters:
            value = self.parameters.get(name)
            if value is not None and not (value == "all" and name in ALL_IS_ANY):
                conditions.append(f"{name} = {literal(value)}")
        return " AND ".join(conditions)

    @property
    def limit(self) -> int:
        asked = self.parameters.get("limit")
        return min(100 if asked is None else asked, 10_000)


@dataclass(frozen=True)
class Run:
    """What `dbt run` sent to build the rollups: the statements that change tables, by model in the order of the run."""

    statements: dict[str, list[str]]

    @classmethod
    def recorded(cls, client: Client, dbt: Dbt, *arguments: str) -> Run:
        """Run dbt and read its statements from ClickHouse's query log."""
        began = client.query("select now64(6)").first_row[0]
        dbt("run", "--select", "config.materialized:incremental", *arguments)
        client.command("system flush logs query_log")
        found = client.query(
            r"""
            select extract(query, '"node_id": "model\\.\\w+\\.(\\w+)"') as model, query
            from system.query_log
            where type = 'QueryFinish' and event_time_microseconds >= {began:DateTime64(6)} and model != ''
                and query_kind not in ('Select', 'Describe') and not match(query, '(modify comment|comment column)')
            order by event_time_microseconds
            """,
            parameters={"began": began},
        ).result_rows
        statements: dict[str, list[str]] = {}
        for model, statement in found:
            statements.setdefault(model, []).append(statement)
        return cls(statements)


@dataclass
class Warehouse:
    """The session's tables, asked as the API's user asks, and built as dbt builds them.

    A replayed run sends what dbt sent, without the seconds that dbt takes to start, and can end after any statement.
    """

    client: Client
    serve: Client
    settings: Settings
    incremental: Run
    full_refresh: Run
    first: Run

    @classmethod
    def prepared(cls, settings: Settings, dbt: Dbt) -> Warehouse:
        client = connect(settings)
        dbt("build", "--exclude-resource-type", "test", "--exclude-resource-type", "unit_test")
        full_refresh = Run.recorded(client, dbt, "--full-refresh")
        incremental = Run.recorded(client, dbt)
        for rollup in incremental.statements:
            client.command(f"drop table {settings.database}.{rollup} sync")
        first = Run.recorded(client, dbt)
        assert incremental.statements.keys() == full_refresh.statements.keys() == first.statements.keys()
        return cls(client, connect(settings, as_serve_user=True), settings, incremental, full_refresh, first)

    @property
    def rollups(self) -> list[str]:
        """The incremental models, in an order in which dbt builds them."""
        return list(self.incremental.statements)

    @property
    def events(self) -> str:
        return f"{self.settings.database}.app_events"

    def empty(self) -> None:
        for table in ("app_events", *self.rollups):
            self.client.command(f"truncate table {self.settings.database}.{table}")

    def land(self, events: Iterable[Event], import_id: str | None = None) -> None:
        """Send events the way all events come."""
        lines = "\n".join(json.dumps(event, default=str) for event in events).encode()
        land(self.client, self.settings, import_id or uuid.uuid4().hex, "http", frames([lines]))

    def insert(self, rows: Iterable[Event]) -> None:
        """Insert rows as they are into app_events, whatever was inserted before."""
        self.client.raw_insert(
            self.events,
            insert_block="\n".join(json.dumps(row, default=str) for row in rows),
            fmt="JSONEachRow",
            settings={
                "insert_deduplicate": 0,
                "max_partitions_per_insert_block": 0,
                "date_time_input_format": "best_effort",
            },
        )

    def build(
        self,
        models: Iterable[str] | None = None,
        *,
        refresh: bool = False,
        first: bool = False,
        statements: int | None = None,
    ) -> None:
        """Replay a run of dbt.

        Args:
            models: what to build, in this order; everything unless given.
            refresh: replay a run with ``--full-refresh``.
            first: replay a run that found no table.
            statements: how many statements are sent before the run is killed; all unless given.
        """
        run = self.first if first else self.full_refresh if refresh else self.incremental
        for model in models or self.rollups:
            # As dbt does, which sees them in the catalogue when it starts.
            left_by_a_killed_run = self.client.query(
                "select name from system.tables "
                "where database = {database:String} and startsWith(name, {prefix:String})",
                parameters={"database": self.settings.database, "prefix": f"{model}__dbt_"},
            ).result_rows
            for (table,) in left_by_a_killed_run:
                self.client.command(f"drop table {self.settings.database}.{table}")
            for statement in run.statements[model]:
                if statements is not None:
                    if statements == 0:
                        return
                    statements -= 1
                self.client.command(statement)

    def stale_hours(self) -> Answer:
        return self.client.query(f"select * from {self.settings.database}.stale_hours").result_rows

    def answer(self, question: Question) -> Answer:
        """What the endpoint answers the API's user."""
        return self.serve.query(f"select * from {question.call(self.settings.api_database)}").result_rows

    def plain_answer(self, question: Question) -> Answer:
        if question.endpoint != "event_properties":
            return self.client.query(question.plain(self.settings.database)).result_rows
        events = self.client.query(
            f"SELECT event_type, properties FROM {distinct_events(self.settings.database)} "
            f"WHERE {question.where('event_type')}"
        ).result_rows
        asked_key = question.parameters.get("property_key")
        counted = Counter(
            (kind, key, value)
            for kind, properties in events
            for key, value in pairs(properties)
            if asked_key in (None, key)
        )
        ranked = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
        return [(*row, count) for row, count in ranked][: question.limit]

    def assert_exact(self, *questions: Question) -> None:
        for question in questions:
            assert self.answer(question) == self.plain_answer(question), question


def everything() -> list[Question]:
    """Every endpoint, asked without parameters."""
    return [Question(endpoint, {}) for endpoint in PARAMETERS]


def setting(name: str, default: int) -> int:
    """A number that makes the tests of exactness longer: an environment variable."""
    return int(os.environ.get(name, default))


def distinct_events(database: str) -> str:
    """Of copies, which share event_id and event_time, the one that arrived first."""
    first = "ORDER BY inserted_at, import_id, line_number LIMIT 1 BY event_id, event_time"
    return f"(SELECT * FROM {database}.app_events {first})"


def literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, int):
        return str(value)
    return f"'{value:%F %T}'" if isinstance(value, datetime) else f"'{value}'"


def pairs(properties: str) -> list[tuple[str, str]]:
    """The pairs that an event's properties hold, found without SQL."""

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
