"""sqlmap against every parameter of every endpoint, and against a server that it must break."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode

import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from conftest import Dbt, EmbeddedServer
from flask import Flask, request
from werkzeug.serving import make_server

from serve.app import create_app
from warehouse.connection import admin_token
from warehouse.framing import frames
from warehouse.landing import land
from warehouse.sample import write_sample
from warehouse.settings import Settings

FOUND = "sqlmap identified the following injection point"
NOT_FOUND = "all tested parameters do not appear to be injectable"


@contextmanager
def served(app: Flask) -> Iterator[str]:
    """The address of an app behind a real server."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


def sqlmap(folder: Path, url: str, *options: str) -> str:
    """What sqlmap says of every parameter of an address."""
    command = [Path(sys.executable).with_name("sqlmap"), "-u", url, *options, "--batch", "--disable-coloring"]
    command += ["--dbms", "ClickHouse", "--threads", "4", "--output-dir", folder, "--flush-session"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def events(server: EmbeddedServer, client: Client, dbt: Dbt, tmp_path_factory: pytest.TempPathFactory) -> None:
    """So that parameters change what is answered."""
    path = tmp_path_factory.mktemp("sample") / "sample.ndjson"
    with path.open("wb") as file:
        write_sample(client, file, events=1000, days=30, until=datetime(2026, 11, 1, tzinfo=UTC), seed=1)
    land(client, server.settings, "injection", "http", frames([path.read_bytes()]))
    dbt("build", "--exclude-resource-type", "unit_test", "test")


@pytest.mark.usefixtures("events")
def test_sqlmap_finds_nothing_in_any_parameter(settings: Settings, tmp_path: Path) -> None:
    app = create_app(settings)
    bearer = f"Authorization: Bearer {admin_token(settings)}"
    endpoints = app.extensions["catalogue"].endpoints(max_age=0).values()
    assert len(endpoints) >= 5
    with served(app) as address, ThreadPoolExecutor(2) as pool:
        runs = []
        for endpoint in endpoints:
            values = {parameter.name: parameter.example for parameter in endpoint.parameters.values()}
            assert all(values.values()), f"{endpoint.name} has a parameter without an example"
            url = f"{address}/v0/pipes/{endpoint.name}.csv"
            runs.append((f"{endpoint.name}?{urlencode(values)}", f"{url}?{urlencode(values)}", ()))
            if endpoint.name == "events_by_type":
                runs.append((f"{endpoint.name}, form", url, ("--data", urlencode(values))))
                runs.append((f"{endpoint.name}, address", f"{address}/v0/pipes/events_by_type*.csv", ()))
        runs.append(
            ("events", f"{address}/v0/events?name=app_events", ("--data", '{"event_id": "e", "event_type": "t"}'))
        )
        tried = [
            (name, pool.submit(sqlmap, tmp_path / str(number), url, "-H", bearer, *options, "--ignore-code", "*"))
            for number, (name, url, options) in enumerate(runs)
        ]
        for name, result in tried:
            said = result.result()
            assert NOT_FOUND in said, f"{name}: {said}"
            assert FOUND not in said, f"{name}: {said}"
            assert "500 (Internal Server Error)" not in said, f"{name}: {said}"


@pytest.mark.usefixtures("events")
def test_sqlmap_finds_a_hole_where_there_is_one(settings: Settings, client: Client, tmp_path: Path) -> None:
    app = Flask("vulnerable")

    @app.get("/")
    def vulnerable() -> str:
        try:
            sql = f"select count() from {settings.database}.app_events where app_version = '{request.args['version']}'"
            return str(client.query(sql).result_rows)
        except ClickHouseError:
            return "refused"

    with served(app) as address:
        assert FOUND in sqlmap(tmp_path, f"{address}/?version=5.4.4")
