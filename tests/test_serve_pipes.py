"""A view of the API's database is an endpoint: its parameters, its formats, its errors."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import brotli
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from clickhouse_connect.driver.client import Client
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.test import TestResponse

from serve.app import create_app
from warehouse.connection import admin_token
from warehouse.settings import Settings

COMMENT = {
    "description": "What was given, given back",
    "parameters": {
        "text": {"description": "Any text", "example": "home"},
        "start_date": {"description": "First second", "example": "2023-01-01"},
    },
    "columns": {"text": {"type": "Nullable(String)", "description": "As given"}},
}


@pytest.fixture(scope="module")
def views(settings: Settings, client: Client) -> Iterator[str]:
    """The API's database with views made for these tests."""
    api = settings.api_database
    made = {
        "echo": "select {text:Nullable(String)} as text, {start_date:Nullable(DateTime('UTC'))} as start_date",
        "listed": "select {names:Array(String)} as names, {numbers:Array(UInt64)} as numbers, "
        "{times:Array(DateTime('UTC'))} as times",
        "typed": "select {n:UInt64} as n, {at:Nullable(DateTime64(3, 'UTC'))} as at, {b:Nullable(Bool)} as b, "
        "{d:Nullable(Date)} as d, {m:Nullable(Decimal(10, 2))} as m, {e:Nullable(Enum8('a' = 1, 'b' = 2))} as e",
        "plain": "select 1 as one",
        "measured": "select 'events_total' as name, 2 as value, map('type', 'a\"b') as labels",
        "many": "select number, toString(number) as text from numbers(assumeNotNull({rows:UInt64}))",
        "slow": "select sleepEachRow(0.5) as slept, {x:Nullable(String)} as x from numbers(100) "
        "settings max_block_size = 1",
        "failing": "select throwIf(number = 2900000, 'secret') as failed, {x:Nullable(String)} as x "
        "from numbers(3000000)",
    }
    for name, sql in made.items():
        comment = json.dumps(COMMENT).replace("'", "\\'") if name == "echo" else ""
        client.command(f"create or replace view {api}.{name} as {sql} comment '{comment}'")
    yield api
    for name in made:
        client.command(f"drop view {api}.{name}")


@pytest.fixture(scope="module")
def web(settings: Settings, views: str) -> FlaskClient:
    return create_app(settings, {"MAX_EXECUTION_TIME": 2}).test_client()


@pytest.fixture(scope="module")
def bearer(settings: Settings) -> dict[str, str]:
    return {"Authorization": f"Bearer {admin_token(settings)}"}


def row(response: TestResponse) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    assert response.json
    return response.json["data"][0]


def test_every_text_arrives_byte_for_byte(web: FlaskClient, bearer: dict[str, str], shared_data: Path) -> None:
    naughty = json.loads((shared_data / "naughty_strings" / "blns.json").read_text())
    controls = ["a\tb\nc\rd\0e\bf\\g'h`i\"j", "\\N", "\\", "x" * 9000 + "\\\n'", "{text:String}", "a,b", "\u2028é✓😀"]
    for text in [*naughty, *controls]:
        given = web.get("/v0/pipes/echo.json", query_string={"text": text}, headers=bearer)
        assert row(given)["text"] == (text or None)


def test_long_texts_may_come_as_form_or_json(web: FlaskClient, bearer: dict[str, str]) -> None:
    text = "é'\\\t\n" * 4000
    assert row(web.post("/v0/pipes/echo.json", data={"text": text}, headers=bearer))["text"] == text
    assert row(web.post("/v0/pipes/echo.json", json={"text": text, "start_date": None}, headers=bearer))["text"] == text


def test_lists(web: FlaskClient, bearer: dict[str, str]) -> None:
    query = [("names", "a'b"), ("names", "c\\,d\t"), ("numbers", "1,18446744073709551615"), ("times", "2023-01-01")]
    given = row(web.get("/v0/pipes/listed.json", query_string=query, headers=bearer))
    assert given == {
        "names": ["a'b", "c\\", "d\t"],
        "numbers": [1, 2**64 - 1],
        "times": ["2023-01-01 00:00:00"],
    }
    assert row(web.get("/v0/pipes/listed.json", headers=bearer))["names"] == []
    in_json = {"names": ["a,b", "c"], "numbers": [1, 2]}
    given = row(web.post("/v0/pipes/listed.json", json=in_json, headers=bearer))
    assert {name: given[name] for name in in_json} == in_json


def test_types(web: FlaskClient, bearer: dict[str, str]) -> None:
    query = {
        "n": str(2**64 - 1),
        "at": "2023-01-01T00:00:00.12Z",
        "b": "True",
        "d": "2023-01-31",
        "m": "1.50",
        "e": "b",
    }
    given = row(web.get("/v0/pipes/typed.json", query_string=query, headers=bearer))
    assert given == {
        "n": 2**64 - 1,
        "at": "2023-01-01 00:00:00.120",
        "b": True,
        "d": "2023-01-31",
        "m": 1.5,
        "e": "b",
    }
    assert row(web.post("/v0/pipes/typed.json", json={"n": 2**64 - 1, "b": False}, headers=bearer))["n"] == 2**64 - 1


@pytest.mark.parametrize(
    ("address", "status", "code", "parameter"),
    [
        ("echo.json?start_date=2023-02-30", 400, "parameter_invalid", "start_date"),
        ("echo.json?start_date=2023-01-01&start_date=2023-01-02", 400, "parameter_ambiguous", "start_date"),
        ("typed.json", 400, "parameter_required", "n"),
        ("typed.json?n=", 400, "parameter_required", "n"),
        ("typed.json?n=1&e=c", 400, "parameter_invalid", "e"),
        ("echo.xml", 404, "format_unknown", None),
        ("nowhere.json", 404, "endpoint_unknown", None),
        ("nowhere", 404, "endpoint_unknown", None),
        ("echo`; drop.json", 404, "endpoint_unknown", None),
        ("slow.json", 408, "query_timeout", None),
        ("failing.json", 500, "internal", None),
        ("plain.prometheus", 400, "format_unsuitable", None),
    ],
)
def test_refusals_have_one_shape(
    web: FlaskClient, bearer: dict[str, str], address: str, status: int, code: str, parameter: str | None
) -> None:
    response = web.get(f"/v0/pipes/{address}", headers=bearer)
    assert response.status_code == status, response.text
    assert response.json
    assert set(response.json) == {"error", "code", "documentation"} | ({"parameter"} if parameter else set())
    assert response.json["code"] == code
    assert response.json.get("parameter") == parameter
    for secret in ("select", "SELECT", "DB::", "127.0.0.1", "Traceback", "throwIf", "secret"):
        assert secret not in response.text


def test_unknown_names_say_what_there_is(web: FlaskClient, bearer: dict[str, str]) -> None:
    assert "echo" in web.get("/v0/pipes/nowhere.json", headers=bearer).text
    assert "parquet" in web.get("/v0/pipes/echo.xml", headers=bearer).text


def test_other_parameters_are_ignored(web: FlaskClient, bearer: dict[str, str]) -> None:
    extra = "from=ts-sdk&utm_source=DEV&cli_version=1&__tb__client=x&mode=y&max_execution_time=99&param_text=no"
    assert row(web.get(f"/v0/pipes/echo.json?{extra}&text=a", headers=bearer))["text"] == "a"


def test_bodies_that_cannot_be_read_are_refused(web: FlaskClient, bearer: dict[str, str]) -> None:
    bodies = [(b"text=a", "text/plain", 415), (b"[1]", "application/json", 400), (b"{", "application/json", 400)]
    for body, content_type, status in bodies:
        response = web.post("/v0/pipes/echo.json", data=body, content_type=content_type, headers=bearer)
        assert response.status_code == status
    cut_off = b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\na'
    for body in (cut_off, b"text"):
        response = web.post(
            "/v0/pipes/echo.json", data=body, content_type="multipart/form-data; boundary=b", headers=bearer
        )
        assert (response.status_code, (response.json or {})["code"]) == (400, "body_invalid")
    whole = cut_off + b"\r\n--b--\r\n"
    given = web.post("/v0/pipes/echo.json", data=whole, content_type="multipart/form-data; boundary=b", headers=bearer)
    assert row(given)["text"] == "a"
    assert row(web.post("/v0/pipes/echo.json", json={"text": "a", "other": {"b": [1]}}, headers=bearer))["text"] == "a"
    for wrong in ({"a": 1}, ["a"], [["a"]]):
        assert web.post("/v0/pipes/echo.json", json={"text": wrong}, headers=bearer).status_code == 400
    nested = web.post("/v0/pipes/echo.json", json={"text": {"a": 1}}, headers=bearer)
    assert nested.json
    assert (nested.status_code, nested.json["parameter"]) == (400, "text")
    both = web.post("/v0/pipes/echo.json?text=a", data={"text": "b"}, headers=bearer)
    assert both.status_code == 400


def test_formats(web: FlaskClient, bearer: dict[str, str]) -> None:
    def get(extension: str) -> TestResponse:
        response = web.get(f"/v0/pipes/many.{extension}?rows=3", headers=bearer)
        assert response.status_code == 200
        return response

    numbers = [0, 1, 2]
    answer = get("json").json
    assert answer
    assert {"meta", "data", "rows", "statistics"} <= set(answer)
    assert [it["number"] for it in answer["data"]] == numbers
    assert get("csv").text == '"number","text"\n0,"0"\n1,"1"\n2,"2"\n'
    assert [json.loads(line)["number"] for line in get("ndjson").text.splitlines()] == numbers
    assert pq.read_table(io.BytesIO(get("parquet").data))["number"].to_pylist() == numbers
    assert pa.ipc.open_stream(get("arrow").data).read_all()["number"].to_pylist() == numbers
    assert get("csvwithnames").data == get("csv").data


def test_prometheus_reads_an_endpoint_that_has_names_and_values(web: FlaskClient, bearer: dict[str, str]) -> None:
    response = web.get("/v0/pipes/measured.prometheus", headers=bearer)
    [metric] = text_string_to_metric_families(response.text)
    assert response.content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert [(it.name, it.labels, it.value) for it in metric.samples] == [("events_total", {"type": 'a"b'}, 2.0)]


def test_an_answer_is_sent_again_only_when_its_rows_changed(
    web: FlaskClient, bearer: dict[str, str], client: Client, views: str
) -> None:
    client.command(f"create table {views}.changing (n UInt8) engine = Memory")
    client.command(f"create view {views}.changed sql security definer as select sum(n) as n from {views}.changing")
    try:
        first = web.get("/v0/pipes/changed.json", headers=bearer)
        assert row(first) == {"n": 0}
        assert first.headers["Cache-Control"] == "private, no-cache"
        known = {**bearer, "If-None-Match": first.headers["ETag"]}
        for headers in (known, {**known, "Accept-Encoding": "gzip"}):
            again = web.get("/v0/pipes/changed.json", headers=headers)
            assert (again.status_code, again.data) == (304, b"")
            assert again.headers["ETag"] == first.headers["ETag"]
        client.command(f"insert into {views}.changing values (1)")
        assert row(web.get("/v0/pipes/changed.json", headers=known)) == {"n": 1}
        # The same rows in another format, or as another endpoint's, are another answer.
        assert web.get("/v0/pipes/changed.csv", headers=known).status_code == 200
    finally:
        client.command(f"drop view {views}.changed")
        client.command(f"drop table {views}.changing")


@pytest.mark.parametrize(
    ("encoding", "decompress"),
    [
        ("gzip", gzip.decompress),
        ("br", brotli.decompress),
        ("zstd", lambda body: zstandard.ZstdDecompressor().decompressobj().decompress(body)),
    ],
)
@pytest.mark.parametrize("rows", [1000, 700_000])  # in memory, on disk
def test_answers_are_compressed_when_asked(
    web: FlaskClient, bearer: dict[str, str], encoding: str, decompress: Any, rows: int
) -> None:
    address = f"/v0/pipes/many.csv?rows={rows}"
    plain = web.get(address, headers=bearer)
    assert "Content-Encoding" not in plain.headers
    assert "Accept-Encoding" in plain.headers["Vary"]
    packed = web.get(address, headers={**bearer, "Accept-Encoding": encoding})
    assert packed.headers["Content-Encoding"] == encoding
    assert decompress(packed.data) == plain.data
    assert len(packed.data) < len(plain.data) / 2


def test_small_and_already_compressed_answers_are_sent_as_they_are(web: FlaskClient, bearer: dict[str, str]) -> None:
    for address in ("plain.json", "many.parquet?rows=10000"):
        response = web.get(f"/v0/pipes/{address}", headers={**bearer, "Accept-Encoding": "gzip, br, zstd"})
        assert response.status_code == 200
        assert "Content-Encoding" not in response.headers


def test_one_request_id_may_be_used_by_several_requests_at_once(settings: Settings, bearer: dict[str, str]) -> None:
    app = create_app(settings)
    headers = {**bearer, "X-Request-Id": "at.once"}

    def ask(n: int) -> TestResponse:
        if n % 2:
            return app.test_client().get("/v0/pipes/plain.json", headers=headers)
        event = {"event_id": f"at-once-{n}", "event_type": "t", "event_time": "2025-01-01 00:00:00"}
        return app.test_client().post("/v0/events?name=app_events", data=json.dumps(event), headers=headers)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(48)))
    # 202 would be a batch that was spooled for want of an id.
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["X-Request-Id"] for answer in answers} == {"at.once"}


def test_a_large_answer_is_whole(web: FlaskClient, bearer: dict[str, str]) -> None:
    lines = web.get("/v0/pipes/many.ndjson?rows=300000", headers=bearer).data.splitlines()
    assert len(lines) == 300_000
    assert json.loads(lines[-1])["number"] == 299_999


def test_a_view_is_an_endpoint_at_once_and_as_it_is_now(
    web: FlaskClient, bearer: dict[str, str], client: Client, views: str
) -> None:
    assert web.get("/v0/pipes/fresh.json", headers=bearer).status_code == 404
    client.command(f"create view {views}.fresh as select {{a:Nullable(String)}} as a")
    assert row(web.get("/v0/pipes/fresh.json?a=1", headers=bearer)) == {"a": "1"}
    client.command(f"create or replace view {views}.fresh as select {{a:UInt8}} as a, {{b:Nullable(String)}} as b")
    assert row(web.get("/v0/pipes/fresh.json?a=1&b=2", headers=bearer)) == {"a": 1, "b": "2"}
    client.command(f"create or replace view {views}.fresh as select {{a:Array(UInt8)}} as a")
    assert row(web.get("/v0/pipes/fresh.json?a=1", headers=bearer)) == {"a": [1]}
    client.command(f"drop view {views}.fresh")
    assert web.get("/v0/pipes/fresh.json?a=1", headers=bearer).status_code == 404


def test_the_list_tells_what_the_views_tell(web: FlaskClient, bearer: dict[str, str]) -> None:
    answer = web.get("/v0/pipes", headers=bearer).json
    assert answer
    pipes = {pipe["name"]: pipe for pipe in answer["pipes"]}
    assert {"echo", "listed", "typed", "plain"} <= set(pipes)
    assert pipes["echo"]["description"] == COMMENT["description"]
    assert [parameter["name"] for parameter in pipes["echo"]["parameters"]] == ["text", "start_date"]
    assert pipes["echo"]["columns"] == [{"name": "text", "type": "Nullable(String)", "description": "As given"}]
    assert {parameter["name"]: parameter["required"] for parameter in pipes["typed"]["parameters"]}["n"] is True
    assert web.get("/v0/pipes/echo", headers=bearer).json == pipes["echo"]
    assert row(web.get("/v0/pipes/plain.json", headers=bearer)) == {"one": 1}


def test_tokens(web: FlaskClient, settings: Settings) -> None:
    token = admin_token(settings)
    for address in ("/v0/pipes", "/v0/pipes/plain.json", "/v0/pipes/plain"):
        assert web.get(address).status_code == 401
        assert web.get(address, headers={"Authorization": "Bearer wrong"}).status_code == 403
        assert web.get(f"{address}?token=wr%C3%B6ng").status_code == 403
        assert web.get(f"{address}?token={token}").status_code == 200
    assert web.post("/v0/events?name=app_events", data=b"{}").status_code == 401
    assert web.get("/health").json == {"status": "ok"}


def test_a_token_never_reaches_the_log(web: FlaskClient, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    token = admin_token(settings)
    assert web.get(f"/v0/pipes/failing.json?token={token}").status_code == 500
    assert "throwIf" in caplog.text  # the failure itself is there, whole
    assert token not in caplog.text


def test_every_answer_carries_the_request_id(
    web: FlaskClient, bearer: dict[str, str], client: Client, views: str
) -> None:
    response = web.get("/v0/pipes/plain.json", headers={**bearer, "X-Request-Id": "my.request-1"})
    assert response.headers["X-Request-Id"] == "my.request-1"
    client.command("system flush logs")
    logged = client.query(
        "select count() from system.query_log where query_id = 'my.request-1' and type = 'QueryFinish'"
    )
    assert logged.result_rows == [(1,)]
    insane = web.get("/nowhere", headers={"X-Request-Id": "x" * 65})
    assert insane.headers["X-Request-Id"] != "x" * 65
    assert insane.headers["X-Request-Id"]


def test_methods(web: FlaskClient, bearer: dict[str, str]) -> None:
    head = web.head("/v0/pipes/plain.json", headers=bearer)
    assert (head.status_code, head.data) == (200, b"")
    wrong = web.delete("/v0/pipes/plain.json", headers=bearer)
    assert wrong.json
    assert (wrong.status_code, wrong.json["code"]) == (405, "method_not_allowed")
    assert "GET" in wrong.headers["Allow"]
    for address in ("/v0/events", "/v0/pipes/plain.json", "/v0/pipes", "/health"):
        preflight = web.options(address, headers={"Origin": "https://app.example"})
        assert preflight.status_code == 200
        assert preflight.headers["Access-Control-Allow-Origin"] == "*"
        for header in ("Authorization", "Content-Type", "Content-Encoding"):
            assert header in preflight.headers["Access-Control-Allow-Headers"]
        assert "Access-Control-Allow-Methods" in preflight.headers


def test_origins_can_be_restricted(settings: Settings) -> None:
    web = create_app(settings, {"CORS_ORIGINS": "https://a.example, https://b.example"}).test_client()
    allowed = web.options("/health", headers={"Origin": "https://b.example"})
    assert allowed.headers["Access-Control-Allow-Origin"] == "https://b.example"
    refused = web.options("/health", headers={"Origin": "https://c.example"})
    assert "Access-Control-Allow-Origin" not in refused.headers
    assert "Origin" in refused.headers["Vary"]
