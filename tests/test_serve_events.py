"""Events over HTTP: what is acknowledged is kept, counted once, and told apart."""

from __future__ import annotations

import gzip
import json
import socket
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import brotli
import pytest
import zstandard
from clickhouse_connect.driver.client import Client
from conftest import EmbeddedServer, environment, free_port
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from serve.app import create_app
from warehouse.connection import admin_token, connect
from warehouse.framing import frames
from warehouse.landing import import_result, land
from warehouse.schema import apply_schema
from warehouse.settings import Settings

ADDRESS = "/v0/events?name=app_events"
LIMIT = 1_000_000


@pytest.fixture(scope="module")
def web(settings: Settings) -> FlaskClient:
    return create_app(settings, {"MAX_BODY_BYTES": LIMIT}).test_client()


@pytest.fixture(scope="module")
def bearer(settings: Settings) -> dict[str, str]:
    return {"Authorization": f"Bearer {admin_token(settings)}"}


def event(event_id: str, **columns: Any) -> bytes:
    return json.dumps(
        {"event_id": event_id, "event_type": "app_open", "event_time": "2025-05-11 22:01:58", **columns}
    ).encode()


def counts(response: TestResponse, status: int = 200) -> tuple[int, int]:
    assert response.status_code == status, response.text
    assert response.json
    return response.json["successful_rows"], response.json["quarantined_rows"]


def rows(client: Client, settings: Settings, event_id: str) -> int:
    return client.query(
        f"select count() from {settings.database}.app_events where event_id = {{id:String}}",
        parameters={"id": event_id},
    ).result_rows[0][0]


def test_the_tutorials_command(web: FlaskClient, bearer: dict[str, str], client: Client, settings: Settings) -> None:
    body = """{
        "event_id": "e123456789",
        "user_id": "u987654321",
        "event_type": "app_open",
        "event_time": "2023-04-15 08:30:45",
        "app_version": "1.2.3",
        "device_type": "smartphone",
        "os_version": "iOS 16.2",
        "country": "US",
        "properties": "{\\"key\\":\\"screen\\",\\"value\\":\\"home\\"}",
        "session_id": "sess_abc123"
    }"""
    for _ in range(3):
        response = web.post(
            f"{ADDRESS}&utm_source=DEV&utm_campaign=tb+create+--prompt+DEV",
            data=body,
            content_type="application/x-www-form-urlencoded",
            headers=bearer,
        )
        assert counts(response) == (1, 0)
        assert rows(client, settings, "e123456789") == 1


def test_rejects_are_told_and_kept(
    web: FlaskClient, bearer: dict[str, str], client: Client, settings: Settings
) -> None:
    body = b"\n\n".join([event("rejects-1"), b"{broken", event("rejects-2", event_time="2025-02-30 00:00:00")])
    response = web.post(ADDRESS, data=body, headers=bearer)
    assert counts(response) == (1, 2)
    assert response.json
    assert [reject["line"] for reject in response.json["quarantined"]] == [3, 5]
    assert response.json["quarantined"][1]["column"] == "event_time"
    quarantined = client.query(
        f"select line_number, raw from {settings.database}.app_events_quarantine "
        "where c__import_id = {id:String} order by line_number",
        parameters={"id": response.json["import_id"]},
    )
    assert quarantined.result_rows[0] == (3, "{broken")


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [
        ("gzip", gzip.compress),
        ("gzip", lambda body: gzip.compress(body[:9]) + gzip.compress(body[9:])),
        ("zstd", zstandard.compress),
        ("zstd", lambda body: zstandard.compress(body[:9]) + zstandard.compress(body[9:])),
        ("deflate", zlib.compress),
        ("deflate", lambda body: zlib.compress(body)[2:-4]),
        ("br", brotli.compress),
        ("identity", bytes),
    ],
)
def test_compressed_bodies_are_the_same_import(
    web: FlaskClient, bearer: dict[str, str], client: Client, settings: Settings, encoding: str, compress: Any
) -> None:
    body = event("compressed")
    response = web.post(ADDRESS, data=compress(body), headers={**bearer, "Content-Encoding": encoding})
    assert counts(response) == (1, 0)
    assert rows(client, settings, "compressed") == 1


def test_bodies_that_are_not_what_they_say(web: FlaskClient, bearer: dict[str, str]) -> None:
    whole = event("x" * 1000)
    for encoding, body, status in [
        ("compress", whole, 415),
        ("gzip, zstd", whole, 415),
        ("br", whole, 400),
        ("br", brotli.compress(whole)[:-3], 400),
        ("br", b"", 400),
        ("gzip", whole, 400),
        ("gzip", gzip.compress(whole)[:-9], 400),
        ("zstd", whole, 400),
        ("zstd", zstandard.compress(whole)[:-3], 400),
        ("deflate", whole, 400),
    ]:
        response = web.post(ADDRESS, data=body, headers={**bearer, "Content-Encoding": encoding})
        assert response.status_code == status, (encoding, response.text)


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [("gzip", gzip.compress), ("zstd", zstandard.compress), ("br", lambda body: brotli.compress(body, quality=5))],
)
def test_a_bomb_is_refused_without_being_inflated(
    web: FlaskClient, bearer: dict[str, str], encoding: str, compress: Any
) -> None:
    bomb = compress(b" " * 200_000_000)
    assert len(bomb) < LIMIT
    started_at = time.monotonic()
    response = web.post(ADDRESS, data=bomb, headers={**bearer, "Content-Encoding": encoding})
    assert response.status_code == 413
    assert time.monotonic() - started_at < 1


def test_too_large_keeps_nothing(web: FlaskClient, bearer: dict[str, str], client: Client, settings: Settings) -> None:
    body = event("too-large") + b"\n" + event("too-large-2", user_id="u" * LIMIT)
    response = web.post(ADDRESS, data=body, headers=bearer)
    assert response.json
    assert (response.status_code, response.json["code"]) == (413, "body_too_large")
    assert rows(client, settings, "too-large") == 0


def test_names(web: FlaskClient, bearer: dict[str, str]) -> None:
    missing = web.post("/v0/events", data=event("x"), headers=bearer)
    assert missing.json
    assert (missing.status_code, missing.json["parameter"]) == (400, "name")
    unknown = web.post("/v0/events?name=other", data=event("x"), headers=bearer)
    assert unknown.status_code == 404
    assert "app_events" in unknown.text
    assert web.get(ADDRESS, headers=bearer).status_code == 405


def test_an_empty_batch_is_no_error(web: FlaskClient, bearer: dict[str, str]) -> None:
    for body in (b"", b"\n \r\n"):
        assert counts(web.post(ADDRESS, data=body, headers=bearer)) == (0, 0)


def test_documents(web: FlaskClient, bearer: dict[str, str], client: Client, settings: Settings) -> None:
    array = b"[" + event("array-1") + b"," + event("array-2") + b"]"
    # As NDJSON it is one line that is no event; sent again as a document it is two.
    assert counts(web.post(ADDRESS, data=array, headers=bearer)) == (0, 1)
    assert counts(web.post(f"{ADDRESS}&format=json", data=array, headers=bearer)) == (2, 0)
    assert counts(web.post(ADDRESS, data=array, content_type="application/json", headers=bearer)) == (2, 0)
    lines = event("lines-1") + b"\n" + event("lines-2") + b"\n"
    assert counts(web.post(ADDRESS, data=lines, content_type="application/json", headers=bearer)) == (2, 0)
    assert [rows(client, settings, name) for name in ("array-1", "array-2", "lines-1", "lines-2")] == [1, 1, 1, 1]


def test_idempotency_key(web: FlaskClient, bearer: dict[str, str], client: Client, settings: Settings) -> None:
    keyed = {**bearer, "Idempotency-Key": "order-1"}
    first = web.post(ADDRESS, data=event("keyed"), headers=keyed)
    again = web.post(ADDRESS, data=event("keyed", user_id="retried"), headers=keyed)
    assert counts(first) == counts(again) == (1, 0)
    assert rows(client, settings, "keyed") == 1
    other = web.post(ADDRESS, data=event("keyed"), headers={**bearer, "Idempotency-Key": "order-2"})
    assert counts(other) == (1, 0)
    assert rows(client, settings, "keyed") == 2


def test_an_empty_idempotency_key_is_none(
    web: FlaskClient, bearer: dict[str, str], client: Client, settings: Settings
) -> None:
    """A variable that was not set: every batch would be the first one again, and be lost."""
    for name in ("unkeyed-1", "unkeyed-2"):
        assert counts(web.post(ADDRESS, data=event(name), headers={**bearer, "Idempotency-Key": ""})) == (1, 0)
        assert rows(client, settings, name) == 1


def test_a_body_of_several_chunks_can_be_queried_when_it_is_answered(
    settings: Settings, bearer: dict[str, str], client: Client
) -> None:
    """Where larger bodies are allowed: its chunks go in at the same time."""
    web = create_app(settings, {"MAX_BODY_BYTES": 60_000_000}).test_client()
    body = b"\n".join(event("large", session_id=f"{number}", properties="x" * 9000) for number in range(5000))
    assert counts(web.post(ADDRESS, data=body, headers=bearer)) == (5000, 0)
    assert rows(client, settings, "large") == 5000


def test_wait_false_is_accepted_once_durable(
    web: FlaskClient, bearer: dict[str, str], client: Client, settings: Settings
) -> None:
    assert counts(web.post(f"{ADDRESS}&wait=false", data=event("unwaited"), headers=bearer), 202) == (1, 0)
    assert rows(client, settings, "unwaited") == 1


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A ClickHouse that is not running yet."""
    server = EmbeddedServer(environment(tmp_path_factory.mktemp("away")))
    yield server
    if server.process:
        server.stop()


def test_clickhouse_away_then_back(away: EmbeddedServer) -> None:
    settings = away.settings
    web = create_app(settings).test_client()
    bearer = {"Authorization": f"Bearer {admin_token(settings)}"}
    health = web.get("/health")
    assert (health.status_code, health.headers["Retry-After"]) == (503, "2")
    assert web.get("/v0/pipes/any.json", headers=bearer).status_code == 503

    body = event("spooled-1") + b"\n{broken\n" + event("spooled-2")
    response = web.post(ADDRESS, data=body, headers=bearer)
    assert counts(response, 202) == (3, 0)
    assert response.json
    import_id = response.json["import_id"]
    (kept,) = Path(settings.landing_url).glob(f"spool/*{import_id}*")
    assert kept.read_bytes() == body
    # The sender's own mistakes are not kept.
    assert web.post(ADDRESS, data=b"x", headers={**bearer, "Content-Encoding": "gzip"}).status_code == 400
    assert len(list(Path(settings.landing_url).glob("spool/*"))) == 1

    away.start()
    apply_schema(settings)
    deadline = time.monotonic() + 10
    while web.get("/health").status_code != 200:
        assert time.monotonic() < deadline, "the app did not recover by itself"
        time.sleep(0.1)
    # The spooled batch sent again by its sender, and then ingested: once.
    assert counts(web.post(ADDRESS, data=body, headers=bearer)) == (2, 1)
    client = connect(settings)
    land(client, settings, import_id, "spool", frames([kept.read_bytes()]))
    assert import_result(client, settings, import_id)[:3] == (3, 2, 1)
    assert rows(client, settings, "spooled-1") == 1


def test_a_hanging_clickhouse_does_not_hang_the_app(settings: Settings, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        hanging = replace(
            settings, clickhouse_port=silent.getsockname()[1], data_dir=tmp_path, landing_url=str(tmp_path / "landing")
        )
        web = create_app(hanging, {"MAX_EXECUTION_TIME": 1}).test_client()
        bearer = {"Authorization": f"Bearer {admin_token(hanging)}"}
        started_at = time.monotonic()
        assert counts(web.post(ADDRESS, data=event("hanging"), headers=bearer), 202) == (1, 0)
        assert time.monotonic() - started_at < 10
        started_at = time.monotonic()
        assert counts(web.post(ADDRESS, data=event("hanging-2"), headers=bearer), 202) == (1, 0)
        assert time.monotonic() - started_at < 0.5


def test_nowhere_to_keep_them(settings: Settings, tmp_path: Path) -> None:
    blocked = tmp_path / "landing"
    blocked.write_text("a file where the folder should be")
    nowhere = replace(settings, clickhouse_port=free_port(), data_dir=tmp_path, landing_url=str(blocked))
    web = create_app(nowhere).test_client()
    response = web.post(ADDRESS, data=event("lost"), headers={"Authorization": f"Bearer {admin_token(nowhere)}"})
    assert response.json
    assert (response.status_code, response.json["code"]) == (503, "unavailable")
    assert int(response.headers["Retry-After"]) > 0
