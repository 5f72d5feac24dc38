"""Kafka as a source: librdkafka's own mock cluster speaks the real protocol, ClickHouse's Kafka table consumes it."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client
from confluent_kafka import Consumer, Producer, TopicPartition
from conftest import Dbt, EmbeddedServer, environment, refusal

from warehouse.connection import connect
from warehouse.jobs import do_now
from warehouse.kafka import apply_kafka
from warehouse.schema import apply_schema
from warehouse.settings import Settings

pytestmark = pytest.mark.timeout(400)
PARTITIONS = range(4)  # as many as the mock cluster gives a topic


class Topic:
    """A topic of the test's own, consumed by a group of its own."""

    def __init__(self, settings: Settings, producer: Producer) -> None:
        self.name = f"events-{uuid.uuid4().hex}"
        self.settings = replace(settings, kafka_topic=self.name, kafka_group=f"group-{self.name}")
        self.producer = producer

    def send(self, *messages: bytes | str | None, partition: int = 0) -> None:
        for message in messages:
            self.producer.produce(self.name, message, partition=partition)
            self.producer.poll(0)
        assert self.producer.flush(30) == 0

    def committed(self) -> int:
        """Messages whose offsets the group has committed."""
        group = {"bootstrap.servers": self.settings.kafka_brokers, "group.id": self.settings.kafka_group}
        consumer = Consumer(group)
        try:
            offsets = consumer.committed([TopicPartition(self.name, number) for number in PARTITIONS], timeout=10)
        finally:
            consumer.close()
        return sum(max(position.offset, 0) for position in offsets)

    def account(self, client: Client) -> tuple[int, int, int]:
        """Lines, kept and quarantined of the topic's imports."""
        [row] = client.query(
            "select sum(lines), sum(kept), sum(quarantined) from {database:Identifier}.imports "
            "where startsWith(import_id, {prefix:String})",
            parameters={"database": self.settings.database, "prefix": f"kafka-{self.name}-"},
        ).result_rows
        return row

    def stored(self, client: Client) -> tuple[int, int]:
        """Rows of app_events and of the quarantine that came by the topic."""
        [row] = client.query(
            "select "
            "(select count() from {database:Identifier}.app_events where startsWith(import_id, {prefix:String})), "
            "(select count() from {database:Identifier}.app_events_quarantine "
            "where startsWith(c__import_id, {prefix:String}))",
            parameters={"database": self.settings.database, "prefix": f"kafka-{self.name}-"},
        ).result_rows
        return row

    def distinct(self, client: Client) -> int:
        """Distinct events that came by the topic."""
        return client.query(
            "select uniqExact(event_id, event_time) from {database:Identifier}.app_events "
            "where startsWith(import_id, {prefix:String})",
            parameters={"database": self.settings.database, "prefix": f"kafka-{self.name}-"},
        ).result_rows[0][0]


def until(condition: Callable[[], object], timeout: float = 240) -> None:
    """Wait for a condition; `timeout` in seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.1)


def event(event_type: str = "app_open", event_time: str = "2025-05-11 22:01:58") -> str:
    return json.dumps({"event_id": uuid.uuid4().hex, "event_type": event_type, "event_time": event_time})


@pytest.fixture(scope="module")
def producer() -> Producer:
    """A producer that brings a broker along."""
    return Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "mock"})


@pytest.fixture(scope="module")
def own(producer: Producer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A ClickHouse of this module's own that consumes from the broker."""
    [broker] = producer.list_topics(timeout=10).brokers.values()
    environ = environment(tmp_path_factory.mktemp("kafka")) | {"KAFKA_BROKERS": f"{broker.host}:{broker.port}"}
    server = EmbeddedServer(environ)
    server.start()
    apply_schema(server.settings)
    yield server
    server.stop()


@pytest.fixture
def topic(own: EmbeddedServer, producer: Producer) -> Iterator[Topic]:
    topic = Topic(own.settings, producer)
    with connect(own.settings) as client:
        apply_kafka(client, topic.settings)
    yield topic
    with connect(own.settings) as client:
        apply_kafka(client, replace(topic.settings, kafka_brokers=""))


def test_messages_become_events_and_their_offsets_are_committed(own: EmbeddedServer, topic: Topic) -> None:
    client = connect(own.settings)
    for partition in PARTITIONS:
        topic.send(*(event() for _ in range(250)), partition=partition)
    until(lambda: topic.committed() == 1000)
    assert topic.account(client) == (1000, 1000, 0)
    assert topic.stored(client) == (1000, 0)
    rows = client.query(
        "select import_id, source, lines from {database:Identifier}.imports final "
        "where startsWith(import_id, 'kafka-') order by import_id",
        parameters={"database": own.settings.database},
    ).result_rows
    assert [row[1:] for row in rows] == [(f"kafka: {topic.name}", 250)] * 4
    assert [row[0].rsplit("-", 1)[0] for row in rows] == [f"kafka-{topic.name}-{n}" for n in PARTITIONS]
    numbers = client.query(
        "select min(line_number), max(line_number), uniqExact(import_id, line_number) "
        "from {database:Identifier}.app_events",
        parameters={"database": own.settings.database},
    ).result_rows
    assert numbers == [(1, 250, 1000)]


def test_how_far_it_is_behind_can_be_seen(own: EmbeddedServer, topic: Topic) -> None:
    client = connect(own.settings, as_serve_user=True)

    def lag() -> list[tuple]:
        return client.query(
            "select topic, partition, next_offset, lag, last_error from {database:Identifier}.kafka_lag",
            parameters={"database": own.settings.database},
        ).result_rows

    topic.send(*(event() for _ in range(10)), partition=1)
    until(lambda: lag() == [(topic.name, n, 10 if n == 1 else None, 0 if n == 1 else None, "") for n in PARTITIONS])


def test_what_is_no_event_is_quarantined_as_it_came_and_stops_nothing(own: EmbeddedServer, topic: Topic) -> None:
    client = connect(own.settings)
    poison = [
        b"no json",
        b"\xff\xfe\x00\x01",
        b'{"event_id": "cut',
        b"[1, 2]",
        b"x" * 900_000,
        b"[" * 10_000,
        event().encode() + b"\n" + event().encode(),
        event(event_time="2025-02-30 00:00:00").encode(),
        b"\n",
    ]
    # An empty message and a tombstone hold no line; months beyond a hundred are no reason to stop.
    topic.send(
        *poison, b"", None, *(event(event_time=f"{1971 + n // 12}-{1 + n % 12:02}-01 00:00:00") for n in range(150))
    )
    topic.send(json.dumps(json.loads(event()), indent=2) + "\n")
    until(lambda: topic.committed() == len(poison) + 2 + 151)
    assert topic.account(client) == (len(poison) + 151, 151, len(poison))
    rows = client.query(
        "select line_number, hex(raw), source, empty(c__error) from {database:Identifier}.app_events_quarantine "
        "order by line_number",
        parameters={"database": own.settings.database},
    ).result_rows
    assert [(number, bytes.fromhex(raw)) for number, raw, _, _ in rows] == list(enumerate(poison, 1))
    assert {row[2:] for row in rows} == {(f"kafka: {topic.name}", 0)}


def test_what_stands_before_an_event_is_no_part_of_it(own: EmbeddedServer, topic: Topic) -> None:
    """Line feeds, tabs and a byte order mark, as the other doors pass over them."""
    client = connect(own.settings)
    topic.send("\n" + event(), "\r\n\t" + event(), b"\xef\xbb\xbf" + event().encode(), " " + event())
    topic.send("\n\tno json")
    until(lambda: topic.committed() == 5)
    assert topic.account(client) == (5, 4, 1)
    rows = client.query(
        "select raw from {database:Identifier}.app_events_quarantine where startsWith(c__import_id, {prefix:String})",
        parameters={"database": own.settings.database, "prefix": f"kafka-{topic.name}-"},
    ).result_rows
    assert rows == [("\n\tno json",)]


def test_rows_that_cannot_be_stored_now_are_stored_later(own: EmbeddedServer, topic: Topic) -> None:
    client = connect(own.settings)
    topic.send(event())
    until(lambda: topic.committed() == 1)
    client.command(f"detach table {own.settings.database}.app_events")

    def last_error() -> str:
        sql = f"select last_error from {own.settings.database}.kafka_lag"
        return str(client.query(sql).result_rows)

    try:
        topic.send("no json", *(event() for _ in range(10)))
        until(lambda: "app_events" in last_error())
        assert "Stack trace" not in last_error()
        assert topic.committed() == 1
    finally:
        client.command(f"attach table {own.settings.database}.app_events")
    until(lambda: topic.committed() == 12)
    assert topic.distinct(client) == 11
    assert topic.stored(client) == (11, 1)
    assert topic.account(client) == (12, 11, 1)


def test_a_clickhouse_killed_while_it_consumes_loses_nothing_and_counts_once(own: EmbeddedServer, topic: Topic) -> None:
    Dbt(own.environ)("run", "--select", "+events_by_type")
    events = 0
    for _ in range(2):
        client = connect(own.settings)
        before = topic.distinct(client)
        topic.send(*(event("consumed") for _ in range(20_000)), partition=events % 4)
        events += 20_000
        until(lambda client=client, before=before: topic.distinct(client) > before)
        own.stop(signal.SIGKILL)
        own.start()
    client = connect(own.settings)
    until(lambda: topic.committed() == events, 120)
    counted = client.query(
        f"select event_count from {own.settings.api_database}.events_by_type("
        "start_date = null, end_date = null, app_version = null) where event_type = 'consumed'"
    ).result_rows
    assert counted == [(events,)]
    assert topic.account(client)[0] == sum(topic.stored(client)) == events


def test_messages_that_are_delivered_again_count_once(own: EmbeddedServer, topic: Topic) -> None:
    """By a group that starts anew, as after commits that were lost: copies may be kept, nothing counts twice."""
    client = connect(own.settings)
    topic.send(*(event() for _ in range(100)), "no json")
    until(lambda: topic.committed() == 101)
    topic.settings = replace(topic.settings, kafka_group=f"another-{topic.name}")
    topic.send(*(event() for _ in range(50)))
    apply_kafka(client, topic.settings)
    until(lambda: topic.committed() == 151)
    assert topic.distinct(client) == 150
    rows, quarantined = topic.stored(client)
    assert topic.account(client) == (rows + quarantined, rows, quarantined)
    addresses = client.query(
        "select uniqExact(import_id, line_number) from {database:Identifier}.app_events "
        "where startsWith(import_id, {prefix:String})",
        parameters={"database": own.settings.database, "prefix": f"kafka-{topic.name}-"},
    ).result_rows
    assert addresses == [(150,)], "a message keeps its import and line number"


def test_dagster_has_a_check_that_is_red_when_consumers_are_in_trouble(
    own: EmbeddedServer, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dagster as dg

    from orchestration.definitions import defs

    for name in set(os.environ) - set(own.environ):
        monkeypatch.delenv(name)
    for name, value in own.environ.items():
        monkeypatch.setenv(name, value)

    with dg.DagsterInstance.ephemeral() as instance:
        repository = defs().get_repository_def()
        asset_key = dg.AssetKey("app_events")
        assert dg.AssetCheckKey(asset_key, "kafka_lag") in repository.asset_graph.asset_check_keys
        sensor = repository.get_sensor_def("kafka_watch")

        def tick(cursor: str | None = None) -> dg.SensorExecutionData:
            return sensor.evaluate_tick(dg.build_sensor_context(instance, cursor=cursor, repository_def=repository))

        def found() -> dg.AssetCheckEvaluation:
            [evaluation] = tick().asset_events
            assert (evaluation.asset_key, evaluation.check_name) == (asset_key, "kafka_lag")
            return evaluation

        client = connect(own.settings)
        topic.send(*(event() for _ in range(10)))
        until(lambda: topic.committed() == 10)
        until(lambda: [row.data["lag"] for row in found().metadata["partitions"].records] == [0, None, None, None])
        assert found().passed
        assert "0 messages wait" in (tick(tick().cursor).skip_message or "")

        client.command(f"detach table {own.settings.database}.app_events")
        try:
            topic.send(event())
            until(lambda: "app_events" in found().description)
            assert not found().passed
            assert tick(tick().cursor).asset_events, "told again as long as it goes on"
        finally:
            client.command(f"attach table {own.settings.database}.app_events")
        until(lambda: topic.committed() == 11)
        assert found().passed, "a commit has followed the error"

        apply_kafka(client, replace(topic.settings, kafka_brokers="127.0.0.1:1"))
        until(lambda: not found().passed)
        assert "127.0.0.1:1" in found().description
        apply_kafka(client, topic.settings)

        # Messages do not wait for long enough to be seen each time, so the view says that some do.
        view = f"{own.settings.database}.kafka_lag"
        client.command(
            f"create or replace view {view} as select 't' as topic, toInt32(number) as partition, "
            "9 as next_offset, 5 as lag, now('UTC') as last_commit_at, '' as last_error, null as last_error_at "
            "from numbers(2)"
        )
        try:
            monkeypatch.setenv("KAFKA_LAG_MAX", "10")
            assert found().passed
            monkeypatch.setenv("KAFKA_LAG_MAX", "9")
            assert not found().passed
            assert found().metadata["lag"].value == 10
        finally:
            apply_schema(own.settings)
        monkeypatch.delenv("KAFKA_BROKERS")
        without = defs().get_repository_def()
        assert not any(key.name == "kafka_lag" for key in without.asset_graph.asset_check_keys)
        assert not without.has_sensor_def("kafka_watch")


def test_without_brokers_messages_stay_in_kafka(own: EmbeddedServer, topic: Topic) -> None:
    client = connect(own.settings)
    topic.send(event())
    until(lambda: topic.committed() == 1)
    apply_kafka(client, replace(topic.settings, kafka_brokers=""))
    topic.send(event())
    assert client.query(f"select * from {own.settings.database}.kafka_lag").result_rows == []
    apply_kafka(client, topic.settings)
    until(lambda: topic.committed() == 2)
    assert topic.stored(client) == (2, 0)


def test_the_password_is_shown_nowhere(own: EmbeddedServer, topic: Topic) -> None:
    client = connect(own.settings)
    password = f"secret-{uuid.uuid4().hex}"
    secured = replace(
        topic.settings, kafka_sasl_mechanism="PLAIN", kafka_sasl_username="u'\\", kafka_sasl_password=password
    )
    assert password not in repr(secured)
    apply_kafka(client, secured)
    [(shown,)] = client.query(f"show create table {own.settings.database}.kafka_messages").result_rows
    assert r"kafka_sasl_username = 'u\'\\'" in shown
    assert password not in shown
    log = Path(own.settings.data_dir, "clickhouse", "server.log")
    until(lambda: "sasl.username:u'" in log.read_text(errors="replace"))  # the consumer logs how it is configured
    assert password not in log.read_text(errors="replace")
    client.command("system flush logs")
    logged = f"select count() from system.query_log where position(query, reverse('{password[::-1]}')) > 0"
    assert client.query(logged).result_rows == [(0,)]


def test_settings_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    for name, value in {
        "KAFKA_BROKERS": "broker",
        "KAFKA_TOPIC": "a topic",
        "KAFKA_GROUP": "'",
        "KAFKA_LAG_MAX": "many",
        "KAFKA_SECURITY_PROTOCOL": "TLS",
        "KAFKA_SASL_MECHANISM": "GSSAPI",
    }.items():
        assert name in refusal("warehouse.run", environment(tmp_path) | {name: value})


def test_an_erasure_waits_for_messages_on_their_way_in(own: EmbeddedServer, topic: Topic) -> None:
    """Their rows say that they came before it, so it has to find them."""
    client = connect(own.settings)
    table = f"{own.settings.database}.app_events"
    # Evaluated after the time of the insert has been fixed, and before its rows are there.
    client.command(f"alter table {table} add column slow UInt8 default sleepEachRow(2.5)")
    try:
        topic.send(event("slow"))
        until(lambda: client.query(f"select count() from {table} where event_type = 'slow'").first_row == (1,))
        topic.send(event("slow"))
        time.sleep(2)
        job = do_now(client, own.settings, "delete_data", {"delete_condition": "event_type = 'slow'"})
        assert job.status == "done", job.error
        until(lambda: topic.committed() == 2)
        [cutoff] = client.query(
            "select max(cutoff) from {database:Identifier}.jobs where job_id = {id:String}",
            parameters={"database": own.settings.database, "id": job.job_id},
        ).first_row
        rows = f"select inserted_at from {table} where event_type = 'slow' and inserted_at < {{cutoff:DateTime}} + 1"
        assert client.query(rows, parameters={"cutoff": cutoff}).result_rows == []
    finally:
        client.command(f"alter table {table} drop column slow")
