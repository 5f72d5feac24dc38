"""Erase events from everywhere they are kept."""

from __future__ import annotations

from clickhouse_connect.driver.client import Client

from warehouse.conditions import Condition
from warehouse.quarantine import quarantined_lines
from warehouse.settings import Settings


def rows_to_be_deleted(client: Client, settings: Settings, condition: Condition) -> dict[str, int]:
    """How many rows of ``app_events`` and ``app_events_quarantine`` the condition is about, by table.

    Raises:
        clickhouse_connect.driver.exceptions.DatabaseError: the condition cannot be evaluated for some row.
    """
    events = f"select count() from {settings.database}.app_events where {condition.sql}"
    quarantined = f"""
        select count()
        from {settings.database}.app_events_quarantine
        where (c__import_id, line_number, raw) in ({condition.lines(settings, quarantined_lines(settings))})
    """
    return {
        "app_events": client.query(events).result_rows[0][0],
        "app_events_quarantine": client.query(quarantined).result_rows[0][0],
    }
