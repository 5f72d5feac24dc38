"""Synthetic events straight into app_events, as many as wanted."""

from __future__ import annotations

from clickhouse_connect.driver.client import Client

from warehouse.sample import SAMPLE_SQL
from warehouse.settings import Settings

DAYS = 90
UNTIL = "2026-11-01 00:00:00"
COLUMNS = (
    "event_id, user_id, event_type, event_time, app_version, device_type, os_version, country, properties, session_id"
)


def insert_sample(client: Client, settings: Settings, events: int, seed: int = 1) -> None:
    """Insert `events` synthetic events over 90 days and wait for the merges."""
    client.command(
        f"insert into {settings.database}.app_events ({COLUMNS}) {SAMPLE_SQL.read_text()}",
        parameters={"events": events, "days": DAYS, "until": UNTIL, "seed": seed},
        settings={"max_insert_threads": 2, "insert_deduplicate": 0},
    )
