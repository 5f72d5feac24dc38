"""Real parts for the tests: an embedded ClickHouse of their own, on a free port, with the schema applied."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from clickhouse_connect.driver.client import Client

from warehouse.connection import connect
from warehouse.schema import apply_schema
from warehouse.settings import PROJECT_DIR, Settings

if TYPE_CHECKING:
    from exactness import Warehouse

SHARED_DATA = PROJECT_DIR.parent / "shared" / "data"


def ports_of_this_process() -> Iterator[int]:
    """Below the ports that the system gives by itself; workers of one run have none in common, nor have most runs."""
    run, worker = os.environ.get("PYTEST_XDIST_TESTRUNUID"), os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    first = random.Random(run).randrange(10_000, 25_000) + 1000 * int(worker.removeprefix("gw"))  # noqa: S311 - no secret
    yield from range(first, first + 1000)


PORTS = ports_of_this_process()


def free_port() -> int:
    """A port that no other test is given, before or after: it can wait to be used, and be used again after a kill."""
    for port in PORTS:
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("every port of this process has been given")


def refusal(module: str, environ: dict[str, str]) -> str:
    """What a command of the project says when it does not start: one line, and a non-zero exit."""
    ended = subprocess.run(
        [sys.executable, "-m", module], env=environ, cwd=PROJECT_DIR, capture_output=True, text=True, timeout=20
    )
    assert ended.returncode != 0
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    return ended.stderr


class EmbeddedServer:
    """An embedded ClickHouse that a test can kill and start again on the same data."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.environ = environ
        self.settings = Settings.from_env(environ)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, timeout: float = 60) -> None:
        """Start it and wait until it answers; `timeout` in seconds."""
        self.process = subprocess.Popen([sys.executable, "-m", "warehouse.embedded"], env=self.environ, cwd=PROJECT_DIR)
        deadline = time.monotonic() + timeout
        while True:
            try:
                connect(self.settings).close()
                return
            except Exception:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        assert self.process
        self.process.send_signal(number)
        self.process.wait(60)


def environment(data_dir: Path) -> dict[str, str]:
    """The environment of a project of its own: its data under `data_dir`, every port free."""
    taken = ("CLICKHOUSE_", "DBT_", "LANDING_", "API_", "DAGSTER_", "KAFKA_", "ADMIN_TOKEN", "DATA_DIR")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(taken)}
    return inherited | {
        "DATA_DIR": str(data_dir),
        "CLICKHOUSE_PORT": str(free_port()),
        "API_PORT": str(free_port()),
        "DAGSTER_PORT": str(free_port()),
        "DBT_TARGET_PATH": str(data_dir / "dbt" / "target"),
        "DBT_LOG_PATH": str(data_dir / "dbt" / "logs"),
        "DAGSTER_HOME": str(data_dir / "dagster"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


@contextmanager
def own_server(data_dir: Path) -> Iterator[EmbeddedServer]:
    """An embedded ClickHouse with the schema applied."""
    server = EmbeddedServer(environment(data_dir))
    server.start()
    try:
        apply_schema(server.settings)
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """The session's embedded ClickHouse; tests that kill a server start one of their own."""
    with own_server(tmp_path_factory.mktemp("warehouse")) as server:
        yield server


@pytest.fixture(scope="session")
def settings(server: EmbeddedServer) -> Settings:
    """Settings of the session's embedded ClickHouse."""
    return server.settings


@pytest.fixture(scope="session")
def client(settings: Settings) -> Client:
    """A client of the session's embedded ClickHouse with the project's own rights."""
    return connect(settings)


class Dbt:
    """The dbt command line, run in the repository with the environment of a server."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.environ = environ

    def __call__(self, *arguments: str, project: Path = PROJECT_DIR) -> str:
        """What dbt printed; an AssertionError with all of it when it fails."""
        own_target = {} if project == PROJECT_DIR else {"DBT_TARGET_PATH": str(project / "target")}
        done = subprocess.run(
            [Path(sys.executable).with_name("dbt"), "--no-use-colors", *arguments],
            env=self.environ | own_target,
            cwd=project,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def compiled(self, model: str) -> str:
        """The statement that the last run sent for a model, named by its path under ``models``."""
        return (Path(self.environ["DBT_TARGET_PATH"]) / "run/mobile_analytics/models" / model).read_text()


def copy_of_the_project(folder: Path) -> Path:
    """The dbt project in a folder of its own, for tests that edit it."""
    for name in ("dbt_project.yml", "profiles.yml", "models", "macros", "seeds", "tests/data"):
        source, target = PROJECT_DIR / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    return folder


@pytest.fixture(scope="session")
def dbt(server: EmbeddedServer) -> Dbt:
    """dbt on the session's embedded ClickHouse."""
    return Dbt(server.environ)


@pytest.fixture(scope="session")
def prepared(settings: Settings, dbt: Dbt) -> Warehouse:
    """The session's tables and endpoints with dbt's runs taken apart, for the tests of exactness."""
    from exactness import Warehouse

    return Warehouse.prepared(settings, dbt)


@pytest.fixture
def warehouse(prepared: Warehouse) -> Iterator[Warehouse]:
    """The same without a row."""
    prepared.empty()
    yield prepared
    prepared.empty()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real events and recorded requests that nobody of the project wrote."""
    if not SHARED_DATA.is_dir():
        pytest.fail(f"{SHARED_DATA} is not there: tests on real events cannot run without it.")
    return SHARED_DATA


def pytest_report_header() -> str:
    from chdb import __version__ as chdb_version

    return f"embedded ClickHouse: chdb-core {chdb_version}"
