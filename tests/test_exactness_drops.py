"""Promise 4 without a rollup: endpoints of one that was dropped answer from events, until a build makes them fast."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta

import pytest
from conftest import Dbt
from exactness import Answer, Question, Warehouse, everything, setting
from flask import Flask

from serve.app import create_app
from warehouse.connection import admin_token

SECONDS = setting("EXACTNESS_SECONDS", 8)
START = datetime(2024, 3, 1, 10, 0, 0, tzinfo=UTC)
RAGGED = {"start_date": START + timedelta(minutes=45), "end_date": START + timedelta(days=2, hours=3, minutes=5)}
QUESTIONS = [
    Question(endpoint, bounds | filters)
    for bounds in ({}, RAGGED, {"start_date": RAGGED["start_date"]}, {"end_date": RAGGED["end_date"]})
    for endpoint, filters in (
        *((question.endpoint, {}) for question in everything()),
        ("events_by_type", {"app_version": "1.0"}),
        ("event_properties", {"event_type": "tap", "limit": 2}),
        ("user_sessions", {"country": "FR", "device_type": "phone"}),
        ("sessions_by_country", {"region": "Europe"}),
    )
]


@pytest.fixture
def filled(warehouse: Warehouse) -> Iterator[Warehouse]:
    """Events of four days with copies among them, every rollup built; the rollups are there again afterwards."""
    events = [
        {"event_id": f"e{n % 180}", "event_time": START + timedelta(minutes=31 * (n % 180))}
        | {"event_type": ("tap", "purchase", "unlisted")[n % 3], "properties": f'{{"key":"screen","value":"{n % 5}"}}'}
        | {"user_id": f"u{n % 7}", "session_id": f"s{n % 11}", "app_version": ("1.0", "2.0")[n % 2]}
        | {"device_type": ("phone", "tablet")[n % 2], "country": ("FR", "US")[n // 2 % 2]}
        for n in range(200)
    ]
    warehouse.land(events)
    warehouse.build()
    tables = definitions(warehouse)
    yield warehouse
    for rollup, definition in tables.items():
        if not warehouse.client.command(f"exists table {warehouse.settings.database}.{rollup}"):
            warehouse.client.command(definition)


@pytest.fixture
def api(warehouse: Warehouse) -> Flask:
    return create_app(warehouse.settings)


def definitions(warehouse: Warehouse) -> dict[str, str]:
    """The statement that creates each rollup."""
    database = warehouse.settings.database
    return {
        rollup: warehouse.client.query(f"show create table {database}.{rollup}").first_row[0]
        for rollup in warehouse.rollups
    }


def drop(warehouse: Warehouse, rollup: str) -> None:
    warehouse.client.command(f"drop table {warehouse.settings.database}.{rollup} sync")


def answer(api: Flask, warehouse: Warehouse, question: Question) -> Answer:
    response = api.test_client().get(
        f"/v0/pipes/{question.endpoint}.json",
        query_string={
            name: f"{value:%F %T}" if isinstance(value, datetime) else value
            for name, value in question.parameters.items()
        },
        headers={"Authorization": f"Bearer {admin_token(warehouse.settings)}"},
    )
    assert response.status_code == 200, (question, response.text)
    assert response.json
    return [tuple(row.values()) for row in response.json["data"]]


def plain_answers(warehouse: Warehouse, questions: Sequence[Question] = QUESTIONS) -> list[Answer]:
    """As JSON has them: dates as text."""
    return [
        [
            tuple(str(cell) if isinstance(cell, date) else cell for cell in row)
            for row in warehouse.plain_answer(question)
        ]
        for question in questions
    ]


def answers(api: Flask, warehouse: Warehouse) -> list[Answer]:
    return [answer(api, warehouse, question) for question in QUESTIONS]


def asked_of_events(warehouse: Warehouse) -> int:
    """How many queries have asked an endpoint's twin."""
    warehouse.client.command("system flush logs query_log")
    return warehouse.client.query(
        "select count() from system.query_log "
        "where type = 'QueryFinish' and user = {user:String} and position(query, '__from_events`') > 0",
        parameters={"user": warehouse.settings.serve_user},
    ).first_row[0]


def assert_answered_from_events_until_a_build(
    warehouse: Warehouse, api: Flask, dbt: Dbt, expected: list[Answer]
) -> None:
    """While no rollup can be read every question is asked of a twin; after a build none is."""
    before = asked_of_events(warehouse)
    assert answers(api, warehouse) == expected
    assert asked_of_events(warehouse) == before + len(QUESTIONS)
    dbt("build", "--exclude-resource-type", "unit_test")
    before = asked_of_events(warehouse)
    assert warehouse.stale_hours() == []
    assert answers(api, warehouse) == expected
    assert asked_of_events(warehouse) == before


def test_endpoints_of_a_dropped_rollup_answer_from_events_until_it_is_built_again(
    filled: Warehouse, api: Flask, dbt: Dbt
) -> None:
    expected, tables = plain_answers(filled), definitions(filled)
    assert all(expected)
    for rollup, definition in tables.items():
        before = asked_of_events(filled)
        drop(filled, rollup)
        assert answers(api, filled) == expected, rollup
        assert asked_of_events(filled) > before, rollup
        filled.client.command(definition)
    for rollup in tables:
        drop(filled, rollup)
    assert_answered_from_events_until_a_build(filled, api, dbt, expected)


@pytest.mark.timeout(240, func_only=True)
def test_answers_stay_exact_while_rollups_are_dropped_and_built_anew(filled: Warehouse, api: Flask) -> None:
    """A query may find its periods fresh in the table that was, and read those of the table that is."""
    expected, over, built = plain_answers(filled), threading.Event(), []

    def drop_and_build() -> None:
        while not over.is_set():
            for rollup in filled.rollups:
                drop(filled, rollup)
                filled.build([rollup], first=True)
                built.append(rollup)

    with ThreadPoolExecutor() as pool:
        running = pool.submit(drop_and_build)
        try:
            until = time.monotonic() + SECONDS
            while time.monotonic() < until or len(built) < 10:
                assert not running.done(), running.result()
                for question, rows in zip(QUESTIONS, expected, strict=True):
                    assert answer(api, filled, question) == rows, question
        finally:
            over.set()
        running.result()


def test_endpoints_answer_while_a_rollup_has_another_layout(filled: Warehouse, api: Flask, dbt: Dbt) -> None:
    """As during an upgrade: the table is a new one, or still an old one, and the views are not."""
    expected, client, database = plain_answers(filled), filled.client, filled.settings.database
    for rollup in filled.rollups:
        drop(filled, rollup)
        client.command(f"create table {database}.{rollup} (grain UInt8) engine = ReplacingMergeTree order by grain")
    assert_answered_from_events_until_a_build(filled, api, dbt, expected)


@pytest.mark.parametrize(
    ("start", "end", "of_events"),
    [
        ("2024-03-01 10:00:00", "2024-03-01 10:59:59", False),
        ("2024-03-01 10:00:01", "2024-03-01 11:59:58", True),
        ("2024-03-01 10:00:01", "2024-03-01 11:59:59", False),
        ("2024-03-01 10:20:00", "2024-03-01 10:40:00", True),
        ("2024-03-01 23:30:00", "2024-03-02 00:30:00", True),
        ("2024-03-01 12:00:00", "2024-03-01 10:00:00", True),
        ("2024-03-01 10:20:00", None, False),
        (None, "1970-01-01 00:00:01", False),
    ],
)
def test_a_range_without_a_whole_hour_is_answered_from_events(
    filled: Warehouse, api: Flask, start: str | None, end: str | None, of_events: bool
) -> None:
    bounds = {name: datetime.fromisoformat(time) for name, time in (("start_date", start), ("end_date", end)) if time}
    questions = [Question(question.endpoint, bounds) for question in everything()]
    expected, before = plain_answers(filled, questions), asked_of_events(filled)
    assert [answer(api, filled, question) for question in questions] == expected
    assert asked_of_events(filled) - before == of_events * len(questions)


def test_a_twin_has_the_columns_of_its_endpoint_and_is_none_itself(filled: Warehouse, api: Flask) -> None:
    token = {"Authorization": f"Bearer {admin_token(filled.settings)}"}
    for question in everything():
        call = question.call(filled.settings.api_database)
        described, of_the_twin = (
            filled.client.query(f"describe table {view}").result_rows
            for view in (call, call.replace("(", "__from_events(", 1))
        )
        assert of_the_twin == described
        twin = f"/v0/pipes/{question.endpoint}__from_events"
        assert api.test_client().get(f"{twin}.json", headers=token).status_code == 404
    listed = api.test_client().get("/v0/pipes", headers=token).json
    assert listed
    assert {pipe["name"] for pipe in listed["pipes"]} >= {question.endpoint for question in everything()}
    assert not [pipe["name"] for pipe in listed["pipes"] if "__" in pipe["name"]]
