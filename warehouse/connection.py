"""Connections to ClickHouse."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Any

import clickhouse_connect
from clickhouse_connect.driver.client import Client

from warehouse.settings import Settings


def connect(settings: Settings, *, as_serve_user: bool = False, as_user: str = "", **options: Any) -> Client:
    """A client of ClickHouse's HTTP interface, safe to share between threads.

    Args:
        settings: where the server is.
        as_serve_user: connect with the rights of the API instead of the project's own.
        as_user: connect as ``settings.sql_user`` or ``settings.answers_user``.
        options: further arguments of ``clickhouse_connect.get_client``.

    Raises:
        clickhouse_connect.driver.exceptions.OperationalError: the server does not answer.
    """
    if as_serve_user:
        user, password = settings.serve_user, serve_password(settings)
    elif as_user:
        user, password = as_user, sql_password(settings)
    else:
        user, password = settings.clickhouse_user, settings.clickhouse_password
    return clickhouse_connect.get_client(
        host=settings.clickhouse_host,
        port=settings.clickhouse_port,
        username=user,
        password=password,
        secure=settings.clickhouse_secure,
        # A session would serialise the threads that share the client.
        autogenerate_session_id=False,
        **options,
    )


def refusal(error: Exception) -> str:
    """What ClickHouse says is wrong, in one sentence: without its code, the query, its version and its address."""
    said = str(error)
    sentence = said.partition("DB::Exception: ")[2] or said
    for tail in (" (version", " (for url", ": In scope ", ": while executing", ": While ", " In scope "):
        sentence = sentence.partition(tail)[0]
    return re.sub(r"[. ]*\([A-Z_]+\)$", "", sentence).rstrip(". ")


def serve_password(settings: Settings) -> str:
    """``CLICKHOUSE_SERVE_PASSWORD``, or one that was made at random once and is kept in ``DATA_DIR`` with mode 0600."""
    if settings.serve_user == settings.clickhouse_user:
        return settings.clickhouse_password
    return settings.serve_password or stored_secret(settings.data_dir / "serve_password")


def sql_password(settings: Settings) -> str:
    """``CLICKHOUSE_SQL_PASSWORD``, or one that was made at random once and is kept in ``DATA_DIR`` with mode 0600."""
    return settings.sql_password or stored_secret(settings.data_dir / "sql_password")


def admin_token(settings: Settings) -> str:
    """``ADMIN_TOKEN``, or one that was made at random once and is kept in ``DATA_DIR`` with mode 0600."""
    return settings.admin_token or stored_secret(settings.data_dir / "admin_token")


def stored_secret(path: Path) -> str:
    """The secret kept in a file, made at random when there is none yet; safe when several processes ask at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    if not path.exists():
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_urlsafe(32))
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text()
