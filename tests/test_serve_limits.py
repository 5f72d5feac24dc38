"""Limits that hold: slow, silent, greedy and broken clients keep nobody else out, and who is refused is told so."""

from __future__ import annotations

import gzip
import http.client
import json
import resource
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import zstandard
from clickhouse_connect.driver.client import Client
from conftest import EmbeddedServer, environment, refusal
from test_serve_server import BEARER, TOKEN, Api

from warehouse.tokens import open_tokens

EVENTS = "/v0/events?name=app_events"
EVENT = b'{"event_id": "limits", "event_type": "t", "event_time": "2024-01-01 00:00:00"}'
BODY_SECONDS = 2


@pytest.fixture(scope="module")
def api(server: EmbeddedServer, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    database = server.settings.api_database
    views = {
        "quick": "select 1 as one, {x:Nullable(String)} as x",
        "slow": "select sleep(1) as slept, {x:Nullable(String)} as x",
        "wide": "select randomString(1000) as text, {x:Nullable(String)} as x from numbers(10000)",
    }
    for name, sql in views.items():
        client.command(f"create or replace view {database}.{name} as {sql}")
    folder = tmp_path_factory.mktemp("api")
    environ = {**server.environ, "API_PORT": environment(folder)["API_PORT"]}
    environ |= {
        "SERVE_MAX_BODY_SECONDS": str(BODY_SECONDS),
        "SERVE_MAX_CONCURRENT_QUERIES": "3",
        "SERVE_MAX_WAITING": "40",
        "SERVE_MAX_EXECUTION_TIME": "3",
    }
    api = Api(environ, folder / "api.log")
    api.start()
    yield api
    api.stop()
    for name in views:
        client.command(f"drop view {database}.{name}")


def everybody_is_answered(api: Api) -> None:
    """Another client asks, sends events and looks after the server's health, each within its timeout."""
    assert api.request("GET", "/v0/pipes/quick.json", headers=BEARER)[0] == 200
    assert api.request("POST", EVENTS, EVENT, BEARER)[0] == 200
    assert api.request("GET", "/health")[0] == 200


def opened(api: Api, stack: ExitStack, number: int, said: bytes = b"") -> list[socket.socket]:
    """That many connections on which this was said and nothing else."""
    connections = []
    for _ in range(number):
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", api.port), timeout=30))
        connection.sendall(said)
        connections.append(connection)
    return connections


def head(path: str, *lines: str) -> bytes:
    return "\r\n".join([path, "Host: x", f"Authorization: Bearer {TOKEN}", *lines, "", ""]).encode()


def test_bodies_that_do_not_come_keep_nobody_out(api: Api) -> None:
    with ExitStack() as stack:
        begun = head(f"POST {EVENTS} HTTP/1.1", "Content-Length: 1000") + b"{"
        chunked = head(f"POST {EVENTS} HTTP/1.1", "Transfer-Encoding: chunked") + b"5\r\n{"
        asked = head("POST /v0/pipes/quick.json HTTP/1.1", "Content-Type: application/json", "Content-Length: 9")
        connections = [it for said in (begun, chunked, asked) for it in opened(api, stack, 60, said)]
        everybody_is_answered(api)
        for connection in connections:
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert (response.status, json.loads(response.read())["code"]) == (408, "body_timeout")


def test_a_body_that_drips_is_ended_and_one_that_flows_is_not(api: Api) -> None:
    with ExitStack() as stack:
        (drip,) = opened(api, stack, 1, head(f"POST {EVENTS} HTTP/1.1", "Content-Length: 1000"))
        (flow,) = opened(api, stack, 1, head(f"POST {EVENTS} HTTP/1.1", "Content-Length: 100000"))
        flowing = EVENT.ljust(100_000)
        # Twice as long as the drip is given, and faster than it.
        for number in range(20):
            time.sleep(2 * BODY_SECONDS / 20)
            flow.sendall(flowing[number * 5000 : (number + 1) * 5000])
            if number < 8:
                drip.sendall(b"x")
        for connection, status in ((drip, 408), (flow, 200)):
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert response.status == status


def test_silent_connections_keep_nobody_out(api: Api) -> None:
    number = 10_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = min(number, hard - 1000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with ExitStack() as stack:
            opened(api, stack, number // 2)
            opened(api, stack, number // 2, b"GET /health HTTP/1.1\r\nHost: x\r\nX-Half: ")
            everybody_is_answered(api)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_floods_of_headers_are_refused(api: Api) -> None:
    floods = [
        head("GET /health HTTP/1.1", *(f"X-{number}: y" for number in range(1000))),
        head("GET /health HTTP/1.1", "X-Long: " + "y" * 2_000_000),
        b"GET /" + b"a" * 2_000_000 + b" HTTP/1.1\r\n\r\n",
        head("GET /health HTTP/1.1", "Content-Length: -1"),
        head("POST /health HTTP/1.1", "Content-Length: 1", "Content-Length: 2") + b"xx",
        b"\x00" * 100_000,
    ]
    for flood in floods:
        with socket.create_connection(("127.0.0.1", api.port), timeout=30) as caller:
            try:
                caller.sendall(flood)
                answer = caller.recv(100)
            except ConnectionError:
                answer = b""
        assert not answer.startswith(b"HTTP/1.1 2"), answer
        assert not answer.startswith(b"HTTP/1.1 5"), answer
    everybody_is_answered(api)


def test_an_underscore_does_not_pass_for_a_hyphen(api: Api) -> None:
    answer = api.request("GET", "/health", headers={"X_Request_Id": "smuggled"})
    assert answer[1]["X-Request-Id"] != "smuggled"


def test_answers_that_are_not_read_keep_nobody_out(api: Api) -> None:
    with ExitStack() as stack:
        for _ in range(20):
            caller = stack.enter_context(socket.socket())
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            caller.connect(("127.0.0.1", api.port))
            caller.sendall(head("GET /v0/pipes/wide.csv HTTP/1.1"))
            assert caller.recv(12) == b"HTTP/1.1 200"
        everybody_is_answered(api)


def ask_at_once(api: Api, target: str, number: int) -> list[tuple[int, Any, Any]]:
    answers: list[tuple[int, Any, Any]] = []
    callers = [
        threading.Thread(target=lambda: answers.append(api.request("GET", target, headers=BEARER)))
        for _ in range(number)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(answers) == number
    return answers


def test_more_than_can_be_done_at_once_stand_in_line(api: Api) -> None:
    assert {status for status, _, _ in ask_at_once(api, "/v0/pipes/quick.json", 40)} == {200}


def test_who_stands_in_line_too_long_is_told_and_events_are_still_taken(api: Api) -> None:
    answers: list[tuple[int, Any, Any]] = []
    asking = threading.Thread(target=lambda: answers.extend(ask_at_once(api, "/v0/pipes/slow.json", 60)))
    asking.start()
    # Three at a time for one second each: a minute's work waits, and none of it is in the events' way.
    taken = 0
    while asking.is_alive():
        assert api.request("POST", EVENTS, EVENT, BEARER)[0] == 200
        assert api.request("GET", "/health")[0] == 200
        taken += 1
    asking.join()
    assert taken
    statuses = Counter(status for status, _, _ in answers)
    assert set(statuses) == {200, 503}
    assert statuses[200] >= 3
    for status, headers, content in answers:
        if status == 503:
            assert json.loads(content)["code"] == "overloaded"
            assert int(headers["Retry-After"]) > 0
            assert headers["X-Request-Id"]
    everybody_is_answered(api)


@pytest.mark.parametrize(
    ("encoding", "body", "code"),
    [
        ("gzip", gzip.compress(b" " * 50_000_000), "body_too_large"),
        ("gzip", gzip.compress(b" " * 900_000) * 200, "body_too_large"),
        ("gzip", gzip.compress(b"") * 40_000, "body_corrupt"),
        ("zstd", zstandard.compress(b" " * 50_000_000), "body_too_large"),
        ("zstd", zstandard.compress(b"") * 100_000, "body_corrupt"),
    ],
    ids=["gzip", "gzip members", "empty gzip members", "zstd", "empty zstd frames"],
)
def test_bombs_do_not_go_off(api: Api, encoding: str, body: bytes, code: str) -> None:
    status, _, content = api.request("POST", EVENTS, body, {**BEARER, "Content-Encoding": encoding})
    assert json.loads(content)["code"] == code
    assert status in (400, 413)
    # A bomb in a bomb is inflated once: its inside is no event.
    nested = gzip.compress(gzip.compress(b" " * 50_000_000))
    status, _, content = api.request("POST", EVENTS, nested, {**BEARER, "Content-Encoding": "gzip"})
    assert (status, json.loads(content)["successful_rows"]) == (200, 0)


def test_sigterm_lets_a_slow_upload_end(server: EmbeddedServer, tmp_path: Path) -> None:
    api = Api({**server.environ, "API_PORT": environment(tmp_path)["API_PORT"]}, tmp_path / "api.log")
    api.start()
    with ExitStack() as stack:
        said = head(f"POST {EVENTS} HTTP/1.1", f"Content-Length: {len(EVENT)}") + EVENT[:20]
        (caller,) = opened(api, stack, 1, said)
        # In the server's hands once a later request has been answered.
        everybody_is_answered(api)
        api.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        while True:  # until it takes no new connections
            try:
                socket.create_connection(("127.0.0.1", api.port), timeout=1).close()
            except OSError:
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        caller.sendall(EVENT[20:])
        response = http.client.HTTPResponse(caller)
        response.begin()
        assert response.status == 200
    assert api.process.wait(30) == 0


def test_several_workers_share_a_port_and_what_is_revoked(server: EmbeddedServer, tmp_path: Path) -> None:
    environ = {**server.environ, "API_PORT": environment(tmp_path)["API_PORT"], "SERVE_WORKERS": "2"}
    api = Api(environ, tmp_path / "api.log")
    api.start()
    tokens = open_tokens(server.settings)
    token = {"Authorization": f"Bearer {tokens.create('worker', ['DATASOURCES:APPEND:app_events'])}"}
    try:
        assert {api.request("POST", EVENTS, EVENT, token)[0] for _ in range(10)} == {200}
        tokens.revoke("worker")
        assert {api.request("POST", EVENTS, EVENT, token)[0] for _ in range(10)} == {403}
    finally:
        assert api.stop() == 0


@pytest.mark.parametrize(("variable", "value"), [("SERVE_WORKERS", "many"), ("SERVE_MAX_BODY_BYTES", "0")])
def test_a_limit_that_is_none_is_refused_by_name(
    server: EmbeddedServer, tmp_path: Path, variable: str, value: str
) -> None:
    said = refusal("serve", {**environment(tmp_path), variable: value})
    assert variable in said
    assert value in said
