"""Events through every door at once while its parts are killed, frozen and restarted: none lost, none counted twice.

``CHAOS_ROUNDS=200 python -m pytest -s tests/test_chaos.py`` is the long version; ``CHAOS_SEED`` repeats its choices.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import threading
import time
import urllib.parse
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import urllib3
from confluent_kafka import KafkaError, Message, Producer
from conftest import environment
from test_kafka import PARTITIONS, Topic
from test_run import PARTS, Copy, until

from warehouse.connection import admin_token, connect
from warehouse.landing import waiting_files
from warehouse.settings import Settings

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "4"))
SEED = int(os.environ.get("CHAOS_SEED", str(random.SystemRandom().randrange(1 << 32))))
ROUND_SECONDS = 2
# Once nothing fails any more something has to become less within this time, until nothing waits: the parts start, the
# sensor looks every 5 s, and a run begins.
SETTLE_SECONDS = 120
# The mock broker drops the oldest messages of a partition that holds 5 MB; a message is 300 bytes.
UNREAD_MAX = 10_000
# A part that dies is started again after a second however often it did: it is to be there to be killed.
SUPERVISOR = (
    "import sys, warehouse.run as run; run.STABLE_SECONDS = 0; sys.argv += ['--sample-events', '0']; run.main()"
)
DAYS = 5
BAD_LINE = b'{"event_id": "it has no type and no time"}'
# Imports whose sums are not what the tables hold. Kafka's are not among them: a block of messages that is delivered
# again may be cut otherwise, and what a kill has left of the first one then stays, in any of the tables.
TORN_IMPORTS = """
    select import_id, max(source), sum(lines), sum(kept), sum(quarantined), sum(rows), sum(rejects)
    from
    (
        select import_id, source, lines, kept, quarantined, 0 as rows, 0 as rejects from imports
        union all
        select import_id, '', 0, 0, 0, 1, 0 from app_events
        union all
        select c__import_id, '', 0, 0, 0, 0, 1 from app_events_quarantine
    )
    where not startsWith(import_id, 'kafka-')
    group by import_id
    having sum(lines) != sum(kept) + sum(quarantined) or sum(kept) != sum(rows) or sum(quarantined) != sum(rejects)
"""
# Where messages are, each by its import and line number, which are its partition and offset; and which are no events.
MESSAGES = """
    select uniqExact(import_id, line_number), groupUniqArrayIf(raw, raw != '')
    from
    (
        select import_id, line_number, '' as raw from app_events
        union all
        select c__import_id, line_number, raw from app_events_quarantine
    )
    where startsWith(import_id, 'kafka-')
"""


@dataclass
class Account:
    """What was acknowledged, as the endpoints have to answer it, and its imports; filled by several threads.

    Attributes:
        messages: all that Kafka has acknowledged, also those that hold no event and those that hold one again.
        poison: the messages that hold no event.
    """

    by_type: Counter[str] = field(default_factory=Counter)
    by_day: Counter[str] = field(default_factory=Counter)
    by_door: Counter[str] = field(default_factory=Counter)
    imports: set[str] = field(default_factory=set)
    messages: int = 0
    poison: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def acknowledge(self, door: str, events: list[dict[str, str]]) -> None:
        with self.lock:
            self.by_door[door] += len(events)
            for event in events:
                self.by_type[event["event_type"]] += 1
                self.by_day[event["event_time"][:10]] += 1


class Chaos:
    """A running copy, those who feed it, and what befalls it.

    Attributes:
        round: the number of the round that goes on; it is part of the events' types.
        ending: nothing new is sent any more; what was not acknowledged is still sent again.
    """

    def __init__(self, copy: Copy, topic: Topic) -> None:
        self.copy = copy
        self.topic = topic
        self.token = admin_token(copy.settings)
        self.account = Account()
        self.faults: Counter[str] = Counter()
        self.round = 0
        self.ending = threading.Event()
        self.failures: list[BaseException] = []

    # --- the doors ------------------------------------------------------------------------------------------------

    def events(self, door: str, count: int, chance: random.Random) -> list[dict[str, str]]:
        """Events that differ in everything that an endpoint counts by."""
        return [
            {
                "event_id": f"{door}-{uuid.UUID(int=chance.getrandbits(128)).hex}",
                "event_type": f"{door}_round_{self.round}",
                "event_time": f"2026-10-{1 + chance.randrange(DAYS):02} {chance.randrange(24):02}:00:{number % 60:02}",
                "user_id": f"{door}-{chance.getrandbits(64)}",
                "session_id": f"{door}-{chance.getrandbits(64)}",
                "properties": json.dumps({"round": str(self.round)}),
            }
            for number in range(count)
        ]

    def body(self, events: list[dict[str, str]], chance: random.Random) -> bytes:
        """Lines of events, some with one that is none: unique too, as the same content is the same import."""
        lines = [json.dumps(event).encode() for event in events]
        if chance.random() < 0.3:
            lines.insert(chance.randrange(len(lines)), BAD_LINE)
        return b"\n".join(lines)

    def send(self, chance: random.Random) -> None:
        """Over HTTP: whatever is answered, it is sent until it is acknowledged; as it was, or in other batches."""
        pool = urllib3.PoolManager(timeout=urllib3.Timeout(connect=2, read=40), retries=False)
        url = f"{self.copy.api_url}/v0/events?name=app_events"
        while not self.ending.wait(chance.uniform(0.2, 0.8)):
            waiting = [self.events("http", chance.randint(1, 100), chance)]
            while waiting:
                events = waiting.pop()
                body = self.body(events, chance)
                headers = {"Authorization": f"Bearer {self.token}"}
                if chance.random() < 0.3:
                    headers["Idempotency-Key"] = uuid.UUID(int=chance.getrandbits(128)).hex
                if chance.random() < 0.3:
                    headers["Content-Encoding"], body = "gzip", gzip.compress(body)
                while True:
                    with suppress(urllib3.exceptions.HTTPError):
                        answer = pool.request("POST", url, body=body, headers=headers)
                        if answer.status in (200, 202):
                            self.account.acknowledge("http", events)
                            self.account.imports.add(answer.json()["import_id"])
                            if chance.random() < 0.1:  # a client that did not hear the answer
                                with suppress(urllib3.exceptions.HTTPError):
                                    pool.request("POST", url, body=body, headers=headers)
                            break
                        assert answer.status == 503, answer.data
                    time.sleep(0.2)
                    if len(events) > 1 and chance.random() < 0.2:
                        middle = chance.randrange(1, len(events))
                        waiting += [events[middle:], events[:middle]]
                        break

    def drop(self, chance: random.Random) -> None:
        """Files: whole under their name by a rename, some of them a second time under another."""
        folder = Path(self.copy.settings.landing_url)
        folder.mkdir(exist_ok=True)
        while not self.ending.wait(chance.uniform(1, 4)):
            events = self.events("file", chance.randint(1, 400), chance)
            content = self.body(events, chance)
            for _ in range(chance.choice([1, 1, 1, 2])):
                suffix, compress = chance.choice([("", bytes), (".gz", gzip.compress)])
                name = f"{chance.getrandbits(64)}.ndjson{suffix}"
                draft = folder / f".{name}"
                draft.write_bytes(compress(content))
                draft.rename(folder / name)
            self.account.acknowledge("file", events)

    def produce(self, chance: random.Random) -> None:
        """Through Kafka: each message until the broker has acknowledged it, some of them a second time."""
        while not self.ending.wait(chance.uniform(0.5, 1.5)):
            if self.account.messages - self.topic.committed() > UNREAD_MAX:
                continue
            events = self.events("kafka", chance.randint(1, 100), chance)
            again = [event for event in events if chance.random() < 0.1]
            poison = [f"poison {chance.getrandbits(64)}"] * (chance.random() < 0.3)
            messages = [*map(json.dumps, events), *poison, *map(json.dumps, again)]
            while messages:
                messages = self._produced(messages, chance)
            self.account.acknowledge("kafka", events)
            self.account.poison.update(poison)

    def _produced(self, messages: list[str], chance: random.Random) -> list[str]:
        """Those of the messages that the broker did not acknowledge."""
        left = []

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error:
                left.append(message.value().decode())
            else:
                self.account.messages += 1

        for message in messages:
            partition = chance.choice(PARTITIONS)
            self.topic.producer.produce(self.topic.name, message, partition=partition, on_delivery=delivered)
        self.topic.producer.flush()
        return left

    # --- what befalls it ------------------------------------------------------------------------------------------

    def victims(self) -> dict[str, Callable[[], int | None]]:
        """How to find a process of each kind; None while there is none."""

        def run_of_dagster() -> int | None:
            server = self.copy.pid_of("dagster-code-server")  # it spawns them, as others spawn their own
            found = (
                pid
                for pid, command in self.copy.processes().items()
                if "spawn_main" in command and os.getpgid(pid) == server
            )
            return next(found, None)

        parts = {part: lambda part=part: self.copy.pid_of(part) for part in PARTS if part != "dagster-webserver"}
        return {**parts, "run": run_of_dagster}

    def strike(self, chance: random.Random) -> None:
        """One fault: a part is killed, asked to end, or frozen for a while; rarely everything is killed at once."""
        if chance.random() < 0.02:
            self.kill_everything()
            return
        # What holds the events more often than what takes ten seconds to be there again.
        kinds = {"clickhouse": 5, "api": 3, "run": 3, "dagster-code-server": 1, "dagster-daemon": 1}
        [kind] = chance.choices(list(kinds), list(kinds.values()))
        pid = None
        with suppress(ProcessLookupError):  # one has ended while it was looked at
            pid = self.victims()[kind]()
        if pid is None:
            return
        what = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
        with suppress(ProcessLookupError):
            os.kill(pid, what)
            self.faults[f"{kind} {what.name}"] += 1
            if what == signal.SIGSTOP:
                time.sleep(chance.uniform(0.2, 2))
                os.kill(pid, signal.SIGCONT)

    def kill_everything(self) -> None:
        self.faults["everything SIGKILL"] += 1
        self.copy.process.kill()
        for pid in self.copy.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.copy.process.wait(10)
        until(lambda: self.copy.processes() == {}, 40)
        self.copy.start("-c", SUPERVISOR)

    # --- the course -----------------------------------------------------------------------------------------------

    def play(self, rounds: int) -> None:
        """Feed and strike for a number of rounds, then wait until everything sent is acknowledged and ingested."""
        doors = [self.send, self.send, self.drop, self.produce]
        threads = [
            threading.Thread(target=self._door, args=(door, random.Random(f"{SEED} {number}")))  # noqa: S311 - to be repeatable
            for number, door in enumerate(doors)
        ]
        for thread in threads:
            thread.start()
        chance = random.Random(SEED)  # noqa: S311 - to be repeatable
        try:
            for self.round in range(1, rounds + 1):
                end = time.monotonic() + ROUND_SECONDS
                for _ in range(chance.choice([1, 1, 2])):
                    time.sleep(chance.uniform(0, ROUND_SECONDS / 2))
                    self.strike(chance)
                time.sleep(max(0, end - time.monotonic()))
        finally:
            self.ending.set()
            for thread in threads:
                thread.join(SETTLE_SECONDS)
        assert not self.failures, self.failures
        assert not any(thread.is_alive() for thread in threads), "something was not acknowledged"
        self._settle()

    def _door(self, door: Callable[[random.Random], None], chance: random.Random) -> None:
        try:
            door(chance)
        except BaseException as error:
            self.failures.append(error)

    def _settle(self) -> None:
        """Wait until no file and no message waits and the API answers, as long as there is progress."""
        waiting, since = (-1, -1), time.monotonic()
        while waiting != (0, 0):
            assert time.monotonic() - since < SETTLE_SECONDS, "{} files and {} messages still wait".format(*waiting)
            time.sleep(0.5)
            with suppress(Exception):  # something is still starting
                self.ask("events_by_type")
                files = waiting_files(connect(self.copy.settings), self.copy.settings)
                left = len(files), self.account.messages - self.topic.committed()
                if left != waiting:
                    waiting, since = left, time.monotonic()

    def ask(self, endpoint: str, **parameters: object) -> list[dict[str, Any]]:
        """The rows that an endpoint answers."""
        query = urllib.parse.urlencode({"token": self.token, **parameters})
        answer = urllib3.request("GET", f"{self.copy.api_url}/v0/pipes/{endpoint}.json?{query}", timeout=30)
        assert answer.status == 200, answer.data
        return answer.json()["data"]


@pytest.fixture
def chaos(tmp_path: Path) -> Iterator[Chaos]:
    producer = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "mock"})  # it brings the broker along
    [broker] = producer.list_topics(timeout=10).brokers.values()
    environ = environment(tmp_path / "data") | {"KAFKA_BROKERS": f"{broker.host}:{broker.port}"}
    topic = Topic(Settings.from_env(environ), producer)
    environ |= {"KAFKA_TOPIC": topic.settings.kafka_topic, "KAFKA_GROUP": topic.settings.kafka_group}
    copy = Copy(environ, tmp_path / "output")
    copy.start("-c", SUPERVISOR)
    yield Chaos(copy, topic)
    for pid in copy.processes():  # one may still be frozen
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    copy.process.terminate()
    copy.process.wait(60)


@pytest.mark.timeout(900 + 20 * ROUNDS)
def test_nothing_is_lost_and_nothing_counted_twice(chaos: Chaos) -> None:
    print(f"\nseed {SEED}")
    chaos.play(ROUNDS)
    account = chaos.account
    answers = {
        "events_by_type": (
            account.by_type,
            Counter({row["event_type"]: row["event_count"] for row in chaos.ask("events_by_type")}),
        ),
        "event_properties": (
            account.by_type,
            Counter(
                {
                    row["event_type"]: row["count"]
                    for row in chaos.ask("event_properties", property_key="round", limit=10_000)
                }
            ),
        ),
        "user_sessions": (
            account.by_day,
            Counter({row["day"]: row["total_sessions"] for row in chaos.ask("user_sessions")}),
        ),
    }
    lost = {name: (sent - found).total() for name, (sent, found) in answers.items()}
    twice = {name: (found - sent).total() for name, (sent, found) in answers.items()}
    doors = ", ".join(f"{count:,} by {door}" for door, count in sorted(account.by_door.items()))
    print(f"faults {dict(sorted(chaos.faults.items()))}")
    print(
        f"rounds {ROUNDS}, faults {chaos.faults.total()}, acknowledged {account.by_door.total():,} events ({doors}), "
        f"lost {max(lost.values())}, twice {max(twice.values())}"
    )
    assert set(lost.values()) == set(twice.values()) == {0}, (lost, twice)
    with connect(chaos.copy.settings, database=chaos.copy.settings.database) as client:
        torn = client.query(TORN_IMPORTS).result_rows
        [(found, poison)] = client.query(MESSAGES).result_rows
        distinct = chaos.topic.distinct(client)
        lines, kept, quarantined = chaos.topic.account(client)
        rows, rejects = chaos.topic.stored(client)
    print(f"torn imports {len(torn)}; of Kafka {account.messages:,} messages, {rows + rejects:,} rows, {lines:,} lines")
    # A request that was never acknowledged, and not sent again as it was, may have reached only some of the tables.
    assert not [row for row in torn if row[0] in account.imports or row[1] != "http"], "the account adds up"
    assert len(torn) <= chaos.faults.total()
    # Each message has a row where it was in Kafka, and each that holds no event is quarantined. A block that was
    # delivered again may have left copies, of which tables and imports need not have the same ones.
    assert (found, set(poison), distinct) == (account.messages, account.poison, account.by_door["kafka"])
    assert lines == kept + quarantined
    assert min(kept, rows) >= account.messages - len(poison)
    assert min(quarantined, rejects) >= len(poison)
    if ROUNDS >= 200:
        assert {f"{kind} SIGKILL" for kind in chaos.victims()} <= chaos.faults.keys()
