"""The tables that events land in, applied idempotently from ``warehouse/schema/*.sql``."""

from __future__ import annotations

import re

from clickhouse_connect.driver.client import Client

from warehouse.connection import connect, serve_password
from warehouse.settings import PROJECT_DIR, Settings

SCHEMA_DIR = PROJECT_DIR / "warehouse" / "schema"
_VIEW = re.compile(r"create materialized view if not exists (\S+) .*?\bas\n(.*)", re.DOTALL)


def apply_schema(settings: Settings) -> None:
    """Create what is missing and bring every view to its definition; running it again changes nothing.

    Raises:
        clickhouse_connect.driver.exceptions.ClickHouseError: the server refused a statement.
    """
    client = connect(settings)
    for database in (settings.database, settings.api_database):
        client.command(f"create database if not exists {database}")
    for path in sorted(SCHEMA_DIR.glob("*.sql")):
        for statement in _statements(path.read_text()):
            sql = statement.replace("{database}", settings.database)
            client.command(sql)
            if view := _VIEW.search(sql):
                # In place: between a drop and a create, lines inserted into landing would be lost.
                client.command(f"alter table {view[1]} modify query {view[2]}")
    if not settings.embedded:
        _create_serve_user(client, settings)


def serve_grants(settings: Settings) -> list[str]:
    """The rights of the API's user: insert into landing, read the endpoint views and the result of an import."""
    return [
        f"INSERT ON {settings.database}.landing",
        f"SELECT ON {settings.database}.import_results",
        f"SELECT ON {settings.database}.import_rejects",
        f"SELECT ON {settings.api_database}.*",
    ]


def _create_serve_user(client: Client, settings: Settings) -> None:
    user = settings.serve_user
    # Bound parameters do not reach DDL; the password holds URL-safe characters only.
    client.command(f"create user or replace {user} identified with sha256_password by '{serve_password(settings)}'")
    for grant in serve_grants(settings):
        client.command(f"grant {grant} to {user}")


def _statements(text: str) -> list[str]:
    return [statement for statement in re.split(r";\s*\n", text) if statement.strip()]
