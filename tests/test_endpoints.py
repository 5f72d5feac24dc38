"""The endpoints beside the tutorial's own SQL, on sample events and on events that nobody of the project wrote."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError
from conftest import Dbt, copy_of_the_project
from flask.testing import FlaskClient

from serve.app import create_app
from warehouse.connection import admin_token, connect
from warehouse.landing import QUIET_SECONDS, ingest
from warehouse.sample import land_sample
from warehouse.settings import PROJECT_DIR, Settings

SAMPLE_EVENTS = 20_000
UNTIL = datetime(2026, 11, 1, tzinfo=UTC)
BOUNDS = [
    (None, None),
    ("2026-10-10 00:00:00", "2026-10-19 23:59:59"),
    ("2026-10-03 10:20:30", "2026-10-23 07:01:02"),
    ("2026-10-15 10:00:00", "2026-10-15 10:30:00"),
    ("2026-10-20 12:34:56", None),
    (None, "2023-12-31 23:59:59"),
    ("2026-10-20 00:00:00", "2026-10-10 00:00:00"),
    ("2030-01-01 00:00:00", None),
]


@pytest.fixture(scope="module")
def web(settings: Settings, dbt: Dbt) -> FlaskClient:
    dbt("build", "--exclude-resource-type", "unit_test")
    return create_app(settings).test_client()


@pytest.fixture(params=["before a build", "after a build"])
def built(request: pytest.FixtureRequest, dbt: Dbt) -> None:
    if request.param == "after a build":
        dbt("run", "--select", "rollups")


@pytest.fixture(scope="module")
def events(
    settings: Settings, client: Client, shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Sample events and the events of rudderstack, through the landing folder as a user puts them there."""
    client.command(f"truncate table {settings.database}.app_events")
    folder = replace(settings, landing_url=str(tmp_path_factory.mktemp("landing")))
    land_sample(client, folder, "sample.ndjson", events=SAMPLE_EVENTS, days=30, until=UNTIL, seed=7)
    shutil.copy2(shared_data / "rudderstack" / "app_events.ndjson", folder.landing_url)
    time.sleep(QUIET_SECONDS)
    return {outcome.path: outcome for outcome in ingest(client, folder)}


def answer(web: FlaskClient, settings: Settings, endpoint: str, **parameters: str | None) -> list[list[Any]]:
    given = {name: value for name, value in parameters.items() if value is not None}
    response = web.get(
        f"/v0/pipes/{endpoint}.json",
        query_string=given,
        headers={"Authorization": f"Bearer {admin_token(settings)}"},
    )
    assert response.status_code == 200, response.text
    return [list(row.values()) for row in json.loads(response.data)["data"]]


def plain(client: Client, settings: Settings, sql: str) -> list[list[Any]]:
    """What ClickHouse answers to a statement of the tutorial over the distinct events, as the JSON format gives it.

    Many of rudderstack's events share one event_id and event_time, and so are copies of one event here.
    """
    events = f"{settings.database}.app_events ORDER BY inserted_at, line_number LIMIT 1 BY event_id, event_time"
    sql = sql.replace("FROM app_events", f"FROM (SELECT * FROM {events})")
    found = client.raw_query(sql, fmt="JSONCompact", settings={"output_format_json_quote_64bit_integers": 0})
    return json.loads(found)["data"]


def where(start_date: str | None, end_date: str | None, **filters: str | None) -> str:
    conditions = ["1=1"]
    conditions += [f"AND event_time >= '{start_date}'"] if start_date else []
    conditions += [f"AND event_time <= '{end_date}'"] if end_date else []
    conditions += [f"AND {column} = '{value}'" for column, value in filters.items() if value]
    return " ".join(conditions)


def test_every_line_is_kept_or_quarantined(events: dict[str, Any]) -> None:
    assert (events["sample.ndjson"].lines, events["sample.ndjson"].quarantined) == (SAMPLE_EVENTS, 0)
    real = events["app_events.ndjson"]
    assert real.lines == 1_691
    assert 0 < real.quarantined < real.lines


@pytest.mark.usefixtures("events", "built")
def test_answers_equal_the_tutorials_sql(web: FlaskClient, client: Client, settings: Settings) -> None:
    for (start, end), version in itertools.product(BOUNDS, [None, "4.1.0", "nothing has this version"]):
        assert answer(web, settings, "events_by_type", start_date=start, end_date=end, app_version=version) == plain(
            client,
            settings,
            "SELECT event_type, count() as event_count FROM app_events "
            f"WHERE {where(start, end, app_version=version)} GROUP BY event_type ORDER BY event_count DESC, event_type",
        )
    for (start, end), country, device in itertools.product(BOUNDS, [None, "FR"], [None, "tablet"]):
        assert answer(
            web, settings, "user_sessions", start_date=start, end_date=end, country=country, device_type=device
        ) == plain(
            client,
            settings,
            "SELECT date(event_time) as day, count(distinct session_id) as total_sessions, "
            "count(distinct user_id) as total_users, "
            "count(distinct session_id) / count(distinct user_id) as sessions_per_user FROM app_events "
            f"WHERE {where(start, end, country=country, device_type=device)} GROUP BY day ORDER BY day DESC",
        )


def test_properties_of_the_first_shape_equal_the_tutorials_sql(
    web: FlaskClient, client: Client, settings: Settings, events: object, dbt: Dbt
) -> None:
    """The tutorial's SQL reads the members key and value, so it is compared on events that have them."""
    client.command(
        f"alter table {settings.database}.app_events delete where not match(properties, {{shape:String}})",
        parameters={"shape": r'^\{"key":"[^"]*","value":"[^"]*"\}$'},
        settings={"mutations_sync": 1},
    )
    for build in (False, True):
        if build:
            dbt("run", "--select", "rollups")
        for (start, end), event_type in itertools.product(BOUNDS, [None, "tap", "purchase"]):
            assert answer(
                web, settings, "event_properties", start_date=start, end_date=end, event_type=event_type
            ) == plain(
                client,
                settings,
                "SELECT event_type, JSONExtractString(properties, 'key') as property_key, "
                "JSONExtractString(properties, 'value') as property_value, count() as count FROM app_events "
                f"WHERE {where(start, end, event_type=event_type)} GROUP BY event_type, property_key, property_value "
                "ORDER BY count DESC, event_type, property_key, property_value LIMIT 100",
            )


def test_all_means_not_filtered(web: FlaskClient, settings: Settings, events: object) -> None:
    assert answer(web, settings, "events_by_type", app_version="all") == answer(web, settings, "events_by_type")
    assert answer(web, settings, "user_sessions", country="all", device_type="all") == answer(
        web, settings, "user_sessions"
    )


def test_the_endpoint_of_the_readme_needs_no_python_and_no_restart(
    web: FlaskClient, client: Client, settings: Settings, dbt: Dbt, events: object, tmp_path: Path
) -> None:
    readme = (PROJECT_DIR / "README.md").read_text()
    files = re.findall(r"```(?:sql|yaml)\n(?:--|#) (models/\S+)\n(.*?)```", readme, re.DOTALL)
    [command] = re.findall(r"`\.venv/bin/(dbt build --select errors_by_country)`", readme)
    assert [Path(name).suffix for name, _ in files] == [".sql", ".yml"]
    project = copy_of_the_project(tmp_path)
    for name, content in files:
        (project / name).write_text(content)
    try:
        dbt(*command.split()[1:], project=project)
        assert answer(web, settings, "errors_by_country", country="FR") == plain(
            client,
            settings,
            "SELECT country, count() as errors FROM app_events WHERE event_type = 'error' and country = 'FR' "
            "GROUP BY country",
        )
    finally:
        client.command(f"drop view if exists {settings.api_database}.errors_by_country")


def test_what_no_query_of_the_api_can_do(settings: Settings, client: Client) -> None:
    """Promise 7: the API's database user reads the endpoints and inserts into landing, and nothing else."""
    serve = connect(settings, as_serve_user=True)
    for statement in (
        f"select * from {settings.database}.app_events",
        f"select * from {settings.database}.app_events_quarantine",
        f"select * from {settings.database}.events_by_type_periods",
        f"insert into {settings.database}.app_events (event_id) values ('x')",
        f"drop table {settings.database}.app_events",
        f"create table {settings.api_database}.mine (a String) engine = Memory",
        "select * from system.query_log",
        "select * from file('/etc/passwd', 'LineAsString')",
        "select * from url('http://127.0.0.1:1/', 'LineAsString')",
    ):
        with pytest.raises(DatabaseError, match=r"Not enough privileges|ACCESS_DENIED"):
            serve.command(statement)
