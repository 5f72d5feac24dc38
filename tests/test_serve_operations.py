"""What those who run the API see: its log, its metrics, its failures, its memory."""

from __future__ import annotations

import gzip
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from clickhouse_connect.driver.client import Client
from conftest import EmbeddedServer, environment, free_port
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from test_serve_server import BEARER, TOKEN, Api
from werkzeug.test import TestResponse

from serve.app import create_app
from serve.openapi import ROUTES
from warehouse.connection import admin_token
from warehouse.landing import spool
from warehouse.settings import Settings

EVENTS = "/v0/events?name=app_events"


@pytest.fixture(scope="module")
def views(settings: Settings, client: Client) -> Iterator[None]:
    made = {
        "operated": "select number, {x:Nullable(String)} as x from numbers(1000)",
        "sluggish": "select sleepEachRow(0.5) as slept, {x:Nullable(String)} as x from numbers(100) "
        "settings max_block_size = 1",
        "broken": "select throwIf(number = 900, 'hidden') as failed, {x:Nullable(String)} as x from numbers(1000)",
        "million": "select number, repeat('x', 90) as text, {x:Nullable(String)} as x from numbers(1000000)",
    }
    for name, sql in made.items():
        client.command(f"create or replace view {settings.api_database}.{name} as {sql}")
    yield
    for name in made:
        client.command(f"drop view {settings.api_database}.{name}")


@pytest.fixture(scope="module")
def bearer(settings: Settings) -> dict[str, str]:
    return {"Authorization": f"Bearer {admin_token(settings)}"}


@pytest.fixture(scope="module")
def api(views: None, server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("operations")
    api = Api({**server.environ, "API_PORT": environment(folder)["API_PORT"]}, folder / "api.log")
    api.start()
    yield api
    api.stop()


def event(event_id: str) -> bytes:
    return json.dumps({"event_id": event_id, "event_type": "t", "event_time": "2025-05-11 22:01:58"}).encode()


def lines_of(api: Api, request_id: str, count: int = 1) -> list[dict[str, Any]]:
    """The log's lines about a request, waited for: they are written after its answer."""
    deadline = time.monotonic() + 10
    while True:
        lines = [json.loads(line) for line in api.log.read_text().splitlines()]  # every one is JSON
        found = [line for line in lines if line.get("request_id") == request_id]
        if len(found) >= count:
            return found
        assert time.monotonic() < deadline, lines
        time.sleep(0.05)


def test_each_request_is_one_line_of_the_log(api: Api) -> None:
    headers = {**BEARER, "X-Request-Id": "log.query"}
    api.request("GET", "/v0/pipes/operated.json?x=1&token=hidden", headers=headers)
    [line] = lines_of(api, "log.query")
    assert line.pop("duration_ms") > 0
    assert line.pop("timestamp").endswith("+00:00")
    assert line.pop("bytes_read") > 0
    assert line == {
        "level": "INFO",
        "logger": "serve",
        "message": "request",
        "request_id": "log.query",
        "method": "GET",
        "path": "/v0/pipes/operated.json",
        "status": 200,
        "endpoint": "operated",
        "query_id": "log.query",
        "rows_read": 1000,
    }
    _, _, answer = api.request("POST", EVENTS, event("logged"), {**BEARER, "X-Request-Id": "log.event"})
    [line] = lines_of(api, "log.event")
    assert (line["endpoint"], line["query_id"]) == ("receive_events", "log.event")
    assert line["import_id"] == json.loads(answer)["import_id"]


def test_a_fault_of_our_own_is_whole_in_the_log_and_nowhere_else(api: Api) -> None:
    headers = {**BEARER, "X-Request-Id": "log.fault"}
    status, answer_headers, answer = api.request("GET", "/v0/pipes/broken.json", headers=headers)
    assert (status, answer_headers["X-DB-Exception-Code"]) == (500, "395")
    assert b"log.fault" in answer
    assert b"hidden" not in answer
    fault, request = lines_of(api, "log.fault", 2)
    assert fault["level"] == "ERROR"
    assert "Traceback" in fault["exc_info"]
    assert "hidden" in fault["exc_info"]
    assert (request["status"], request["db_exception_code"]) == (500, 395)


def test_the_servers_own_lines_are_json_as_well(api: Api) -> None:
    lines = [json.loads(line) for line in api.log.read_text().splitlines()]
    assert {"_granian", "serve"} <= {line["logger"].split(".")[0] for line in lines}
    assert TOKEN not in api.log.read_text()


def peak_memory(api: Api, work: Callable[[], None]) -> int:
    """Bytes by which the worker's peak lies above what it held before the work."""
    [worker] = Path(f"/proc/{api.process.pid}/task/{api.process.pid}/children").read_text().split()

    def status(name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{worker}/status").read_text())
        assert found
        return int(found[1]) * 1024

    Path(f"/proc/{worker}/clear_refs").write_text("5")  # the peak is counted from here on
    before = status("VmRSS")
    work()
    return status("VmHWM") - before


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_million_rows_need_no_memory(api: Api, encoding: str) -> None:
    headers = {**BEARER, "Accept-Encoding": encoding}

    def ask() -> None:
        status, _, answer = api.request("GET", "/v0/pipes/million.csv", headers=headers)
        content = gzip.decompress(answer) if encoding == "gzip" else answer
        assert status == 200
        assert content.count(b"\n") == 1_000_001
        assert len(content) > 100_000_000

    ask()  # whatever a first request loads
    assert peak_memory(api, ask) < 30_000_000


def figures(response: TestResponse) -> dict[tuple[str, ...], float]:
    """Name and label values → value."""
    assert response.status_code == 200, response.text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_metrics_count_what_happened(views: None, settings: Settings, bearer: dict[str, str], tmp_path: Path) -> None:
    settings = replace(settings, landing_url=str(tmp_path))
    web = create_app(settings).test_client()
    nothing_yet = figures(web.get("/metrics", headers=bearer))
    assert nothing_yet[("api_spooled_batches",)] == 0
    for _ in range(3):
        web.get("/v0/pipes/operated.json", headers=bearer)
    web.get("/v0/pipes/operated.json?token=x", headers=bearer)
    web.get("/v0/pipes/operated.xml", headers=bearer)
    web.get("/v0/pipes/nowhere.json", headers=bearer)
    web.get("/nowhere")
    web.open("/health", method="BREW")
    web.post(EVENTS, data=event("counted") + b"\n" + event("counted too") + b"\nno event", headers=bearer)
    spool(settings, "waiting", event("waiting"), ".ndjson")
    found = figures(web.get("/metrics", headers=bearer))
    assert found[("api_requests_total", "operated", "GET", "200")] == 4
    assert found[("api_request_duration_seconds_count", "operated")] == 4
    assert found[("api_query_rows_read_total", "operated")] == 4000
    assert found[("api_query_bytes_read_total", "operated")] > 0
    assert found[("api_requests_total", "call_endpoint", "GET", "404")] == 2
    assert found[("api_requests_total", "none", "GET", "404")] == 1
    assert found[("api_requests_total", "none", "other", "405")] == 1
    assert found[("api_events_total", "accepted")] == 2
    assert found[("api_events_total", "quarantined")] == 1
    assert found[("api_spooled_batches",)] == 1
    assert found[("api_build_info", ROUTES["info"]["version"])] == 1


def test_metrics_are_for_the_admin(settings: Settings) -> None:
    web = create_app(settings).test_client()
    assert web.get("/metrics").status_code == 401
    assert web.get("/metrics?token=wrong").status_code == 403


def test_metrics_are_there_when_the_landing_folder_is_not(
    settings: Settings, bearer: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    web = create_app(replace(settings, landing_url=str(tmp_path / "file"))).test_client()
    waiting = figures(web.get("/metrics", headers=bearer))[("api_spooled_batches",)]
    assert waiting != waiting  # NaN


def test_spooled_events_are_counted_apart(settings: Settings, bearer: dict[str, str], tmp_path: Path) -> None:
    away = replace(settings, clickhouse_port=free_port(), landing_url=str(tmp_path))
    web = create_app(away).test_client()
    assert web.post(EVENTS, data=event("spooled"), headers=bearer).status_code == 202
    found = figures(web.get("/metrics", headers=bearer))
    assert found[("api_events_total", "spooled")] == 1
    assert found[("api_spooled_batches",)] == 1


def test_every_failure_has_the_one_shape_and_is_documented(
    views: None, settings: Settings, bearer: dict[str, str]
) -> None:
    web = create_app(settings, {"MAX_EXECUTION_TIME": 1, "MAX_BODY_BYTES": 1000}).test_client()
    away = create_app(replace(settings, clickhouse_port=free_port())).test_client()
    claims = {"exp": 4102444800, "name": "one", "limits": {"rps": 1}}
    claims["scopes"] = [{"type": "PIPES:READ", "resource": "operated"}]
    limited = {"Authorization": f"Bearer {jwt.encode(claims, admin_token(settings), 'HS256')}"}
    pipe = "/v0/pipes/operated.json"

    def over_the_limit() -> TestResponse:
        while True:  # the first of a second is answered
            response = web.get(pipe, headers=limited)
            if response.status_code != 200:
                return response

    asked: list[tuple[int, Callable[[], TestResponse]]] = [
        (400, lambda: web.get(f"{pipe}?x=1&x=2", headers=bearer)),
        (401, lambda: web.get(pipe)),
        (403, lambda: web.get(f"{pipe}?token=wrong")),
        (404, lambda: web.get("/v0/pipes/operated.xml", headers=bearer)),
        (405, lambda: web.put("/v0/events", headers=bearer)),
        (408, lambda: web.get("/v0/pipes/sluggish.json", headers=bearer)),
        (413, lambda: web.post(EVENTS, data=b" " * 1001, headers=bearer)),
        (413, lambda: web.post(pipe, data={"x": "y" * 2000}, headers=bearer)),
        (415, lambda: web.post(EVENTS, data=b"{}", headers={**bearer, "Content-Encoding": "compress"})),
        (415, lambda: web.post(pipe, data=b"x=1", content_type="text/plain", headers=bearer)),
        (429, over_the_limit),
        (500, lambda: web.get("/v0/pipes/broken.json", headers=bearer)),
        (503, lambda: away.get(pipe, headers=bearer)),
        (503, lambda: away.get("/health")),
    ]
    assert {status for status, _ in asked} == {400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 503}
    told = ROUTES["info"]["description"]
    for status, ask in asked:
        response = ask()
        assert response.status_code == status, response.text
        assert response.json
        assert (
            {"error", "code", "documentation"} <= set(response.json) <= {"error", "code", "documentation", "parameter"}
        )
        assert re.fullmatch(r"[^\n]+[.]", response.json["error"])
        assert f"`{response.json['code']}`" in told
        assert web.get(response.json["documentation"].removeprefix("http://localhost")).status_code == 200
        if status in (429, 503):
            assert int(response.headers["Retry-After"]) >= 1
        if status == 405:
            assert set(response.headers["Allow"].split(", ")) == {"POST", "OPTIONS"}


def test_each_code_that_the_source_gives_is_told(settings: Settings) -> None:
    told = ROUTES["info"]["description"]
    source = "".join(path.read_text() for path in Path(create_app.__code__.co_filename).parent.glob("*.py"))
    given = set(re.findall(r'(?:ApiError\(\s*|: \()(?:\d{3}, )?"([a-z]+_[a-z_]+)"', source))
    assert len(given) > 15
    assert {code for code in given if f"`{code}`" not in told} == set()


def options(web: FlaskClient) -> Iterator[tuple[str, set[str]]]:
    for rule in web.application.url_map.iter_rules():
        yield re.sub(r"<(?:\w+:)?\w+>", "x", rule.rule), set(rule.methods or ())


def test_every_route_answers_options_and_names_its_methods_when_refusing(settings: Settings) -> None:
    web = create_app(settings).test_client()
    for address, methods in options(web):
        preflight = web.options(address, headers={"Origin": "https://app.example"})
        assert preflight.status_code == 200, address
        assert preflight.headers["Access-Control-Allow-Origin"] == "*"
        assert methods <= set(preflight.headers["Access-Control-Allow-Methods"].split(", "))
        if "GET" in methods:
            assert "HEAD" in methods
        refused = web.open(address, method="BREW")
        assert refused.status_code == 405, address
        assert methods <= set(refused.headers["Allow"].split(", "))
