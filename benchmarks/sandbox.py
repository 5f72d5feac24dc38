"""A project of its own for a benchmark: an embedded ClickHouse and an API on free ports, data in a temporary folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from clickhouse_connect.driver.client import Client

from warehouse.connection import connect
from warehouse.embedded import write_xml
from warehouse.processes import Part, free_port, http_answers
from warehouse.schema import apply_schema
from warehouse.settings import PROJECT_DIR, Settings

START_SECONDS = 60


@contextmanager
def sandbox(
    *, api: bool = False, configuration: Callable[[Settings], dict[str, object]] | None = None
) -> Iterator[tuple[Settings, Client]]:
    """Settings and a client of a fresh warehouse with its models built; the API too where asked for.

    Args:
        configuration: gives what the embedded server's configuration shall hold besides the project's own.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        environ = os.environ | {
            "DATA_DIR": folder,
            "CLICKHOUSE_PORT": str(free_port()),
            "API_PORT": str(free_port()),
            "DBT_TARGET_PATH": f"{folder}/dbt",
            "DBT_LOG_PATH": f"{folder}/dbt",
        }
        environ.pop("CLICKHOUSE_HOST", None)
        settings = Settings.from_env(environ)
        if configuration:
            write_xml(
                settings.data_dir / "clickhouse" / "clickhouse-local.d" / "benchmark.xml",
                "clickhouse",
                configuration(settings),
            )
        parts = [_start("clickhouse", "warehouse.embedded", settings.clickhouse_port, "ping", environ)]
        try:
            apply_schema(settings)
            os.environ.update(environ)
            dbt("build", "--exclude-resource-type", "unit_test")
            if api:
                parts.append(_start("api", "serve", settings.api_port, "health", environ))
            yield settings, connect(settings, send_receive_timeout=3600)
        finally:
            for part in reversed(parts):
                part.process.terminate() if part.process else None
                part.process.wait(60) if part.process else None


def dbt(*arguments: str) -> float:
    """Run dbt and return its wall time in seconds, start-up included."""
    began = time.perf_counter()
    subprocess.run(
        [Path(sys.executable).parent / "dbt", "--quiet", *arguments], cwd=PROJECT_DIR, check=True, env=os.environ
    )
    return time.perf_counter() - began


def start(name: str, command: list[str], url: str, folder: Path, environ: Mapping[str, str]) -> Part:
    """Start a server with its log in `folder` and wait until `url` answers.

    Raises:
        RuntimeError: it ended, or does not answer in time.
    """
    part = Part(name, command, folder / f"{name}.log", lambda: http_answers(url))
    part.start(dict(environ))
    deadline = time.monotonic() + START_SECONDS
    while not part.answers():
        if not part.runs() or time.monotonic() > deadline:
            raise RuntimeError(part.failure())
        time.sleep(0.1)
    return part


def _start(name: str, module: str, port: int, path: str, environ: Mapping[str, str]) -> Part:
    url = f"http://127.0.0.1:{port}/{path}"
    return start(name, [sys.executable, "-m", module], url, Path(environ["DATA_DIR"]), environ)
