"""Where everything is and how to connect to it: the environment's variables, read in one place."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROJECT_DIR = Path(__file__).resolve().parents[1]

# What a query of the API may take, by ClickHouse's name for it; each can be set by its variable, as
# SERVE_MAX_EXECUTION_TIME=30. 0 for threads: as many as ClickHouse takes by itself, one a core.
QUERY_LIMITS = {
    "max_execution_time": 10,  # seconds
    "max_memory_usage": 2_000_000_000,  # bytes
    "max_result_rows": 10_000_000,
    "max_result_bytes": 1_000_000_000,
    "max_threads": 0,
}

KAFKA_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
KAFKA_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


class SettingsError(Exception):
    """A variable that cannot be used; the message names it, what it holds and what it takes."""


@dataclass(frozen=True)
class Settings:
    """Every setting of the project; the README lists the variables.

    Attributes:
        serve_user: the database user of the API, which may insert into landing and read the endpoint views.
        serve_password: its password; empty when the project makes the user, with a password of its own.
        sql_user: the database user for SQL of analysts, which may read everything of the project.
        sql_password: its password and that of ``answers_user``; empty when the project makes them.
        embedded: True when no ``CLICKHOUSE_HOST`` is set and the project runs its own server.
        landing_url: a local path or any fsspec URL.
        quarantine_share_max: the share of quarantined lines above which the asset check is red.
        kafka_brokers: ``host:port``, several with commas; empty when Kafka is no source.
        kafka_lag_max: the number of messages that may wait before the asset check is red.
        kafka_security_protocol, kafka_sasl_mechanism: as librdkafka names them; empty for its defaults.
        query_limits: those of ``QUERY_LIMITS`` that there are.
    """

    clickhouse_host: str
    clickhouse_port: int
    clickhouse_user: str
    clickhouse_password: str = field(repr=False)
    clickhouse_secure: bool
    database: str
    serve_user: str
    serve_password: str = field(repr=False)
    sql_user: str
    sql_password: str = field(repr=False)
    embedded: bool
    data_dir: Path
    landing_url: str
    api_host: str
    api_port: int
    dagster_port: int
    admin_token: str = field(repr=False)
    query_limits: Mapping[str, int]
    quarantine_share_max: float = 0.05
    kafka_brokers: str = ""
    kafka_topic: str = "app_events"
    kafka_group: str = "mobile_analytics"
    kafka_lag_max: int = 100_000
    kafka_security_protocol: str = ""
    kafka_sasl_mechanism: str = ""
    kafka_sasl_username: str = ""
    kafka_sasl_password: str = field(default="", repr=False)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the variables of the README's table.

        Raises:
            SettingsError: a value that is not what its variable takes.
        """
        host = environ.get("CLICKHOUSE_HOST", "")
        database = _identifier(environ, "CLICKHOUSE_DATABASE", "analytics")
        data_dir = Path(environ.get("DATA_DIR") or PROJECT_DIR / "data").expanduser().resolve()
        if not host and (
            environ.get("CLICKHOUSE_PASSWORD") or environ.get("CLICKHOUSE_USER", "default") not in ("", "default")
        ):
            raise SettingsError(
                "CLICKHOUSE_USER and CLICKHOUSE_PASSWORD are for a server of yours, which CLICKHOUSE_HOST names; "
                "the embedded one has the user default without a password and listens on 127.0.0.1 only."
            )
        return cls(
            clickhouse_host=host or "127.0.0.1",
            clickhouse_port=_port(environ, "CLICKHOUSE_PORT", 8123),
            clickhouse_user=environ.get("CLICKHOUSE_USER") or "default",
            clickhouse_password=environ.get("CLICKHOUSE_PASSWORD", ""),
            clickhouse_secure=_boolean(environ, "CLICKHOUSE_SECURE"),
            database=database,
            serve_user=_identifier(environ, "CLICKHOUSE_SERVE_USER", f"{database}_serve"),
            serve_password=environ.get("CLICKHOUSE_SERVE_PASSWORD", ""),
            sql_user=_identifier(environ, "CLICKHOUSE_SQL_USER", f"{database}_sql"),
            sql_password=environ.get("CLICKHOUSE_SQL_PASSWORD", ""),
            embedded=not host,
            data_dir=data_dir,
            landing_url=environ.get("LANDING_URL") or str(data_dir / "landing"),
            api_host=environ.get("API_HOST") or "127.0.0.1",
            api_port=_port(environ, "API_PORT", 8000),
            dagster_port=_port(environ, "DAGSTER_PORT", 3000),
            admin_token=environ.get("ADMIN_TOKEN", ""),
            quarantine_share_max=_share(environ, "QUARANTINE_SHARE_MAX", 0.05),
            kafka_brokers=_brokers(environ, "KAFKA_BROKERS"),
            kafka_topic=_kafka_name(environ, "KAFKA_TOPIC", "app_events"),
            kafka_group=_kafka_name(environ, "KAFKA_GROUP", "mobile_analytics"),
            kafka_lag_max=_number(environ, "KAFKA_LAG_MAX", 100_000),
            kafka_security_protocol=_one_of(environ, "KAFKA_SECURITY_PROTOCOL", KAFKA_PROTOCOLS),
            kafka_sasl_mechanism=_one_of(environ, "KAFKA_SASL_MECHANISM", KAFKA_MECHANISMS),
            kafka_sasl_username=environ.get("KAFKA_SASL_USERNAME", ""),
            kafka_sasl_password=environ.get("KAFKA_SASL_PASSWORD", ""),
            query_limits=_query_limits(environ),
        )

    @property
    def api_database(self) -> str:
        """The database that holds the endpoint views, and nothing else."""
        return f"{self.database}_api"

    @property
    def answers_user(self) -> str:
        """The database user for SQL over an endpoint's answer, which may read nothing at all."""
        return f"{self.sql_user}_answers"


def _port(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name) or str(default)
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise SettingsError(f"{name} is {text!r}; it takes a port number from 1 to 65535.")
    return int(text)


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name) or str(default)
    if not (text.isdecimal() and text.isascii()):
        raise SettingsError(f"{name} is {text!r}; it takes a whole number, such as {default}.")
    return int(text)


def _query_limits(environ: Mapping[str, str]) -> dict[str, int]:
    limits = {}
    for name, default in QUERY_LIMITS.items():
        variable = f"SERVE_{name.upper()}"
        text = environ.get(variable) or str(default)
        if not (text.isdecimal() and text.isascii()) or (int(text) == 0 and default):
            raise SettingsError(f"{variable} is {text!r}; it takes a whole number greater than 0.")
        if int(text):
            limits[name] = int(text)
    return limits


def _boolean(environ: Mapping[str, str], name: str) -> bool:
    text = environ.get(name, "").strip().lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("", "0", "false", "no", "off"):
        return False
    raise SettingsError(f"{name} is {text!r}; it takes true or false.")


def _share(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name) or str(default)
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise SettingsError(f"{name} is {text!r}; it takes a number from 0 to 1, such as {default}.")
    return share


def _identifier(environ: Mapping[str, str], name: str, default: str) -> str:
    text = environ.get(name) or default
    if not (text.isascii() and text.isidentifier()):
        raise SettingsError(f"{name} is {text!r}; it takes letters, digits and underscores, not starting with a digit.")
    return text


def _brokers(environ: Mapping[str, str], name: str) -> str:
    text = environ.get(name, "").replace(" ", "")
    for broker in text.split(",") if text else []:
        host, _, port = broker.rpartition(":")
        if not re.fullmatch(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]", host) or not port.isdecimal():
            raise SettingsError(f"{name} holds {broker!r}; it takes host:port, several of them with commas.")
    return text


def _kafka_name(environ: Mapping[str, str], name: str, default: str) -> str:
    text = environ.get(name) or default
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", text):
        raise SettingsError(f"{name} is {text!r}; it takes letters, digits, dots, underscores and hyphens.")
    return text


def _one_of(environ: Mapping[str, str], name: str, known: Sequence[str]) -> str:
    text = environ.get(name, "").upper()
    if text and text not in known:
        raise SettingsError(f"{name} is {text!r}; it takes {', '.join(known)}.")
    return text
