"""The same events again, in whatever other shape a retry or a backfill has: every endpoint counts each of them once."""

from __future__ import annotations

import gzip
import json
import os
import random
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client
from conftest import Dbt
from flask.testing import FlaskClient

from serve.app import create_app
from warehouse.connection import admin_token
from warehouse.landing import ingest
from warehouse.settings import Settings

DAY = "2033-03-03"  # no other test's


@pytest.fixture(scope="module")
def web(settings: Settings, dbt: Dbt) -> FlaskClient:
    """The API with its endpoints in place; every request carries the token."""
    dbt("build", "--exclude-resource-type", "unit_test", "test")
    client = create_app(settings).test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {admin_token(settings)}"
    return client


def events(name: str, count: int) -> list[dict[str, str]]:
    return [
        {
            "event_id": uuid.uuid4().hex,
            "event_type": name,
            "event_time": f"{DAY} {number % 24:02}:00:00",
            "user_id": f"{name}_{number}",
            "session_id": f"{name}_{number}",
            "properties": json.dumps({name: "value"}),
        }
        for number in range(count)
    ]


def send(web: FlaskClient, batch: list[dict[str, str]]) -> None:
    body = gzip.compress(b"\n".join(json.dumps(event).encode() for event in batch))
    answer = web.post("/v0/events?name=app_events", data=body, headers={"Content-Encoding": "gzip"})
    assert answer.json
    assert (answer.status_code, answer.json["successful_rows"]) == (200, len(batch))


def counted(web: FlaskClient, name: str) -> tuple[int, int, int]:
    """What the endpoints count: events of a type, values of its property, sessions of the day."""

    def ask(endpoint: str, **parameters: str) -> list[dict[str, int]]:
        within = {"start_date": DAY, "end_date": DAY}
        answer = web.get(f"/v0/pipes/{endpoint}.json", query_string={**within, **parameters})
        assert answer.json
        return answer.json["data"]

    [of_type] = [row["event_count"] for row in ask("events_by_type") if row["event_type"] == name]
    [of_property] = [row["count"] for row in ask("event_properties", event_type=name)]
    [sessions] = [row["total_sessions"] for row in ask("user_sessions")]
    return of_type, of_property, sessions


def test_the_same_events_in_other_batches_files_and_orders(
    web: FlaskClient, client: Client, settings: Settings, dbt: Dbt, tmp_path: Path
) -> None:
    shuffle = random.Random(1).shuffle  # noqa: S311 - any order will do
    name = uuid.uuid4().hex
    first, others = events(name, 240), events(f"{name}_others", 60)
    send(web, first)
    assert counted(web, name) == (240, 240, 240)
    mixed = [*first, *others]
    shuffle(mixed)
    for start in range(0, 300, 50):  # in other batches, in another order, between others
        send(web, mixed[start : start + 50])
    assert counted(web, name) == (240, 240, 300)
    dbt("build", "--select", "path:models/rollups", "--exclude-resource-type", "unit_test", "test")
    assert counted(web, name) == (240, 240, 300)
    # A backfill of the same day, once its rollups are finished.
    shuffle(mixed)
    file = tmp_path / "landing" / "backfill.json"
    file.parent.mkdir()
    file.write_text(json.dumps(mixed))
    os.utime(file, (0, 0))
    [outcome] = ingest(client, replace(settings, landing_url=str(file.parent)))
    assert (outcome.state, outcome.lines) == ("done", 300)
    assert counted(web, name) == (240, 240, 300)
    dbt("build", "--select", "path:models/rollups", "--exclude-resource-type", "unit_test", "test")
    assert counted(web, name) == (240, 240, 300)
    copies = client.query(
        f"select count() from {settings.database}.app_events where event_type = {{name:String}}",
        parameters={"name": name},
    ).result_rows[0][0]
    assert copies == 3 * 240, "the copies are kept"
