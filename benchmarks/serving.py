"""The API beside the same query sent to ClickHouse directly."""

from __future__ import annotations

from urllib.parse import urlencode

import urllib3

from benchmarks.data import insert_sample
from benchmarks.load import expect_200, load
from benchmarks.report import table
from benchmarks.sandbox import dbt, sandbox
from warehouse.connection import admin_token, serve_password

REQUESTS = 200
ENDPOINTS = {
    "events_by_type": {"app_version": None},
    "user_sessions": {"country": None, "device_type": None},
    "event_properties": {"event_type": None, "property_key": None, "limit": None},
}
BOUNDS = {"start_date": "2026-09-03 10:20:30", "end_date": "2026-10-01 07:01:02"}


def run(events: int = 1_000_000) -> str:
    """Latency and throughput of each endpoint over 28 ragged days."""
    rows = []
    with sandbox(api=True) as (settings, client):
        insert_sample(client, settings, events)
        dbt("run", "--select", "rollups")
        headers = {"Authorization": f"Bearer {admin_token(settings)}"}
        credentials = {"user": settings.serve_user, "password": serve_password(settings)}
        for endpoint, filters in ENDPOINTS.items():
            url = f"http://127.0.0.1:{settings.api_port}/v0/pipes/{endpoint}.json?{urlencode(BOUNDS)}"
            arguments = [f"{name} = '{value}'" for name, value in BOUNDS.items()]
            arguments += [f"{name} = NULL" for name in filters]
            query = f"select * from {settings.api_database}.{endpoint}({', '.join(arguments)}) format JSON"
            direct_url = f"http://127.0.0.1:{settings.clickhouse_port}/?{urlencode(credentials)}"

            def direct(pool: urllib3.PoolManager, _: int, url: str = direct_url, query: str = query) -> None:
                expect_200(pool.request("POST", url, body=query.encode()))

            def ours(pool: urllib3.PoolManager, _: int, url: str = url) -> None:
                expect_200(pool.request("GET", url, headers=headers))

            for clients in (1, 8):
                for request in (direct, ours):
                    load(request, requests=20, clients=clients)
                there = load(direct, requests=REQUESTS, clients=clients)
                here = load(ours, requests=REQUESTS, clients=clients)
                rows.append(
                    (
                        endpoint,
                        clients,
                        f"{here.p50_ms:.1f} / {here.p99_ms:.1f}",
                        f"{there.p50_ms:.1f} / {there.p99_ms:.1f}",
                        f"{here.p50_ms - there.p50_ms:+.1f}",
                        f"{here.per_second:.0f}",
                        f"{there.per_second:.0f}",
                        f"{here.per_second / there.per_second:.2f}",
                    )
                )
    return table(
        f"The API beside ClickHouse itself, {events:,} events",
        [
            "endpoint",
            "clients",
            "p50 / p99 ms",
            "direct p50 / p99 ms",
            "p50 difference ms",
            "req/s",
            "direct req/s",
            "ratio",
        ],
        rows,
    )
