"""The embedded ClickHouse server: ``python -m warehouse.embedded`` runs it until SIGTERM or SIGINT.

The engine in the wheel ``chdb-core`` is a whole ClickHouse. Its local-server entry opens the real HTTP interface when
it is told to (``SYSTEM START LISTEN``) and serves it for as long as the query that follows runs. The entry point is
private: ``tests/test_embedded.py`` fails loudly if it moves.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import signal
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from clickhouse_connect.driver.exceptions import ClickHouseError

from warehouse.connection import connect, serve_password, sql_password
from warehouse.deduplication import forget_lost_inserts
from warehouse.preflight import StartError, data_folder
from warehouse.processes import bound
from warehouse.schema import SQL_SETTINGS, serve_grants, sql_grants
from warehouse.settings import Settings, SettingsError

# The server answers clients only in this format: with another, clickhouse-connect cannot read its version.
FORMAT = "TabSeparated"
# Looks ten times a second whether it was killed.
ENDLESS_QUERY = (
    "SELECT sleepEachRow(0.1) FROM system.numbers "
    "SETTINGS max_block_size = 1, function_sleep_max_microseconds_per_block = 0 FORMAT Null"
)
# The settings of what no client's request sets: messages of Kafka may hold events of more than 100 months.
DEFAULT_SETTINGS = {"max_partitions_per_insert_block": "0"}
# The engine waits for inserts and merges when its query ends; a supervisor allows it 20 s.
STOP_SECONDS = 15


def write_configuration(settings: Settings, directory: Path) -> None:
    """Write ``clickhouse-local.xml`` and ``users.xml``: ports, users and their rights, logs."""
    write_xml(
        directory / "clickhouse-local.xml",
        "clickhouse",
        {
            "logger": {"level": "warning", "log": str(directory / "server.log"), "size": "10M", "count": "3"},
            "listen_host": "127.0.0.1",
            "http_port": str(settings.clickhouse_port),
            "users_config": "users.xml",
            "query_log": {
                "database": "system",
                "table": "query_log",
                "ttl": "event_date + interval 7 day",
                "flush_interval_milliseconds": "1000",
            },
            # Leaves room for the API, Dagster and dbt on the same machine.
            "max_server_memory_usage_to_ram_ratio": "0.6",
            # A delete or an update goes through a table part by part. Between them the engine waits up to a second, at
            # random, as is good for thousands of tables; a table of sixty months then takes ten seconds.
            "background_processing_pool_thread_sleep_seconds_if_nothing_to_do": "0.01",
            "background_processing_pool_task_sleep_seconds_when_no_work_random_part": "0",
            "timezone": "UTC",
            # How far a consumer is behind stands in its statistics; a group waits for a killed one for its session.
            "kafka": {"statistics_interval_ms": "3000", "session_timeout_ms": "10000"},
            # As a server's own configuration has it: rights on system tables are given, not there by default.
            "access_control_improvements": {
                "select_from_system_db_requires_grant": "true",
                "select_from_information_schema_requires_grant": "true",
            },
        },
    )
    write_xml(
        directory / "users.xml",
        "clickhouse",
        {
            "profiles": {
                "default": DEFAULT_SETTINGS,
                "sql": {name: str(value) for name, value in SQL_SETTINGS.items()},
                # A query of the API can ask for less of each, not for more, nor for 0, which is without end.
                "serve": {
                    "profile": "default",
                    **{name: str(value) for name, value in settings.query_limits.items()},
                    "constraints": {
                        name: {"min": "1", "max": str(value)} for name, value in settings.query_limits.items()
                    },
                },
            },
            "quotas": {"default": {}},
            "users": {
                settings.clickhouse_user: _user(settings.clickhouse_password),
                settings.serve_user: {**_user(serve_password(settings), serve_grants(settings)), "profile": "serve"},
                settings.sql_user: {**_user(sql_password(settings), sql_grants(settings)), "profile": "sql"},
                settings.answers_user: {**_user(sql_password(settings), []), "profile": "sql"},
            },
        },
    )


def run(settings: Settings) -> None:
    """Serve ClickHouse on ``127.0.0.1:CLICKHOUSE_PORT`` until SIGTERM or SIGINT, then let it finish its writes.

    Raises:
        StartError: the port is taken, another copy uses the data folder, or the engine ended by itself.
    """
    with data_folder(settings, "clickhouse.lock"):
        try:
            bound("127.0.0.1", settings.clickhouse_port).close()
        except OSError:
            raise StartError(
                f"Port {settings.clickhouse_port} on 127.0.0.1 is taken; set CLICKHOUSE_PORT to a free one."
            ) from None
        _serve(settings, settings.data_dir / "clickhouse")


def _serve(settings: Settings, directory: Path) -> None:
    write_configuration(settings, directory)
    if lost := forget_lost_inserts(directory / "store"):
        print(f"Killed while it wrote: {lost} inserts whose rows were not stored can be sent again.", flush=True)
    os.chdir(directory)  # the engine reads clickhouse-local.xml from its working directory
    engine = _load_engine()
    ended, stop = threading.Event(), threading.Event()
    failure: list[BaseException] = []

    def serve() -> None:
        try:
            engine.query(f"SYSTEM START LISTEN HTTP; {ENDLESS_QUERY}", FORMAT, path=str(directory / "store"))
        except BaseException as error:
            failure.append(error)
        ended.set()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=serve, daemon=True).start()
    stop.wait()
    if not ended.is_set():
        with suppress(ClickHouseError), closing(connect(settings)) as client:
            client.command("kill query where query = {query:String}", parameters={"query": ENDLESS_QUERY})
        ended.wait(STOP_SECONDS)
    elif failure:
        raise StartError(f"The embedded ClickHouse ended: {failure[0]}") from failure[0]


def _load_engine() -> Any:
    """The extension module of ``chdb-core``, 500 MB, without its package.

    Importing the package starts an engine and ends it again, and one that starts in the same process after that refuses
    Kafka tables ("Shutdown was called").
    """
    package = importlib.util.find_spec("chdb")
    if not package or not package.submodule_search_locations:
        raise StartError("The package chdb-core is not installed.")
    [path] = Path(package.submodule_search_locations[0]).glob("_chdb.*.so")
    spec = importlib.util.spec_from_file_location("_chdb", path)
    if not spec or not spec.loader:
        raise StartError(f"{path} is no extension module.")
    module = importlib.util.module_from_spec(spec)
    if deepbind := getattr(os, "RTLD_DEEPBIND", 0):  # its own allocator before any other, as its package has it
        sys.setdlopenflags(sys.getdlopenflags() | deepbind)
    spec.loader.exec_module(module)
    return module


def _user(password: str, grants: list[str] | None = None) -> dict:
    user = {"password_sha256_hex": _sha256(password), "networks": {"ip": "127.0.0.1"}}
    if grants is None:
        return user
    # Without a list of grants a user of this file may do everything.
    return {**user, "grants": {"query": ["REVOKE ALL ON *.*", *(f"GRANT {grant}" for grant in grants)]}}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_xml(path: Path, tag: str, content: dict) -> None:
    """Write nested elements, a list as one element for each item; only the owner may read the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    element = _element(tag, content)
    ElementTree.indent(element)
    path.touch(mode=0o600)
    ElementTree.ElementTree(element).write(path, encoding="utf-8")


def _element(tag: str, content: object) -> ElementTree.Element:
    element = ElementTree.Element(tag)
    if isinstance(content, dict):
        for name, value in content.items():
            element.extend(_element(name, item) for item in (value if isinstance(value, list) else [value]))
    else:
        element.text = str(content)
    return element


if __name__ == "__main__":
    try:
        run(Settings.from_env())
    except (StartError, SettingsError) as error:
        sys.exit(str(error))
