"""Erasing reaches everything: events, quarantine, rollups, files and spool; and the account still adds up."""

from __future__ import annotations

import json
import uuid

import pytest
from clickhouse_connect.driver.client import Client

from warehouse.conditions import Condition, ConditionError
from warehouse.erase import rows_to_be_deleted
from warehouse.framing import frames
from warehouse.landing import land
from warehouse.settings import Settings


def event(user: str, **columns: object) -> dict:
    """A valid event that no other test sends."""
    number = uuid.uuid4().hex
    return {"event_id": number, "user_id": user, "event_type": "open", "event_time": "2025-05-11 22:01:58"} | columns


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("", "empty"),
        ("user_id = ", "breaks off"),
        ("user_id = 'u1", "breaks off"),
        ("user_id = 'u1'; drop table app_events", "no SQL"),
        ("user_id = 'u1' format JSON", "breaks off at 'format'"),
        ("user_id = 'u1') settings max_threads = (1", "no SQL"),
        ("1) union all (select 1", "not one expression"),
        ("user_id = 'u1'), (1", "not one expression"),
        ("1) from (select 1", "not one expression"),
        ("user_id in (select user_id from app_events)", "subquery"),
        ("exists(select 1)", "exists"),
        ("user_id = file('/etc/passwd')", "uses file"),
        ("dictGet('d', 'a', 1) = '1'", "uses dictGet"),
        ("event_time < now()", "uses now"),
        ("sleep(3) = 0", "uses sleep"),
        ("count() > 1", "uses count"),
        ("rand() = 1", "uses rand"),
        ("arrayExists(x -> x = 'u1', [user_id])", "uses arrayExists"),
        ("import_id = 'x'", "names import_id; the columns are event_id"),
        ("user_id in other_table", "names other_table"),
        ("app_events.user_id = 'u1'", "names app_events.user_id"),
        ("(user_id = 'u1') as x", "leave out the `as`"),
        ("user_id = {x:String}", "no SQL"),
        ("*", "something else"),
        ("user_id", "type String"),
        ("user_id = 5", "does not take the condition"),
        ("x" * 200_000, "at most"),
    ],
)
def test_a_condition_is_about_one_event_and_nothing_else(client: Client, condition: str, reason: str) -> None:
    with pytest.raises(ConditionError, match=reason) as refused:
        Condition(client, condition)
    sentence = str(refused.value)
    assert "\n" not in sentence.removesuffix(".")
    for leak in ("DB::", "(version", "select (", "http"):
        assert leak not in sentence


def test_a_condition_that_a_constant_function_would_run_is_never_run(client: Client) -> None:
    with pytest.raises(ConditionError, match="uses throwIf"):
        Condition(client, "throwIf(1) = 1")


def test_what_a_condition_is_about(client: Client, settings: Settings) -> None:
    """Columns where a line can be read, words of the text where it cannot; nothing by a part of a word."""
    user = f"u{uuid.uuid4().hex}"
    lines = {
        "kept": event(user),
        "kept of another": event("someone", properties=json.dumps({"friend": user})),
        "quarantined": event(user, event_time="yesterday"),
        "quarantined of another": event("someone", event_time="yesterday", properties=user),
        "user in an object": event("", user_id={"id": user}),
    }
    texts = {name: json.dumps(line) for name, line in lines.items()} | {
        "cut": json.dumps(event(user))[:-30],
        "as CSV": f"e1,{user},open",
        "longer word": f"e1,{user}0,open",
        "escaped": '{"user_id": "\\u00e9' + user + '"',
    }
    content = "\n".join(texts.values()).encode()
    land(client, settings, uuid.uuid4().hex, "http", frames([content]))

    def count(condition: str) -> tuple[int, int]:
        return tuple(rows_to_be_deleted(client, settings, Condition(client, condition)).values())

    assert count(f"user_id = '{user}'") == (1, 4)
    assert count(f"user_id in ('{user}', 'é{user}')") == (1, 5)
    # An event_time that is no time is neither before nor after.
    assert count(f"user_id = '{user}' and event_time < '2026-01-01'") == (1, 1)
    assert count(f"user_id = '{user}' and event_time >= '2026-01-01'") == (0, 0)
    assert count(f"position(properties, '{user}') > 0") == (1, 3)
