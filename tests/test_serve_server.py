"""The server as it runs: its start and end, bodies and answers that break."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from conftest import EmbeddedServer, environment

from warehouse.connection import connect
from warehouse.schema import apply_schema
from warehouse.settings import PROJECT_DIR

RECORDED_TOKEN = "p.TESTTOKEN"  # noqa: S105 - of the recorded requests
TOKEN = RECORDED_TOKEN.ljust(32, "x")  # long enough to sign JWTs with
LIMIT = 1_000_000
BEARER = {"Authorization": f"Bearer {TOKEN}"}


class Api:
    """``python -m serve`` in a process of its own."""

    def __init__(self, environ: dict[str, str], log: Path) -> None:
        self.environ = {**environ, "ADMIN_TOKEN": TOKEN, "SERVE_MAX_BODY_BYTES": str(LIMIT)}
        self.port = int(environ["API_PORT"])
        self.log = log

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "serve"], env=self.environ, cwd=PROJECT_DIR, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                self.request("GET", "/health")
                return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.05)

    def request(self, method: str, target: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        """Status, headers and body of the answer; a body that is an iterator is sent in HTTP chunks."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, target, body, headers or {})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def api(server: EmbeddedServer, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    database = server.settings.api_database
    client.command(
        f"create or replace view {database}.events_by_type sql security definer as "
        f"select event_type, count() as event_count from {server.settings.database}.app_events "
        "where event_time >= ifNull({start_date:Nullable(DateTime('UTC'))}, toDateTime(0, 'UTC')) "
        "and event_time <= ifNull({end_date:Nullable(DateTime('UTC'))}, toDateTime(4294967295, 'UTC')) "
        "and ({app_version:Nullable(String)} is null or app_version = {app_version:Nullable(String)}) "
        "group by event_type order by event_count desc, event_type"
    )
    client.command(f"create or replace view {database}.sleepy as select sleep(2) as slept, {{x:Nullable(String)}} as x")
    api = Api(server.environ, tmp_path_factory.mktemp("api") / "api.log")
    api.start()
    yield api
    api.stop()
    for view in ("events_by_type", "sleepy"):
        client.command(f"drop view {database}.{view}")


def test_a_chunked_body_is_whole(api: Api) -> None:
    events = [
        json.dumps({"event_id": f"chunked-{i}", "event_type": "t", "event_time": "2024-01-01 00:00:00"})
        for i in range(50)
    ]
    pieces = (event.encode() + b"\n" for event in events)
    status, _, answer = api.request("POST", "/v0/events?name=app_events", pieces, BEARER)
    assert (status, json.loads(answer)["successful_rows"]) == (200, 50)


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT, LIMIT + 1, LIMIT + 2, 2 * LIMIT])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_is_taken_whole_or_refused(api: Api, size: int, chunked: bool) -> None:
    event = json.dumps({"event_id": f"size-{size}", "event_type": "t", "event_time": "2024-01-01 00:00:00"}).encode()
    # The event at the very end: cut off, it would not be an event.
    body = event.rjust(size)
    sent = iter([body[:1000], body[1000:]]) if chunked else body
    try:
        status, _, answer = api.request("POST", "/v0/events?name=app_events", sent, BEARER)
    except ConnectionError:  # refused while it was still being sent
        status, answer = 413, b""
    if size <= LIMIT:
        assert (status, json.loads(answer)["successful_rows"]) == (200, 1)
    else:
        assert status == 413


def test_a_body_that_is_cut_off_lands_nothing(api: Api, client: Client, server: EmbeddedServer) -> None:
    event = b'{"event_id": "cut-off", "event_type": "t", "event_time": "2024-01-01 00:00:00"}\n'
    with socket.create_connection(("127.0.0.1", api.port)) as caller:
        head = f"POST /v0/events?name=app_events&token={TOKEN} HTTP/1.1\r\nHost: x\r\nX-Request-Id: cut-off\r\n"
        caller.sendall(head.encode() + b"Content-Length: 1000\r\n\r\n" + event)
        caller.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + 10
        while '"request_id": "cut-off"' not in api.log.read_text():
            assert time.monotonic() < deadline, api.log.read_text()
            time.sleep(0.05)
    found = client.query(f"select count() from {server.settings.database}.app_events where event_id = 'cut-off'")
    assert found.result_rows == [(0,)]


def test_head_sends_no_body(api: Api) -> None:
    status, headers, answer = api.request("HEAD", "/v0/pipes/events_by_type.json", headers=BEARER)
    assert (status, answer) == (200, b"")
    assert headers["Content-Type"] == "application/json"


def test_no_token_in_the_log(api: Api) -> None:
    for target in (f"/v0/pipes/events_by_type.json?token={TOKEN}", f"/v0/pipes/nowhere.json?token={TOKEN}"):
        api.request("GET", target)
    log = api.log.read_text()
    assert "/v0/pipes/nowhere.json" in log
    assert TOKEN not in log


def test_a_second_copy_on_the_port_does_not_start(api: Api) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "serve"], env=api.environ, cwd=PROJECT_DIR, capture_output=True, text=True, timeout=30
    )
    assert second.returncode == 1
    assert str(api.port) in second.stderr
    assert "Traceback" not in second.stderr


def test_sigterm_lets_requests_end(server: EmbeddedServer, api: Api, tmp_path: Path) -> None:
    environ = {**server.environ, "API_PORT": environment(tmp_path)["API_PORT"]}
    own = Api(environ, tmp_path / "api.log")
    own.start()
    answers: list[Any] = []
    caller = threading.Thread(
        target=lambda: answers.append(own.request("GET", "/v0/pipes/sleepy.json", headers=BEARER))
    )
    caller.start()
    time.sleep(0.7)
    assert own.stop() == 0
    caller.join()
    assert answers
    assert answers[0][0] == 200
    assert json.loads(answers[0][2])["rows"] == 1


def test_an_answer_that_breaks_does_not_look_whole(tmp_path: Path) -> None:
    """ClickHouse is killed while it answers, and an answer is cut off on its way to the caller."""
    # 400 MB are more than a busy machine makes in the usual time.
    server = EmbeddedServer({**environment(tmp_path), "SERVE_MAX_EXECUTION_TIME": "60"})
    server.start()
    api = Api(server.environ, tmp_path / "api.log")
    try:
        apply_schema(server.settings)
        rows = "select randomString(1000) as text, {x:Nullable(String)} as x from numbers(400000)"
        connect(server.settings).command(f"create view {server.settings.api_database}.large as {rows}")
        api.start()
        status, headers, answer = api.request("GET", "/v0/pipes/large.csv", headers=BEARER)
        assert status == 200
        assert int(headers["Content-Length"]) == len(answer) > 400_000_000

        answers: list[Any] = []
        caller = threading.Thread(
            target=lambda: answers.append(api.request("GET", "/v0/pipes/large.csv", headers=BEARER))
        )
        caller.start()
        time.sleep(0.5)
        server.stop(signal.SIGKILL)
        caller.join()
        # Cut off, reading it would have raised; the whole of it had arrived here, or the caller is told.
        status, _, answer = answers[0]
        assert status == 200 or (status, json.loads(answer)["code"]) == (503, "unavailable")
        assert api.request("GET", "/v0/pipes/large.csv", headers=BEARER)[0] == 503
    finally:
        api.stop()
        if server.process and server.process.poll() is None:
            server.stop()
