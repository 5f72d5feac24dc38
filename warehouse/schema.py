"""The tables that events land in, applied idempotently from ``warehouse/schema/*.sql``."""

from __future__ import annotations

import re
from contextlib import closing

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from warehouse.connection import connect, refusal, serve_password, sql_password
from warehouse.kafka import apply_kafka
from warehouse.settings import PROJECT_DIR, Settings

SCHEMA_DIR = PROJECT_DIR / "warehouse" / "schema"
# Of the users that run SQL which others wrote. They can change none of it: in this mode SELECT is all there is, and a
# SETTINGS clause is refused.
SQL_SETTINGS = {
    "readonly": 1,
    "max_execution_time": 10,
    "max_memory_usage": 2_000_000_000,
    "max_result_bytes": 100_000_000,
    # An analyst's question leaves room for events and endpoints.
    "max_threads": 4,
    "max_concurrent_queries_for_user": 4,
    # As endpoints answer.
    "output_format_json_quote_64bit_integers": 0,
    "output_format_json_validate_utf8": 1,
}
_VIEW = re.compile(r"create materialized view if not exists (\S+) .*?\bas\n(.*)", re.DOTALL)


class ServeUserError(Exception):
    """The API's database user could not be made; the tables are in place."""


class SqlUserError(Exception):
    """The database users of analysts' SQL could not be made; everything else is in place."""


def apply_schema(settings: Settings) -> None:
    """Create what is missing and bring every view to its definition; running it again changes nothing.

    Raises:
        clickhouse_connect.driver.exceptions.ClickHouseError: the server refused a statement.
        ServeUserError, SqlUserError: it refused to make these users.
    """
    with closing(connect(settings)) as client:
        for database in (settings.database, settings.api_database):
            client.command(f"create database if not exists {database}")
        for path in sorted(SCHEMA_DIR.glob("*.sql")):
            for statement in _statements(path.read_text()):
                sql = statement.replace("{database}", settings.database)
                client.command(sql)
                if view := _VIEW.search(sql):
                    _bring_to_definition(client, view[1], view[2])
        apply_kafka(client, settings)
        if not settings.embedded:
            _create_users(client, settings)


def _bring_to_definition(client: Client, view: str, query: str) -> None:
    # Only where it differs: until the server's next start, an altered view gives the tokens of inserts another hash,
    # and what was sent before would not be recognised when it is sent again.
    database, name = view.split(".")
    differs = client.query(
        "select as_select != formatQuerySingleLine({query:String}) from system.tables "
        "where database = {database:String} and name = {name:String}",
        parameters={"query": query, "database": database, "name": name},
    ).result_rows[0][0]
    if differs:
        # In place: between a drop and a create, lines inserted into landing would be lost.
        client.command(f"alter table {view} modify query {query}")


def serve_grants(settings: Settings) -> list[str]:
    """The rights of the API's user: insert events, ask for jobs, read the endpoint views and what became of both."""
    return [
        f"INSERT ON {settings.database}.landing",
        f"SELECT ON {settings.database}.import_results",
        f"SELECT ON {settings.database}.import_rejects",
        f"INSERT ON {settings.database}.job_requests",
        f"SELECT ON {settings.database}.job_results",
        f"SELECT ON {settings.database}.job_list",
        f"SELECT ON {settings.database}.datasource_list",
        f"SELECT ON {settings.database}.kafka_lag",
        f"SELECT ON {settings.api_database}.*",
    ]


def sql_grants(settings: Settings) -> list[str]:
    """The rights of analysts' SQL: read the events, the rollups, the accounts and the endpoint views."""
    return [f"SELECT ON {settings.database}.*", f"SELECT ON {settings.api_database}.*"]


def checked(settings: Settings, lines: str) -> str:
    """The rows of ``landing_checked`` that landing would make of other lines: a query.

    Args:
        lines: a table or subquery with the columns of ``landing``.
    """
    return _select_of(settings, "landing_check").replace(f"from {settings.database}.landing\n", f"from {lines}\n")


def kept(settings: Settings, lines_checked: str) -> str:
    """The rows of ``app_events`` that landing would make of checked lines: a query, columns named."""
    select = _select_of(settings, "landing_kept")
    return select.replace(f"from {settings.database}.landing_checked\n", f"from {lines_checked}\n")


def _select_of(settings: Settings, view: str) -> str:
    for path in SCHEMA_DIR.glob("*.sql"):
        for statement in _statements(path.read_text()):
            sql = statement.replace("{database}", settings.database)
            if (found := _VIEW.search(sql)) and found[1] == f"{settings.database}.{view}":
                return found[2]
    raise LookupError(view)


def _create_users(client: Client, settings: Settings) -> None:
    if settings.serve_user != settings.clickhouse_user and not settings.serve_password:
        try:
            # A query of the API can ask for less of each, not for more, nor for 0, which is without end.
            limits = [f"{name} = {value} min 1 max {value}" for name, value in settings.query_limits.items()]
            _create_user(client, settings.serve_user, serve_password(settings), serve_grants(settings), limits)
        except ClickHouseError as error:
            raise ServeUserError(f"{settings.serve_user} could not be made: {refusal(error)}") from error
    if not settings.sql_password:
        password = sql_password(settings)
        limits = [f"{name} = {value}" for name, value in SQL_SETTINGS.items()]
        try:
            _create_user(client, settings.sql_user, password, sql_grants(settings), limits)
            _create_user(client, settings.answers_user, password, [], limits)
        except ClickHouseError as error:
            raise SqlUserError(f"{settings.sql_user} could not be made: {refusal(error)}") from error


def _create_user(client: Client, user: str, password: str, grants: list[str], limits: list[str]) -> None:
    # Bound parameters do not reach DDL; the password holds URL-safe characters only.
    defined = f"identified with sha256_password by '{password}' settings {', '.join(limits)}"
    client.command(f"create user if not exists {user} {defined}")
    client.command(f"alter user {user} {defined}")
    for grant in grants:
        client.command(f"grant {grant} to {user}")


def _statements(text: str) -> list[str]:
    return [statement for statement in re.split(r";\s*\n", text) if statement.strip()]
