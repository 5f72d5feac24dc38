"""Promise 4 while everything happens at once: events arrive and are deleted, dbt builds, and every answer is exact.

`EXACTNESS_SECONDS` sets for how long (8 unless given; from 30 on, dbt itself runs in the loop as well). Two
comparisons, each sound at any moment:

- An endpoint's rows beside the plain SQL's in one query. All reads of a table in one query share one snapshot, so both
  see the same events. A view with `sql security definer` reads in a context, and so in a snapshot, of its own: what is
  compared is the endpoint's SQL in a view with `sql security invoker`.
- The endpoint itself, as the API calls it. Events come and go in whole batches that are alike, so an answer must be
  that of a whole number of batches, and not fewer or more than there can have been while the query ran.
"""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client
from conftest import Dbt, copy_of_the_project
from exactness import Answer, Event, Question, Warehouse, distinct_events, everything, setting

from warehouse.connection import connect

SECONDS = setting("EXACTNESS_SECONDS", 8)
START = datetime(2024, 3, 1, 10, 0, 0, tzinfo=UTC)
# Three days, hours side by side and apart; all in one month, so that a batch becomes one part and is visible at once.
TIMES = [START + timedelta(minutes=minutes) for minutes in (0, 1, 59, 60, 150, 839, 840, 1500, 1501, 2900)]
BOUNDS = [
    None,
    START + timedelta(seconds=1),
    START + timedelta(minutes=59),
    START + timedelta(hours=1, seconds=-1),
    START + timedelta(hours=14),
    START + timedelta(hours=38, seconds=-1),
]
QUESTIONS = [
    *everything(),
    *(
        Question(endpoint, {"start_date": start, "end_date": end} | filters)
        for start in BOUNDS
        for end in BOUNDS
        for endpoint, filters in (
            ("events_by_type", {"app_version": "1.0"}),
            ("event_properties", {"event_type": "tap"}),
            ("user_sessions", {"country": "FR", "device_type": "phone"}),
            ("events_by_category", {}),
            ("sessions_by_country", {"region": "Europe"}),
        )
    ),
]


def batch(number: int) -> list[Event]:
    """Events that are like those of every other batch, with a session and a user of their own."""
    return [
        {
            "event_id": f"{number}-{position}",
            "event_time": when,
            "event_type": ("tap", "purchase", "unlisted")[position % 3],
            "user_id": f"u{number}",
            "session_id": f"s{number}",
            "app_version": ("1.0", "2.0")[position % 2],
            "device_type": ("phone", "tablet")[position % 2],
            "country": ("FR", "US")[position // 2 % 2],
            "properties": f'{{"key":"screen","value":"{position}"}}',
        }
        for position, when in enumerate(TIMES)
    ]


@dataclass
class Ledger:
    """How many batches were begun to be sent, have arrived, were begun to be deleted, are gone; and what was done."""

    sending: int = 0
    arrived: int = 0
    deleting: int = 0
    deleted: int = 0
    builds: int = 0
    refreshes: int = 0
    compared_in_one_query: int = 0
    compared_with_batches: int = 0
    there: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, name: str) -> int:
        """Add one; the number before."""
        with self.lock:
            before: int = getattr(self, name)
            setattr(self, name, before + 1)
            return before


@pytest.fixture
def twins(warehouse: Warehouse) -> Iterator[str]:
    """The database of the endpoints' SQL in views whose reads belong to the query that calls them."""
    client, twins = warehouse.client, f"{warehouse.settings.database}_twins"
    client.command(f"create database {twins}")
    for question in everything():
        sql = client.query(
            "select as_select from system.tables where database = {database:String} and name = {name:String}",
            parameters={"database": warehouse.settings.api_database, "name": question.endpoint},
        ).first_row[0]
        client.command(f"create view {twins}.{question.endpoint} sql security invoker as {sql}")
    yield twins
    client.command(f"drop database {twins}")


def both(client: Client, question: Question, twins: str, database: str) -> tuple[list[str], list[str]]:
    """The rows of the endpoint and of the plain SQL, as sorted text, from one query."""
    rows = "arraySort(groupArray(toString(tuple(*)))) as rows"
    sides = dict(
        client.query(
            f"select 'endpoint' as side, {rows} from {question.call(twins)} "
            f"union all select 'plain' as side, {rows} from ({question.plain(database)})"
        ).result_rows
    )
    return sides["endpoint"], sides["plain"]


def times(batches: int, answer_for_one: Answer) -> Answer:
    """The answer when there are so many batches, made from that for one."""
    if not batches:
        return []
    return [tuple(cell * batches if isinstance(cell, int) else cell for cell in row) for row in answer_for_one]


def test_reads_of_one_query_share_a_snapshot(warehouse: Warehouse, twins: str) -> None:
    """What the comparison below stands on; and the batches of a query are whole, so two reads would rarely agree."""
    database, over = warehouse.settings.database, threading.Event()

    def send() -> None:
        number = 0
        while not over.is_set():
            warehouse.land(batch(number))
            number += 1

    read = f"select count() as events from {distinct_events(database)}"
    seen = set()
    with ThreadPoolExecutor() as pool:
        sender = pool.submit(send)
        try:
            while len(seen) < 20:
                first, second, scalar = warehouse.client.query(
                    f"select groupArray(events)[1], groupArray(events)[2], ({read}) from ({read} union all {read})"
                ).first_row
                assert first == second == scalar
                seen.add(first)
        finally:
            over.set()
        sender.result()


@pytest.mark.timeout(240, func_only=True)
def test_a_query_sees_one_version_of_a_rollup_that_is_replaced_as_a_whole(warehouse: Warehouse) -> None:
    """A full refresh exchanges tables: what was fresh in one of them must not be read from the other."""
    client, database, over = warehouse.client, warehouse.settings.database, threading.Event()
    warehouse.land(batch(0))
    warehouse.build()
    for rollup in warehouse.rollups:
        client.command(f"create table {database}.older_{rollup} as {database}.{rollup}")
        client.command(f"insert into {database}.older_{rollup} select * from {database}.{rollup}")
    warehouse.land(batch(1))
    warehouse.build()

    def exchange() -> None:
        while not over.is_set():
            for rollup in warehouse.rollups:
                client.command(f"exchange tables {database}.older_{rollup} and {database}.{rollup}")

    with ThreadPoolExecutor() as pool:
        exchanging = pool.submit(exchange)
        try:
            for _ in range(8):
                warehouse.assert_exact(*everything())
        finally:
            over.set()
        exchanging.result()
    for rollup in warehouse.rollups:
        client.command(f"drop table {database}.older_{rollup}")


@pytest.mark.parametrize("arguments", [(), ("--full-refresh",)], ids=["again", "in full"])
def test_a_seed_is_never_seen_without_its_rows(
    warehouse: Warehouse, dbt: Dbt, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """Every build loads the seeds: what stood in them stands in them meanwhile."""
    over = threading.Event()
    warehouse.land(batch(0))
    questions = [Question("sessions_by_country", {"region": "Europe"}), Question("events_by_category", {})]
    expected = [warehouse.plain_answer(question) for question in questions]
    assert all(expected)
    project = copy_of_the_project(tmp_path)
    # Enough rows to take a while.
    for name, row in (("countries", "X{0},Country,Nowhere\n"), ("event_categories", "type {0},stability\n")):
        with (project / f"seeds/{name}.csv").open("a") as file:
            file.writelines(row.format(number) for number in range(5_000))

    def ask() -> int:
        client, asked = connect(warehouse.settings, as_serve_user=True), 0
        while not over.is_set():
            for question, rows in zip(questions, expected, strict=True):
                found = client.query(f"select * from {question.call(warehouse.settings.api_database)}").result_rows
                assert found == rows, question
                asked += 1
        return asked

    with ThreadPoolExecutor() as pool:
        asking = pool.submit(ask)
        try:
            dbt("seed", *arguments, project=project)
        finally:
            over.set()
            dbt("seed")
        assert asking.result() > 10


@pytest.mark.timeout(SECONDS + 240, func_only=True)
def test_answers_are_exact_while_events_come_and_go_and_dbt_runs(warehouse: Warehouse, twins: str, dbt: Dbt) -> None:
    settings, ledger = warehouse.settings, Ledger()
    warehouse.land(batch(-1))
    for_one = [warehouse.plain_answer(question) for question in QUESTIONS]
    warehouse.client.command(f"truncate table {warehouse.events}")
    over = threading.Event()
    asked = random.Random(7)  # noqa: S311 - chooses questions

    def send() -> None:
        import_id = uuid.uuid4().hex
        warehouse.land(batch(ledger.count("sending")), import_id)
        ledger.count("arrived")
        ledger.there.append(import_id)

    def delete() -> None:
        if len(ledger.there) < 5:
            over.wait(0.01)
            return
        import_id = ledger.there.pop(asked.randrange(len(ledger.there)))
        ledger.count("deleting")
        warehouse.client.command(f"delete from {warehouse.events} where import_id = '{import_id}'")
        ledger.count("deleted")

    def build() -> None:
        for refresh in (False, False, True):
            warehouse.build(refresh=refresh)
            ledger.count("refreshes" if refresh else "builds")
        if SECONDS >= 30:
            dbt("build", "--exclude-resource-type", "unit_test")

    def ask_in_one_query() -> None:
        question = asked.choice(QUESTIONS)
        endpoint, plain = both(own_client(), question, twins, settings.database)
        assert endpoint == plain, question
        ledger.count("compared_in_one_query")

    def ask_the_endpoint() -> None:
        number = asked.randrange(len(QUESTIONS))
        question, one = QUESTIONS[number], for_one[number]
        arrived, deleted = ledger.arrived, ledger.deleted
        answer = warehouse.answer(question)
        fewest, most = arrived - ledger.deleting, ledger.sending - deleted
        possible = [times(batches, one) for batches in range(max(fewest, 0), most + 1)]
        assert answer in possible, f"{question} answered {answer} with {fewest} to {most} batches"
        ledger.count("compared_with_batches")

    local = threading.local()

    def own_client() -> Client:
        if not hasattr(local, "client"):
            local.client = connect(settings)
        return local.client

    def repeat(action: Callable[[], None]) -> None:
        try:
            while not over.is_set():
                action()
        finally:
            over.set()  # the first that fails ends all of them

    actions = [send, send, delete, build, ask_in_one_query, ask_the_endpoint]
    with ThreadPoolExecutor(len(actions)) as pool:
        running = [pool.submit(repeat, action) for action in actions]
        over.wait(SECONDS)
        over.set()
    for thread in running:
        thread.result()
    done = {one.name: getattr(ledger, one.name) for one in fields(Ledger) if one.type == "int"}
    print(done)  # the figures of a long run
    assert all(done.values()), done
    warehouse.build()
    assert warehouse.stale_hours() == []
    warehouse.assert_exact(*everything())
