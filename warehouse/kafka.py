"""Kafka as a source: ClickHouse's own consumer, from which a materialised view passes messages on to ``landing``."""

from __future__ import annotations

from clickhouse_connect.driver.client import Client

from warehouse.settings import Settings

# A message is one line. Its import is what its partition brought on one day, by the message's own timestamp: a
# redelivered message has the same import and line number, and the account of imports stays small.
VIEW = """
create materialized view {database}.kafka_landing to {database}.landing
sql security definer
as
select
    replaceRegexpOne(message.line, '^(\\xEF\\xBB\\xBF)?[ \\t\\r\\n]*', '') as line,
    if(line = message.line, '', message.line) as raw,
    concat(
        'kafka-', _topic, '-', toString(_partition), '-', toString(toYYYYMMDD(ifNull(_timestamp, 0), 'UTC'))
    ) as import_id,
    _offset + 1 as line_number,
    concat('kafka: ', _topic) as source
from {database}.kafka_messages as message
"""


def apply_kafka(client: Client, settings: Settings) -> None:
    """Consume the topic of ``KAFKA_TOPIC`` as the settings say, or no longer where ``KAFKA_BROKERS`` is empty.

    The table and its view are made anew each time, so that every change of a setting counts. They hold no data: how far
    the group has come stands in Kafka, and is committed there only after the rows are in.

    Raises:
        clickhouse_connect.driver.exceptions.ClickHouseError: the server refused a statement.
    """
    database = settings.database
    client.command(f"drop view if exists {database}.kafka_landing sync")
    client.command(f"drop table if exists {database}.kafka_messages sync")
    if not settings.kafka_brokers:
        return
    options = {
        "kafka_broker_list": settings.kafka_brokers,
        "kafka_topic_list": settings.kafka_topic,
        "kafka_group_name": settings.kafka_group,
        # Any bytes are one line: what is no event is told apart by landing, and stops nothing.
        "kafka_format": "RawBLOB",
        # A message waits a second at most to be taken in together with those that follow.
        "kafka_flush_interval_ms": 1000,
        "kafka_poll_timeout_ms": 250,
        "kafka_security_protocol": settings.kafka_security_protocol.lower(),
        "kafka_sasl_mechanism": settings.kafka_sasl_mechanism,
        "kafka_sasl_username": settings.kafka_sasl_username,
        "kafka_sasl_password": settings.kafka_sasl_password,
    }
    given = {name: value for name, value in options.items() if value}
    # Quoted by the client: DDL takes no bound parameters. ClickHouse writes [HIDDEN] for the password wherever it shows
    # the statement.
    client.command(
        f"create table {database}.kafka_messages (line String comment 'The message, byte for byte') engine = Kafka "
        f"settings {', '.join(f'{name} = %({name})s' for name in given)} "
        "comment 'Consumer of the topic; reading it would take messages away from landing'",
        parameters=given,
    )
    client.command(VIEW.replace("{database}", database))
