"""Promise 4: an endpoint answers what the tutorial's SQL answers over the distinct events, whatever happened before.

Random histories (events through `landing` and past it, copies, copies that differ, late events, deletes, updates, dbt
runs that are killed anywhere) and random questions. `EXACTNESS_EXAMPLES` sets the number of histories, each of which is
asked 15 questions.
"""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from exactness import Event, Question, Warehouse, everything, literal, setting
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

HISTORIES = setting("EXACTNESS_EXAMPLES", 12)
QUESTIONS = 10
# The hour that is going on; no second of it differs for a rollup, so one moment serves the whole session.
NOW = datetime.now(UTC).replace(microsecond=0)
# Both ends of DateTime, the ends of months, days and hours, hours that lie side by side, and a month later.
TIMES = [
    datetime(1970, 1, 1, 0, 0, 0, tzinfo=UTC),
    datetime(2024, 2, 1, 12, 30, 0, tzinfo=UTC),
    datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC),
    datetime(2024, 3, 1, 0, 0, 0, tzinfo=UTC),
    datetime(2024, 3, 1, 0, 59, 59, tzinfo=UTC),
    datetime(2024, 3, 1, 1, 0, 0, tzinfo=UTC),
    datetime(2024, 3, 1, 1, 30, 0, tzinfo=UTC),
    datetime(2024, 3, 1, 23, 59, 59, tzinfo=UTC),
    datetime(2024, 3, 2, 0, 0, 0, tzinfo=UTC),
    datetime(2024, 3, 2, 12, 0, 1, tzinfo=UTC),
    datetime(2024, 3, 31, 23, 59, 59, tzinfo=UTC),
    NOW,
    datetime(2106, 2, 7, 6, 28, 15, tzinfo=UTC),
]
PROPERTIES = [
    '{"key":"screen","value":"home"}',
    '{"key":"screen","value":"cart"}',
    '{"screen":"product","value":834}',
    '{"a":{"b":[1,"x"],"c":null,"d":true},"e":{}}',
    '{"key":"price","value":{"amount":1.5}}',
    "no object",
    "",
]


def clamped(time: datetime) -> datetime:
    return max(TIMES[0], min(TIMES[-1], time))


@st.composite
def event(draw: st.DrawFn) -> Event:
    number = draw(st.integers(0, 40))
    time = clamped(draw(st.sampled_from(TIMES)) + timedelta(seconds=draw(st.sampled_from([0, 0, 0, 1, 1799]))))
    # Everything else follows from (event_id, event_time), unless this is a copy that differs.
    differs = draw(st.sampled_from([0, 0, 0, 0, 1, 2]))
    salt = number * 7 + time.second + time.hour * 3 + differs
    return {
        "event_id": f"e{number}",
        "user_id": f"u{salt % 5}",
        "event_type": ("tap", "purchase", "error", "all")[salt % 4],
        "event_time": time,
        "app_version": ("1.0", "2.0")[(number + differs) % 2],
        "device_type": ("phone", "tablet", "")[salt % 3],
        "os_version": "17",
        "country": ("FR", "US", "", "XX")[salt // 3 % 4],
        "properties": PROPERTIES[salt % len(PROPERTIES)],
        "session_id": f"s{salt % 7}",
    }


steps = st.one_of(
    st.tuples(st.just("insert"), st.booleans(), st.lists(event(), min_size=1, max_size=30)),
    st.tuples(st.just("insert again"), st.integers(0, 9), st.sampled_from(["retried", "sent anew", "the same rows"])),
    # Any models in any order, ended after any statement.
    st.tuples(
        st.just("dbt run"), st.booleans(), st.lists(st.integers(0, 11), max_size=8), st.none() | st.integers(0, 12)
    ),
    st.tuples(st.just("dbt run"), st.booleans(), st.none(), st.none()),
    st.tuples(
        st.just("delete"),
        st.booleans(),
        st.sampled_from(["user", "hour", "event", "day", "import", "all"]),
        st.integers(0, 12),
    ),
    st.tuples(st.just("drop month"), st.sampled_from(TIMES)),
    st.tuples(st.just("update"), st.sampled_from(["country", "session_id", "properties"]), st.integers(0, 4)),
    st.tuples(st.just("merge")),
    st.tuples(st.just("empty rollup"), st.integers(0, 11)),
)
bound = st.none() | st.builds(
    lambda time, seconds: clamped(time + timedelta(seconds=seconds)),
    st.sampled_from(TIMES),
    st.sampled_from([0, -1, 1, 1800, 3599, 86399, -86400]) | st.integers(-90_000, 90_000),
)
FILTERS = {
    "events_by_type": {"app_version": st.sampled_from([None, "1.0", "2.0", "all", "9.9", ""])},
    "event_properties": {
        "event_type": st.sampled_from([None, "tap", "purchase", "all", ""]),
        "property_key": st.sampled_from([None, "screen", "a.b", "e", "none"]),
        "limit": st.sampled_from([None, 0, 1, 3, 20_000]),
    },
    "user_sessions": {
        "country": st.sampled_from([None, "FR", "US", "all", ""]),
        "device_type": st.sampled_from([None, "phone", "tablet", "all", ""]),
    },
    "events_by_category": {"app_version": st.sampled_from([None, "1.0", "all", "9.9"])},
    "sessions_by_country": {"region": st.sampled_from([None, "Europe", "Americas", "all", ""])},
}
questions = st.one_of(
    [
        st.builds(
            Question, st.just(endpoint), st.fixed_dictionaries({"start_date": bound, "end_date": bound} | filters)
        )
        for endpoint, filters in FILTERS.items()
    ]
)


@dataclass
class History:
    """What happens to the tables, one step after the other."""

    warehouse: Warehouse
    inserted: list[tuple[str, list[Event]]] = field(default_factory=list)
    clock: Iterator[int] = field(default_factory=itertools.count)

    def take(self, step: tuple) -> None:
        client, events = self.warehouse.client, self.warehouse.events
        match step:
            case ("insert", through_landing, sent):
                self.insert(through_landing, sent)
            case ("insert again", number, how) if self.inserted:
                import_id, rows = self.inserted[number % len(self.inserted)]
                match how:
                    case "retried":
                        self.warehouse.land(rows, import_id)
                    case "sent anew":
                        self.warehouse.land(rows[::-1])
                    case "the same rows":
                        self.warehouse.insert(rows)
            case ("dbt run", refresh, picks, statements):
                rollups = self.warehouse.rollups
                models = None if picks is None else [rollups[pick % len(rollups)] for pick in picks]
                self.warehouse.build(models, refresh=refresh, statements=statements)
                if models is None:
                    assert self.warehouse.stale_hours() == []
            case ("delete", lightweight, what, number):
                hour = literal(TIMES[number])
                condition = {
                    "user": f"user_id = 'u{number % 5}'",
                    "hour": f"toStartOfHour(event_time) = toStartOfHour(toDateTime({hour}, 'UTC'))",
                    "event": f"event_id = 'e{number}'",
                    "day": f"toDate(event_time) = toDate({hour})",
                    "import": f"import_id = '{self.inserted[number % len(self.inserted)][0]}'"
                    if self.inserted
                    else "0",
                    "all": "1",
                }[what]
                if lightweight:
                    client.command(f"delete from {events} where {condition}")
                else:
                    client.command(f"alter table {events} delete where {condition} settings mutations_sync = 1")
            case ("drop month", time):
                client.command(f"alter table {events} drop partition {time:%Y%m}")
            case ("update", column, user):
                client.command(
                    f"alter table {events} update {column} = '' where user_id = 'u{user}' settings mutations_sync = 1"
                )
            case ("merge",):
                client.command(f"optimize table {events} final")
            case ("empty rollup", pick):
                rollups = self.warehouse.rollups
                client.command(f"truncate table {self.warehouse.settings.database}.{rollups[pick % len(rollups)]}")

    def insert(self, through_landing: bool, sent: list[Event]) -> None:
        import_id = uuid.uuid4().hex
        # Whatever is inserted past landing arrived at a moment of its own: equal copies aside, one is the first.
        arrived = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=next(self.clock))
        rows = [
            one | {"import_id": import_id, "line_number": line, "inserted_at": arrived}
            for line, one in enumerate(sent, 1)
        ]
        self.inserted.append((import_id, rows))
        if through_landing:
            self.warehouse.land(sent, import_id)
        else:
            self.warehouse.insert(rows)


@settings(
    max_examples=HISTORIES,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    steps=st.lists(steps, min_size=2, max_size=12),
    built_at_last=st.booleans(),
    asked=st.lists(questions, min_size=QUESTIONS, max_size=QUESTIONS),
)
def test_answers_equal_the_tutorial_after_any_history(
    warehouse: Warehouse, steps: list[tuple], built_at_last: bool, asked: list[Question]
) -> None:
    warehouse.empty()
    history = History(warehouse)
    for step in steps:
        history.take(step)
    if built_at_last:
        warehouse.build()
    warehouse.assert_exact(*everything(), *asked)


def test_a_bound_beside_the_end_of_a_period_cuts_it(warehouse: Warehouse) -> None:
    """Everything is fresh; each bound is the last second of an hour, a day or a month, or one beside it."""
    warehouse.land({"event_id": f"e{n}", "event_type": "tap", "event_time": time} for n, time in enumerate(TIMES))
    warehouse.build()
    for time in TIMES[2:10]:
        for second in (-1, 0, 1):
            cut = time + timedelta(seconds=second)
            for endpoint in ("events_by_type", "user_sessions"):
                warehouse.assert_exact(Question(endpoint, {"start_date": cut}), Question(endpoint, {"end_date": cut}))


def test_of_copies_that_differ_the_first_counts_before_and_after_a_build(warehouse: Warehouse) -> None:
    base = {"event_id": "e1", "event_time": TIMES[6], "user_id": "u1", "session_id": "s1", "properties": ""}
    copies = [base | {"event_type": kind, "country": country} for kind in ("b", "a", "c") for country in ("FR", "US")]
    for order in (copies, copies[::-1]):
        warehouse.empty()
        for copy in order:
            warehouse.land([copy])
        first = order[0]
        # Not built, then one rollup after the other.
        for model in (None, *warehouse.rollups):
            if model:
                warehouse.build([model])
            assert warehouse.answer(Question("events_by_type", {})) == [(first["event_type"], 1)]
            for country in ("FR", "US"):
                counted = warehouse.answer(Question("user_sessions", {"country": country}))
                assert len(counted) == (country == first["country"])


def test_an_update_of_a_row_is_seen(warehouse: Warehouse) -> None:
    """A mutation that changes no number of rows changes the fingerprint."""
    warehouse.land([{"event_id": "e1", "event_type": "tap", "event_time": TIMES[6], "country": "FR"}])
    warehouse.build()
    assert warehouse.stale_hours() == []
    warehouse.client.command(
        f"alter table {warehouse.events} update country = 'US' where 1 settings mutations_sync = 1"
    )
    assert [len(warehouse.answer(Question("user_sessions", {"country": code}))) for code in ("FR", "US")] == [0, 1]
    assert len(warehouse.stale_hours()) > 0


def test_rows_that_come_back_after_a_delete_are_fresh_again(warehouse: Warehouse) -> None:
    """Content decides, not what happened in between: nothing has to be built again."""
    rows = [
        {"event_id": f"e{n}", "event_type": "tap", "event_time": TIMES[6], "inserted_at": TIMES[6], "line_number": n}
        for n in range(10)
    ]
    warehouse.insert(rows)
    warehouse.build()
    warehouse.client.command(f"delete from {warehouse.events} where line_number < 5")
    assert warehouse.answer(Question("events_by_type", {})) == [("tap", 5)]
    warehouse.insert(rows[:5])
    assert warehouse.answer(Question("events_by_type", {})) == [("tap", 10)]
    assert warehouse.stale_hours() == []


def test_the_reference_for_properties_equals_the_tutorials_sql(warehouse: Warehouse) -> None:
    """Pairs are found in Python above; where the tutorial's SQL applies, on its own shape, both say the same."""
    warehouse.land(
        {
            "event_id": f"e{n}",
            "event_type": ("tap", "open")[n % 2],
            "event_time": TIMES[n % len(TIMES)],
            "properties": json.dumps({"key": f"k{n % 3}", "value": f"v{n % 4}"}),
        }
        for n in range(100)
    )
    question = Question("event_properties", {"start_date": TIMES[1], "limit": 7})
    tutorial = warehouse.client.query(question.plain(warehouse.settings.database)).result_rows
    assert warehouse.plain_answer(question) == tutorial
    assert len(tutorial) == 7


def test_a_profile_in_which_joins_give_nulls_changes_no_answer(warehouse: Warehouse) -> None:
    """As a server of one's own may have it: what a seed does not list stays empty text."""
    warehouse.land([{"event_id": "e1", "event_type": "unlisted", "event_time": TIMES[6], "country": "ZZ"}])
    questions = [Question("events_by_category", {}), Question("sessions_by_country", {})]
    for question in questions:
        for view in (call := question.call(warehouse.settings.api_database), call.replace("(", "__from_events(", 1)):
            rows = warehouse.serve.query(f"select * from {view}", settings={"join_use_nulls": 1}).result_rows
            assert rows == warehouse.plain_answer(question) != [], view


def test_an_event_that_carries_a_pair_twice_counts_once(warehouse: Warehouse) -> None:
    twice = '{"a":1,"a":1,"b.c":2,"b":{"c":2}}'
    warehouse.land([{"event_id": "e1", "event_type": "tap", "event_time": TIMES[6], "properties": twice}])
    counted = [("tap", "a", "1", 1), ("tap", "b.c", "2", 1)]
    assert warehouse.answer(Question("event_properties", {})) == counted
    warehouse.build()
    assert warehouse.answer(Question("event_properties", {})) == counted
