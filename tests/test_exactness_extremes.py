"""Exact, and able to finish, on the data that a rollup likes least: unbounded dimensions and a long, thin history."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import Dbt
from exactness import Question, Warehouse, everything

from warehouse.landing import QUIET_SECONDS, ingest

HOUR = datetime(2024, 3, 1, 10, 0, 0, tzinfo=UTC)
UNIQUE_VALUES = 200_000
EVENT_TYPES = 10_000
# Through the middle of the hour, along its edges, across it, and not at all.
BOUNDS = [
    (None, None),
    (HOUR + timedelta(minutes=17, seconds=3), HOUR + timedelta(minutes=41, seconds=59)),
    (HOUR, HOUR + timedelta(minutes=59, seconds=59)),
    (HOUR + timedelta(seconds=1), HOUR + timedelta(days=1, minutes=30)),
    (None, HOUR + timedelta(seconds=-1)),
]


def questions(**filters: list) -> list[Question]:
    """Every endpoint within every bounds; one parameter at a time where there are `filters`."""
    asked = [
        Question(one.endpoint, {"start_date": start, "end_date": end}) for one in everything() for start, end in BOUNDS
    ]
    return asked + [
        Question("event_properties", {"start_date": start, "end_date": end, name: value})
        for start, end in BOUNDS
        for name, values in filters.items()
        for value in values
    ]


def assert_exact(warehouse: Warehouse, asked: list[Question]) -> None:
    """Like `Warehouse.assert_exact`, with the tutorial's SQL for properties too: all here are of its shape."""
    for question in asked:
        plain = warehouse.client.query(question.plain(warehouse.settings.database)).result_rows
        assert warehouse.answer(question) == plain, question


@pytest.mark.timeout(600, func_only=True)
@pytest.mark.parametrize(
    ("events", "columns", "asked"),
    [
        (
            UNIQUE_VALUES,
            """'tap', concat('{"key":"order","value":"', hex(sipHash64(number)), '"}')""",
            questions(limit=[10_000], property_key=["order"]),
        ),
        (
            5 * EVENT_TYPES,
            f"""concat('type ', toString(number % {EVENT_TYPES})), '{{"key":"screen","value":"home"}}'""",
            questions(limit=[10_000], event_type=["type 17"]),
        ),
    ],
    ids=["every event has a value of its own", "10,000 event types"],
)
def test_an_hour_whose_dimension_is_unbounded(
    warehouse: Warehouse, events: int, columns: str, asked: list[Question]
) -> None:
    warehouse.client.command(
        f"insert into {warehouse.events} (event_type, properties, event_id, user_id, session_id, event_time, country) "
        f"select {columns}, toString(number), toString(number % 5000), toString(number % 9000), "
        # One in ten is of the hour after, the rest fill this one.
        f"toDateTime('{HOUR:%F %T}', 'UTC') + number % 3600 + if(number % 10 = 0, 3600, 0), 'FR' from numbers({events})"
    )
    warehouse.build()
    assert warehouse.stale_hours() == []
    assert_exact(warehouse, asked)
    # One late event, and the hour is read from raw events; one more build, and it is not.
    late = {"event_id": "late", "event_type": "type 17", "event_time": HOUR}
    warehouse.land([late | {"properties": '{"key":"order","value":"late"}'}])
    assert_exact(warehouse, asked[:: len(BOUNDS)])
    warehouse.build()
    assert warehouse.stale_hours() == []
    assert_exact(warehouse, asked[:: len(BOUNDS)])


DAYS, LONG_HISTORY = 8_000, 160_000


@pytest.mark.timeout(300, func_only=True)
def test_a_long_history_in_one_file_builds_at_once_and_leaves_few_parts(
    warehouse: Warehouse, dbt: Dbt, tmp_path: Path
) -> None:
    """22 years and 8,000 distinct days, built by the first run of a new warehouse; the second has nothing to do."""
    client, database = warehouse.client, warehouse.settings.database
    first_day = datetime(2004, 1, 1, tzinfo=UTC)
    with (tmp_path / "history.ndjson").open("w") as file:
        for number in range(LONG_HISTORY):
            when = first_day + timedelta(days=number % DAYS, seconds=number * 7919 % 86400)
            event = {
                "event_id": f"e{number}",
                "event_type": ("tap", "purchase", "error")[number % 3],
                "event_time": f"{when:%F %T}",
                "user_id": f"u{number % 997}",
                "session_id": f"s{number % 4999}",
                "country": ("FR", "US", "DE")[number % 7 % 3],
                "properties": f'{{"key":"screen","value":"{number % 50}"}}',
            }
            file.write(json.dumps(event) + "\n")
    time.sleep(QUIET_SECONDS)  # younger files are left alone
    [outcome] = ingest(client, replace(warehouse.settings, landing_url=str(tmp_path)))
    assert (outcome.lines, outcome.quarantined) == (LONG_HISTORY, 0)
    for rollup in warehouse.rollups:
        client.command(f"drop table {database}.{rollup}")

    def built() -> dict[str, tuple[int, int]]:
        said = dbt("run", "--select", "config.materialized:incremental")
        found = re.findall(r"(\w+): built (\d+) of (\d+) periods", said)
        return {rollup: (int(built), int(periods)) for rollup, built, periods in found}

    first = built()
    assert first.keys() == set(warehouse.rollups)
    assert all(built == periods >= DAYS for built, periods in first.values())
    storage = client.query(
        "select table, uniqExact(partition), count() from system.parts "
        "where active and database = {database:String} and table in {rollups:Array(String)} group by table",
        parameters={"database": database, "rollups": warehouse.rollups},
    ).result_rows
    assert {table for table, _, _ in storage} == set(warehouse.rollups)
    assert [row for row in storage if row[1] > 12 or row[2] > 20] == [], "table, partitions, parts"
    ragged = {"start_date": datetime(2011, 7, 3, 4, 5, 6, tzinfo=UTC), "end_date": datetime(2019, 2, 3, tzinfo=UTC)}
    assert_exact(warehouse, [*everything(), *(Question(one.endpoint, ragged) for one in everything())])
    assert built() == {rollup: (0, periods) for rollup, (_, periods) in first.items()}
    assert warehouse.stale_hours() == []
