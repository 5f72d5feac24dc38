"""How fast a backlog in Kafka is taken in, beside a bare INSERT of the same lines in the same run.

The broker is librdkafka's mock cluster in this process. It holds 5 MB a partition, so the backlog is small, and joining
the group, which takes seconds however much waits, is told apart from what follows.
"""

from __future__ import annotations

import time
from dataclasses import replace

from clickhouse_connect.driver.client import Client
from confluent_kafka import Producer

from benchmarks.ingestion import bare_insert, bare_table, sample, settle
from benchmarks.report import table
from benchmarks.sandbox import sandbox
from warehouse.kafka import apply_kafka
from warehouse.settings import Settings

PARTITIONS = 4  # as many as the mock cluster gives a topic
REPETITIONS = 3
WAIT_SECONDS = 120


def run(events: int = 60_000) -> str:
    """A table of one backlog after the other."""
    producer = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "mock"})
    [broker] = producer.list_topics(timeout=10).brokers.values()
    rows = []
    with sandbox() as (settings, client):
        bare_table(client, settings)
        for repetition in range(REPETITIONS):
            topic = f"benchmark_{repetition}"
            lines = sample(client, events, seed=repetition).splitlines()
            for number, line in enumerate(lines):
                producer.produce(topic, line, partition=number % PARTITIONS)
            if left := producer.flush(60):
                raise RuntimeError(f"{left} messages were not taken by the broker")
            settle(client)
            bare = events / bare_insert(client, b"\n".join(lines))
            settle(client)
            brokers = f"{broker.host}:{broker.port}"
            consuming = replace(settings, kafka_brokers=brokers, kafka_topic=topic, kafka_group=topic)
            began = time.perf_counter()
            apply_kafka(client, consuming)
            joined = _seconds_until(client, consuming, 1, began)
            seconds = _seconds_until(client, consuming, events, began)
            apply_kafka(client, settings)
            rows.append((f"{events:,}", f"{joined:.1f}", f"{seconds:.1f}", f"{events / seconds:,.0f}", f"{bare:,.0f}"))
    header = ["messages", "first rows after, s", "all after, s", "messages/s", "bare INSERT, rows/s"]
    return table("A backlog in Kafka", header, rows)


def _seconds_until(client: Client, settings: Settings, lines: int, began: float) -> float:
    while time.perf_counter() - began < WAIT_SECONDS:
        arrived = client.query(
            f"select sum(lines) from {settings.database}.imports where source = {{source:String}}",
            parameters={"source": f"kafka: {settings.kafka_topic}"},
        ).result_rows[0][0]
        if arrived >= lines:
            return time.perf_counter() - began
        time.sleep(0.02)
    raise RuntimeError(f"{lines} messages of {settings.kafka_topic} are not in after {WAIT_SECONDS} s")
