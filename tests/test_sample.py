"""Synthetic events: what `sample_events.sql` promises, counted by ClickHouse itself."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client

from warehouse.sample import SAMPLE_SQL, land_sample, write_sample
from warehouse.settings import PROJECT_DIR, Settings

UNTIL = datetime(2026, 11, 23, 12, tzinfo=UTC)
COLUMNS = [
    *("event_id", "user_id", "event_type", "event_time", "app_version"),
    *("device_type", "os_version", "country", "properties", "session_id"),
]


def sampled(
    client: Client, select: str, *, events: int = 200_000, days: int = 28, seed: int = 7, threads: int = 2
) -> tuple:
    """The one row that `select` gives over the sample, which it names {sample}."""
    parameters = {"events": events, "days": days, "until": "2026-11-23 12:00:00", "seed": seed}
    sql = select.replace("{sample}", f"({SAMPLE_SQL.read_text()})")
    return tuple(client.query(sql, parameters=parameters, settings={"max_threads": threads}).result_rows[0])


@pytest.mark.parametrize("events", [0, 1, 63, 64, 65, 12_345])
def test_the_number_of_events_is_exact_and_their_ids_differ(client: Client, events: int) -> None:
    select = "select count(), uniqExact(event_id) from {sample}"
    assert sampled(client, select, events=events) == (events, events)


def test_the_same_parameters_give_the_same_events_on_any_number_of_threads(client: Client) -> None:
    select = "select sum(cityHash64(*)), count() from {sample}"
    assert sampled(client, select, threads=1) == sampled(client, select, threads=2)
    assert sampled(client, select) != sampled(client, select, seed=8)


def test_no_event_is_outside_the_days(client: Client) -> None:
    select = "select min(event_time) >= '2026-11-22 12:00:00', max(event_time) <= '2026-11-23 12:00:00' from {sample}"
    assert sampled(client, select, days=1) == (1, 1)


def test_a_user_keeps_country_device_and_system_and_never_downgrades(client: Client) -> None:
    select = """
        select max(countries), max(devices), max(systems), min(in_order), max(versions) > 1
        from
        (
            select
                uniqExact(country) as countries,
                uniqExact(device_type) as devices,
                uniqExact(os_version) as systems,
                uniqExact(app_version) as versions,
                arrayMap(v -> arrayMap(part -> toUInt16(part), splitByChar('.', v.2)),
                    arraySort(groupArray((event_time, app_version)))) as released,
                arraySort(released) = released as in_order
            from {sample}
            group by user_id
        )"""
    assert sampled(client, select) == (1, 1, 1, 1, 1)


def test_a_session_is_one_users_begins_with_app_open_and_takes_no_day(client: Client) -> None:
    select = """
        select max(users), max(opens), min(opens), min(first_type = 'app_open'), max(seconds) < 3600, max(events) <= 64
        from
        (
            select
                uniqExact(user_id) as users,
                countIf(event_type = 'app_open') as opens,
                argMin(event_type, (event_time, event_type != 'app_open')) as first_type,
                max(event_time) - min(event_time) as seconds,
                count() as events
            from {sample}
            group by session_id
        )"""
    assert sampled(client, select) == (1, 1, 1, 1, 1, 1)


def test_activity_differs_between_users_hours_and_days(client: Client) -> None:
    top_share = """
        select sum(events) / 200000 from
        (
            select events from (select user_id, count() as events from {sample} group by user_id)
            order by events desc limit 50
        )"""
    # 5,000 users: the most active 1 % would have 1 % of the events if all were alike.
    assert 0.10 < sampled(client, top_share)[0] < 0.30
    night_and_evening = """
        select
            countIf(toHour(event_time + interval 9 hour) in (2, 3, 4)) * 5
            < countIf(toHour(event_time + interval 9 hour) in (19, 20, 21)),
            countIf(toDayOfWeek(event_time + interval 9 hour) = 6)
            > countIf(toDayOfWeek(event_time + interval 9 hour) = 2)
        from {sample}
        where country = 'JP'"""
    assert sampled(client, night_and_evening) == (1, 1)


def test_both_shapes_of_properties_come_about_as_often(client: Client) -> None:
    select = """
        select
            countIf(JSONExtractKeys(properties) = ['key', 'value']) / count(),
            countIf(JSONExtractKeys(properties) = ['screen', 'value']) / count(),
            min(JSONExtractInt(properties, 'value')),
            max(JSONExtractInt(properties, 'value'))
        from {sample}"""
    pairs, objects, smallest, largest = sampled(client, select)
    assert pairs + objects == 1
    assert 0.48 < pairs < 0.52
    assert (smallest, largest) == (0, 999)


def test_the_file_is_ndjson_with_the_tutorials_columns_and_the_same_bytes_again(client: Client) -> None:
    written = []
    for _ in range(2):
        output = io.BytesIO()
        write_sample(client, output, events=70_000, days=30, until=UNTIL, seed=1)
        written.append(output.getvalue())
    assert written[0] == written[1]
    lines = [json.loads(line) for line in written[0].splitlines()]
    assert len(lines) == 70_000
    assert list(lines[0]) == COLUMNS
    datetime.strptime(lines[0]["event_time"], "%Y-%m-%d %H:%M:%S")


def test_a_landed_file_appears_whole_and_leaves_no_draft(client: Client, settings: Settings, tmp_path: Path) -> None:
    landing = replace(settings, landing_url=str(tmp_path / "landing"))
    path = Path(land_sample(client, landing, "events.ndjson", events=10, days=1, until=UNTIL, seed=1))
    assert [path] == list((tmp_path / "landing").iterdir())
    assert len(path.read_bytes().splitlines()) == 10


def test_the_command_writes_to_standard_output(settings: Settings) -> None:
    environ = os.environ | {"CLICKHOUSE_PORT": str(settings.clickhouse_port), "DATA_DIR": str(settings.data_dir)}
    command = [sys.executable, "-m", "warehouse.sample", "--events", "100", "--until", "2026-11-23", "--output", "-"]
    ended = subprocess.run(command, env=environ, cwd=PROJECT_DIR, capture_output=True, timeout=60, check=True)
    assert len(ended.stdout.splitlines()) == 100
