"""Promise 5: a build costs what changed, says what it built, and a killed one is simply run again.

`EXACTNESS_KILLS` sets how many dbt runs are killed (3 unless given).
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import Dbt, copy_of_the_project
from exactness import Answer, Event, Question, Warehouse, everything, setting

from warehouse.settings import PROJECT_DIR

KILLS = setting("EXACTNESS_KILLS", 3)
START = datetime(2024, 3, 4, 10, 0, 0, tzinfo=UTC)
LATE = START + timedelta(days=1, hours=3, minutes=5)


def events_of_three_days() -> list[Event]:
    """Two events an hour, from 10:00 to 19:59 of each day."""
    return [
        {"event_id": f"e{day}-{half}", "event_type": "tap", "user_id": f"u{half % 3}", "session_id": f"s{half}"}
        | {"event_time": START + timedelta(days=day, minutes=30 * half), "properties": '{"screen":"home"}'}
        for day in range(3)
        for half in range(20)
    ]


def built_at(warehouse: Warehouse) -> dict[str, dict[datetime, datetime]]:
    """When each row of each rollup was built: rollup → period → time."""
    return {
        rollup: {
            period.replace(tzinfo=UTC): built
            for period, built in warehouse.client.query(
                f"select period, built_at from {warehouse.settings.database}.{rollup} final"
            ).result_rows
        }
        for rollup in warehouse.rollups
    }


def periods_of(time: datetime) -> set[datetime]:
    """The hour, the day and the month that a time lies in, as they are named."""
    hour = time.replace(minute=0, second=0)
    return {hour, hour.replace(hour=0, second=1), hour.replace(day=1, hour=0, second=2)}


def rebuilt(
    before: dict[str, dict[datetime, datetime]], after: dict[str, dict[datetime, datetime]]
) -> dict[str, set[datetime]]:
    return {
        rollup: {period for period, built in rows.items() if before[rollup].get(period) != built}
        for rollup, rows in after.items()
    }


@pytest.mark.parametrize("what", ["a late event", "a delete", "an update", "a new hour", "nothing"])
def test_exactly_the_periods_that_changed_are_built_again(warehouse: Warehouse, what: str) -> None:
    warehouse.land(events_of_three_days())
    warehouse.build()
    before, client, events = built_at(warehouse), warehouse.client, warehouse.events
    # The third day's 10:00 and 10:30, and nothing else of that hour.
    hour = START + timedelta(days=2)
    of_the_hour = f"toStartOfHour(event_time) = '{hour:%F %T}'"
    changed = [hour]
    match what:
        case "a late event":
            changed = [LATE]
            warehouse.land([{"event_id": "late", "event_type": "tap", "event_time": LATE}])
        case "a delete":
            client.command(f"delete from {events} where {of_the_hour}")
        case "an update":
            client.command(
                f"alter table {events} update country = 'FR' where {of_the_hour} settings mutations_sync = 1"
            )
        case "a new hour":
            changed = [hour + timedelta(hours=12)]
            warehouse.land([{"event_id": "new", "event_type": "tap", "event_time": changed[0]}])
        case "nothing":
            changed = []
    warehouse.build()
    after = built_at(warehouse)
    of_the_changes = {period for time in changed for period in periods_of(time)}
    assert rebuilt(before, after) == {rollup: of_the_changes & rows.keys() for rollup, rows in after.items()}
    assert all(rebuilt(before, after).values()) == bool(changed), "every rollup has rows of the period that changed"
    warehouse.assert_exact(*everything())


def test_what_a_query_of_the_documentation_says_about_stale_hours(warehouse: Warehouse) -> None:
    """Both counts of every hour that differs, for every rollup that is behind."""
    [sql] = re.findall(
        r"^select \* from analytics\.stale_hours$", (PROJECT_DIR / "docs/exactness.md").read_text(), re.MULTILINE
    )

    def stale() -> dict[tuple[datetime, int, int], int]:
        """How many rollups are behind, by hour, rows now and rows built."""
        found = warehouse.client.query(sql.replace("analytics", warehouse.settings.database))
        rows = list(found.named_results())
        assert all(row["fingerprint_now"] != row["fingerprint_built"] for row in rows)
        return dict(Counter((row["hour"].replace(tzinfo=UTC), row["rows_now"], row["rows_built"]) for row in rows))

    hours = [START + timedelta(hours=n) for n in range(4)]
    warehouse.land({"event_id": f"e{n}", "event_type": "tap", "event_time": hours[n // 2]} for n in range(8))
    [rollups] = set(stale().values())
    assert stale() == {(hour, 2, 0): rollups for hour in hours}
    warehouse.build()
    assert stale() == {}
    warehouse.land([{"event_id": "late", "event_type": "tap", "event_time": hours[0]}])
    warehouse.client.command(f"delete from {warehouse.events} where event_id = 'e2'")
    warehouse.client.command(f"delete from {warehouse.events} where event_time = '{hours[2]:%F %T}'")
    warehouse.client.command(
        f"alter table {warehouse.events} update session_id = 's' where event_id = 'e6' settings mutations_sync = 1"
    )
    assert stale() == {
        (hours[0], 3, 2): rollups,
        (hours[1], 1, 2): rollups,
        (hours[2], 0, 2): rollups,
        (hours[3], 2, 2): rollups,
    }
    warehouse.build()
    assert stale() == {}


def test_rows_of_other_sql_are_no_part_of_an_answer(warehouse: Warehouse, dbt: Dbt, tmp_path: Path) -> None:
    """Edited, a model is right at once and by itself: without a full refresh, and before its rollup is built again."""
    project = copy_of_the_project(tmp_path)
    parts, rollup = project / "macros/events_by_type_parts.sql", project / "models/rollups/sessions_periods.sql"
    parts.write_text(parts.read_text().replace("        event_type,\n", "        upper(event_type) as event_type,\n"))
    # Of a day only the sessions of all countries together, which a column's type does not tell.
    rollup.write_text(rollup.read_text().replace("(country, null), ", ""))
    warehouse.land([{"event_id": "e1", "event_type": "tap", "event_time": START, "country": "FR", "session_id": "s"}])
    of_a_country = Question("user_sessions", {"country": "FR"})

    def answers() -> list[Answer]:
        return [warehouse.answer(question) for question in (Question("events_by_type", {}), of_a_country)]

    def built() -> set[str]:
        said = dbt("run", "--select", "rollups", "endpoints", project=project)
        return set(re.findall(r"(\w+): built (\d+) of \2 periods", said))

    sessions = warehouse.plain_answer(of_a_country)
    try:
        warehouse.build()
        assert answers() == [[("tap", 1)], sessions]
        for view in ("events_by_type_parts", "sessions_parts"):
            dbt("run", "--select", view, project=project)
        assert answers() == [[("TAP", 1)], sessions]
        dbt("run", "--select", "stale_hours", project=project)
        stale = list(warehouse.client.query(f"select * from {warehouse.settings.database}.stale_hours").named_results())
        assert {(row["rollup"], row["is_of_other_sql"]) for row in stale} == {
            ("events_by_type_periods", 1),
            ("sessions_periods", 1),
        }
        assert built() == {("events_by_type_periods", "3"), ("sessions_periods", "2")}
        assert answers() == [[("TAP", 1)], []], "the day's row has lost its countries"
        assert warehouse.stale_hours() == []
        assert built() == set()
    finally:
        dbt("run", "--select", "rollups", "endpoints")
    warehouse.assert_exact(*everything())
    assert warehouse.stale_hours() == []


def test_a_build_says_how_many_periods_it_built(warehouse: Warehouse, dbt: Dbt) -> None:
    def built() -> dict[str, tuple[int, int]]:
        said = dbt("build", "--select", "config.materialized:incremental", "--exclude-resource-type", "unit_test")
        found = re.findall(r"(\w+): built (\d+) of (\d+) periods", said)
        return {rollup: (int(built), int(periods)) for rollup, built, periods in found}

    warehouse.land(events_of_three_days())
    first = built()
    assert first.keys() == set(warehouse.rollups)
    assert all(built == periods > 0 for built, periods in first.values())
    assert built() == {rollup: (0, periods) for rollup, (_, periods) in first.items()}


@pytest.mark.timeout(120 + 60 * KILLS, func_only=True)
def test_answers_stay_exact_when_dbt_is_killed_and_the_next_run_finishes_its_work(
    warehouse: Warehouse, dbt: Dbt
) -> None:
    chance = random.Random()  # noqa: S311 - moments to kill at
    ragged = {"start_date": START + timedelta(minutes=45), "end_date": LATE}
    questions = [*everything(), *(Question(question.endpoint, ragged) for question in everything())]
    warehouse.land(events_of_three_days())
    for kill in range(KILLS):
        warehouse.land(
            {
                "event_id": f"{kill}-{n}",
                "event_type": "tap",
                "event_time": START + timedelta(hours=chance.randrange(60)),
            }
            for n in range(10)
        )
        warehouse.client.command(f"delete from {warehouse.events} where event_id = '{kill - 1}-1'")
        command = ["run", "--select", "config.materialized:incremental", *["--full-refresh"][: kill % 2]]
        running = subprocess.Popen(
            [Path(sys.executable).with_name("dbt"), "--no-use-colors", *command],
            env=dbt.environ,
            cwd=PROJECT_DIR,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert running.stdout
        model = chance.randint(1, len(warehouse.rollups))
        said = next(line for line in running.stdout if f"{model} of {len(warehouse.rollups)} START" in line)
        # Not a wait: a model takes about so long, and any moment of it will do.
        moment = chance.uniform(0, 0.2)
        time.sleep(moment)
        running.kill()
        running.wait()
        running.stdout.close()
        for question in questions:
            assert warehouse.answer(question) == warehouse.plain_answer(question), (question, command, said, moment)
    dbt("run", "--select", "config.materialized:incremental")
    assert warehouse.stale_hours() == []
    warehouse.assert_exact(*questions)
    left = warehouse.client.query(
        "select name from system.tables where database = {database:String} and position(name, '__dbt_') > 0",
        parameters={"database": warehouse.settings.database},
    ).result_rows
    assert left == []
