"""The tables that events land in, applied idempotently from ``warehouse/schema/*.sql``."""

from __future__ import annotations

import re
from contextlib import closing

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from warehouse.connection import connect, serve_password
from warehouse.settings import PROJECT_DIR, Settings

SCHEMA_DIR = PROJECT_DIR / "warehouse" / "schema"
_VIEW = re.compile(r"create materialized view if not exists (\S+) .*?\bas\n(.*)", re.DOTALL)


class ServeUserError(Exception):
    """The API's database user could not be made; everything else is in place."""


def apply_schema(settings: Settings) -> None:
    """Create what is missing and bring every view to its definition; running it again changes nothing.

    Raises:
        clickhouse_connect.driver.exceptions.ClickHouseError: the server refused a statement.
        ServeUserError: it refused the API's user only.
    """
    with closing(connect(settings)) as client:
        for database in (settings.database, settings.api_database):
            client.command(f"create database if not exists {database}")
        for path in sorted(SCHEMA_DIR.glob("*.sql")):
            for statement in _statements(path.read_text()):
                sql = statement.replace("{database}", settings.database)
                client.command(sql)
                if view := _VIEW.search(sql):
                    # In place: between a drop and a create, lines inserted into landing would be lost.
                    client.command(f"alter table {view[1]} modify query {view[2]}")
        if not settings.embedded and settings.serve_user != settings.clickhouse_user and not settings.serve_password:
            _create_serve_user(client, settings)


def serve_grants(settings: Settings) -> list[str]:
    """The rights of the API's user: insert events, ask for jobs, read the endpoint views and what became of both."""
    return [
        f"INSERT ON {settings.database}.landing",
        f"SELECT ON {settings.database}.import_results",
        f"SELECT ON {settings.database}.import_rejects",
        f"INSERT ON {settings.database}.job_requests",
        f"SELECT ON {settings.database}.job_results",
        f"SELECT ON {settings.database}.job_list",
        f"SELECT ON {settings.api_database}.*",
    ]


def _create_serve_user(client: Client, settings: Settings) -> None:
    user = settings.serve_user
    # Bound parameters do not reach DDL; the password holds URL-safe characters only.
    identified = f"identified with sha256_password by '{serve_password(settings)}'"
    try:
        client.command(f"create user if not exists {user} {identified}")
        client.command(f"alter user {user} {identified}")
        for grant in serve_grants(settings):
            client.command(f"grant {grant} to {user}")
    except ClickHouseError as error:
        reason = str(error).partition("DB::Exception: ")[2].partition(" (for url")[0] or str(error)
        raise ServeUserError(f"{user} could not be made: {reason}") from error


def _statements(text: str) -> list[str]:
    return [statement for statement in re.split(r";\s*\n", text) if statement.strip()]
