"""Files over HTTP: kept before they are acknowledged, followed to their end; data sources and jobs described."""

from __future__ import annotations

import gzip
import io
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from clickhouse_connect.driver.client import Client
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from serve.app import create_app
from warehouse.connection import admin_token
from warehouse.landing import ingest
from warehouse.settings import Settings
from warehouse.tokens import open_tokens

ADDRESS = "/v0/datasources?name=app_events&mode=append"
LIMIT = 1_000_000
HEADER = b"event_id,user_id,event_type,event_time,app_version,device_type,os_version,country,properties,session_id\n"


@pytest.fixture(scope="module")
def own(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The session's ClickHouse with a landing folder of these tests alone."""
    return replace(settings, landing_url=str(tmp_path_factory.mktemp("landing")))


@pytest.fixture(scope="module")
def web(own: Settings) -> FlaskClient:
    return create_app(own, {"MAX_UPLOAD_BYTES": LIMIT}).test_client()


@pytest.fixture(scope="module")
def bearer(settings: Settings) -> dict[str, str]:
    return {"Authorization": f"Bearer {admin_token(settings)}"}


def event(event_id: str, **columns: Any) -> dict[str, Any]:
    return {"event_id": event_id, "event_type": "upload", "event_time": "2025-05-11 22:01:58", **columns}


def ndjson(*events: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(it).encode() + b"\n" for it in events)


def csv_row(event_id: str) -> bytes:
    return f'{event_id},u1,upload,2025-05-11 22:01:58,1.0,phone,iOS,FR,"{{""screen"":""home""}}",s1\n'.encode()


def parquet(*events: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(events)), sink)
    return sink.getvalue()


def kept(response: TestResponse) -> dict[str, Any]:
    assert response.status_code == 202, response.text
    assert response.json
    return response.json


def refused(response: TestResponse, status: int, code: str) -> None:
    assert response.json
    assert (response.status_code, response.json["code"]) == (status, code), response.text


def files(settings: Settings) -> list[str]:
    folder = Path(settings.landing_url)
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def event_ids(client: Client, settings: Settings, beginning: str) -> list[str]:
    return client.query(
        f"select arraySort(groupArray(event_id)) from {settings.database}.app_events "
        "where startsWith(event_id, {beginning:String})",
        parameters={"beginning": beginning},
    ).result_rows[0][0]


def test_a_file_is_followed_to_its_end(web: FlaskClient, bearer: dict[str, str], client: Client, own: Settings) -> None:
    body = ndjson(event("followed-1"), {"event_id": "followed-2"}, event("followed-3"))
    answer = kept(web.post(f"{ADDRESS}&format=ndjson", data=body, headers=bearer))
    assert (answer["successful_rows"], answer["status"], answer["error"]) == (3, "waiting", False)
    assert answer["import_id"] == answer["job_id"] == answer["job"]["id"]
    assert answer["job_url"].endswith(f"/v0/jobs/{answer['job_id']}")

    job = f"/v0/jobs/{answer['job_id']}"
    waiting = web.get(job, headers=bearer).json
    assert waiting
    assert (waiting["kind"], waiting["status"]) == ("import", "waiting")
    assert [outcome.state for outcome in ingest(client, own)] == ["done"]
    done = web.get(job, headers=bearer).json
    assert done
    assert (done["status"], done["successful_rows"], done["quarantined_rows"]) == ("done", 2, 1)
    assert event_ids(client, own, "followed") == ["followed-1", "followed-3"]
    assert files(own) == []

    # Again, and under other circumstances: the same import, and nothing more.
    again = kept(web.post(ADDRESS, data={"file": (io.BytesIO(gzip.compress(body)), "x.ndjson.gz")}, headers=bearer))
    assert again["import_id"] == answer["import_id"]
    assert [outcome.lines for outcome in ingest(client, own)] == [0]
    assert event_ids(client, own, "followed") == ["followed-1", "followed-3"]
    jobs = web.get("/v0/jobs?kind=import&status=done", headers=bearer).json
    assert jobs
    assert [it["successful_rows"] for it in jobs["jobs"] if it["id"] == answer["job_id"]] == [2]
    assert web.get("/v0/jobs?status=error&kind=truncate", headers=bearer).json == {"jobs": []}


def sent_in_every_way() -> Iterator[tuple[str, str, dict[str, Any]]]:
    lines = ndjson(event("way-{n}-a"), event("way-{n}-b"))
    table = HEADER + csv_row("way-{n}-a") + csv_row("way-{n}-b")
    plain = csv_row("way-{n}-a") + csv_row("way-{n}-b")
    form = "application/x-www-form-urlencoded"
    for name, query, body, content_type in (
        ("ndjson", "&format=ndjson", lines, "application/x-ndjson"),
        ("ndjson by its content type", "", lines, "application/x-ndjson; charset=utf-8"),
        ("ndjson as curl sends it", "&format=ndjson", lines, form),
        ("csv", "&format=csv", table, "text/csv"),
        ("csv is the default", "", table, ""),
        ("csv as verdin sends it", "&format=csv&dialect_delimiter=%2C", plain, "text/html; charset=utf-8"),
        ("csv without a header, as curl sends it", "", plain, form),
    ):
        yield name, query, {"data": body, "content_type": content_type}
    for field, file_name, body in (
        ("csv", "x.ndjson", lines),
        ("csv", "x.csv", table),
        ("file", "X.NDJSON", lines),
        ("ndjson", "export.ndjson.zst", zstandard.compress(lines)),
    ):
        yield f"{file_name} as {field}", "", {"form": (field, file_name, body)}


@pytest.mark.parametrize(("query", "sent"), [pytest.param(*case[1:], id=case[0]) for case in sent_in_every_way()])
def test_a_file_in_every_way_that_clients_send_it(
    web: FlaskClient, bearer: dict[str, str], client: Client, own: Settings, query: str, sent: dict[str, Any]
) -> None:
    number = abs(hash(json.dumps([query, sorted(sent)]) + repr(sent)))

    def numbered(body: bytes) -> bytes:
        if body.startswith(b"\x28\xb5\x2f\xfd"):
            return zstandard.compress(numbered(zstandard.decompress(body)))
        return body.replace(b"{n}", str(number).encode())

    if "form" in sent:
        field, file_name, body = sent["form"]
        response = web.post(ADDRESS + query, data={field: (io.BytesIO(numbered(body)), file_name)}, headers=bearer)
    else:
        response = web.post(
            ADDRESS + query, data=numbered(sent["data"]), content_type=sent["content_type"], headers=bearer
        )
    assert kept(response)["successful_rows"] == 2
    list(ingest(client, own))
    assert event_ids(client, own, f"way-{number}-") == [f"way-{number}-a", f"way-{number}-b"]


def test_parquet_and_compressed_bodies(web: FlaskClient, bearer: dict[str, str], client: Client, own: Settings) -> None:
    table = parquet(event("parquet-1"), event("parquet-2"))
    kept(web.post(f"{ADDRESS}&format=parquet", data=table, headers=bearer))
    for encoding, compress in (("gzip", gzip.compress), ("zstd", zstandard.compress)):
        body = compress(ndjson(event(f"parquet-{encoding}")))
        headers = {**bearer, "Content-Encoding": encoding}
        kept(web.post(f"{ADDRESS}&format=ndjson", data=body, headers=headers))
    refused(web.post(ADDRESS, data=b"x", headers={**bearer, "Content-Encoding": "br"}), 415, "encoding_unknown")
    list(ingest(client, own))
    assert event_ids(client, own, "parquet-") == ["parquet-1", "parquet-2", "parquet-gzip", "parquet-zstd"]


def test_what_cannot_be_read_is_refused_and_not_kept(web: FlaskClient, bearer: dict[str, str], own: Settings) -> None:
    def sent(body: bytes, query: str = "&format=ndjson") -> TestResponse:
        return web.post(ADDRESS + query, data=body, headers=bearer)

    refused(sent(b"no parquet", "&format=parquet"), 400, "file_unreadable")
    refused(sent(parquet(event("cut"))[:-20], "&format=parquet"), 400, "file_unreadable")
    refused(sent(gzip.compress(b"{}")[:-4]), 400, "file_unreadable")
    refused(sent(b"\x28\xb5\x2f\xfd no zstd"), 400, "file_unreadable")
    refused(sent(b"x" * (LIMIT + 1)), 413, "body_too_large")
    refused(sent(gzip.compress(b"x" * (LIMIT + 1))), 413, "body_too_large")
    chunked = {"input_stream": io.BytesIO(b"x" * 2 * LIMIT), "environ_overrides": {"wsgi.input_terminated": True}}
    refused(web.post(f"{ADDRESS}&format=ndjson", headers=bearer, **chunked), 413, "body_too_large")
    refused(
        web.post(ADDRESS, data={"other": "x"}, content_type="multipart/form-data", headers=bearer), 400, "file_missing"
    )
    refused(sent(b"{}", "&format=xml"), 400, "parameter_invalid")
    refused(sent(b"{}", "&dialect_delimiter=%3B"), 400, "parameter_invalid")
    refused(web.post("/v0/datasources?mode=append", data=b"{}", headers=bearer), 400, "name_missing")
    refused(web.post("/v0/datasources?name=other&mode=append", data=b"{}", headers=bearer), 404, "datasource_unknown")
    for mode in ("replace", "create"):
        refused(web.post(f"/v0/datasources?name=app_events&mode={mode}", headers=bearer), 400, "parameter_invalid")
    assert files(own) == []
    assert not list(own.data_dir.glob("upload-*"))


def test_nowhere_to_keep_a_file(own: Settings, bearer: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "landing").write_text("a file where the folder should be")
    web = create_app(replace(own, landing_url=str(tmp_path / "landing" / "x"))).test_client()
    response = web.post(f"{ADDRESS}&format=ndjson", data=ndjson(event("lost")), headers=bearer)
    refused(response, 503, "unavailable")
    assert response.headers["Retry-After"]


class Files(BaseHTTPRequestHandler):
    """A place of files: one that is there, one that redirects to it, one that breaks off."""

    def do_GET(self) -> None:
        body = ndjson(event("by-url"))
        if self.path.startswith("/exports/moved"):
            self.send_response(302)
            self.send_header("Location", "/exports/events.ndjson")
            body = b""
        elif self.path.startswith(("/exports/events.ndjson", "/exports/broken.ndjson")):
            self.send_response(200)
        else:
            self.send_response(404)
            body = b""
        self.send_header("Content-Length", str(len(body) + (100 if "broken" in self.path else 0)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def place() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_file_by_its_address(own: Settings, bearer: dict[str, str], client: Client, place: str) -> None:
    allowed = f"https://data.example.org/, http://{place}/exports"
    web = create_app(own, {"URL_ALLOWED": allowed}).test_client()
    form = {"url": f"http://{place}/exports/events.ndjson?version=1"}
    assert kept(web.post(f"{ADDRESS}&mode=append", data=form, headers=bearer))["successful_rows"] == 1
    list(ingest(client, own))
    assert event_ids(client, own, "by-url") == ["by-url"]
    for url, code in (
        (f"http://{place}/exports/moved", "url_unreachable"),
        (f"http://{place}/exports/nothing", "url_unreachable"),
        (f"http://{place}/exports/broken.ndjson", "url_unreachable"),
        ("https://data.example.org/x.csv", "url_unreachable"),
    ):
        refused(web.post(ADDRESS, data={"url": url}, headers=bearer), 400, code)
    for url in (
        f"http://{place}/other/events.ndjson",
        f"http://{place}/exports/../secret",
        f"http://{place}/exports/%2e%2E/secret",
        f"http://{place}/exports.ndjson",
        f"https://{place}/exports/events.ndjson",
        f"http://x@{place}/exports/events.ndjson",
        f"http://{place}@data.example.org/exports/x",
        f"http://data.example.org\\@{place}/exports/x",
        "http://127.0.0.1:1/exports/x",
        "https://data.example.org.evil.example/x",
        "https://data.example.org:8443/x",
        "file:///etc/passwd",
        "http://[::1/x",
        "x",
    ):
        refused(web.post(ADDRESS, data={"url": url}, headers=bearer), 403, "url_forbidden")
    assert files(own) == []


def test_a_name_that_leads_to_a_private_address_is_not_followed(
    own: Settings, bearer: dict[str, str], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = place.partition(":")[2]
    web = create_app(own, {"URL_ALLOWED": f"http://data.example.org:{port}/"}).test_client()
    info = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", int(port)))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: info)
    url = f"http://data.example.org:{port}/exports/events.ndjson"
    refused(web.post(ADDRESS, data={"url": url}, headers=bearer), 403, "url_forbidden")


def test_no_address_is_allowed_by_default(web: FlaskClient, bearer: dict[str, str]) -> None:
    refused(web.post(ADDRESS, data={"url": "https://data.example.org/x.csv"}, headers=bearer), 403, "url_forbidden")


def test_data_sources_are_described(web: FlaskClient, bearer: dict[str, str], client: Client, own: Settings) -> None:
    listed = web.get("/v0/datasources", headers=bearer).json
    assert listed
    assert [it["name"] for it in listed["datasources"]] == ["app_events", "app_events_quarantine"]
    for described in listed["datasources"]:
        assert web.get(f"/v0/datasources/{described['name']}", headers=bearer).json == described
        rows = client.command(f"select count() from {own.database}.{described['name']}")
        assert described["statistics"]["row_count"] == rows
        assert all(column["description"] for column in described["columns"])
    events = listed["datasources"][0]
    assert events["statistics"]["bytes"] > 0
    assert [column["name"] for column in events["columns"][:4]] == ["event_id", "user_id", "event_type", "event_time"]
    assert "content_hash" not in [column["name"] for column in events["columns"]]
    refused(web.get("/v0/datasources/other", headers=bearer), 404, "datasource_unknown")
    assert web.get("/v0/variables", headers=bearer).json == {"variables": []}


def test_rows_are_removed_by_a_job(web: FlaskClient, bearer: dict[str, str], client: Client, own: Settings) -> None:
    quarantined = event("gone-3") | {"event_type": ""}
    lines = ndjson(*(event(f"gone-{n}") for n in range(3)), quarantined)
    kept(web.post(f"{ADDRESS}&format=ndjson", data=lines, headers=bearer))
    list(ingest(client, own))
    address = "/v0/datasources/app_events/delete"
    condition = "startsWith(event_id, 'gone-') and event_time > '2025-01-01' -- these"
    dry = web.post(address, data={"delete_condition": condition, "dry_run": "true"}, headers=bearer)
    assert dry.json == {"rows_to_be_deleted": 4}

    answer = kept(web.post(address, data={"delete_condition": condition}, headers=bearer))
    assert answer["delete_id"] == answer["job_id"] == answer["id"]
    found = web.get(f"/v0/jobs/{answer['job_id']}", headers=bearer).json
    assert found
    assert found["kind"] == "delete_data"
    assert found["status"] in ("waiting", "working", "done")
    [arguments] = client.query(
        f"select arguments from {own.database}.jobs final where job_id = {{id:String}}",
        parameters={"id": answer["job_id"]},
    ).result_rows[0]
    assert json.loads(arguments) == {"delete_condition": condition}

    # Whatever may have been meant as a dry run is none that erases.
    for unclear in (
        {"json": {"delete_condition": condition, "dry_run": "yes"}},
        {"data": {"delete_condition": condition, "dry_run": ["true", "false"]}},
        {
            "query_string": {"delete_condition": condition},
            "data": b'{"dry_run": tr',
            "content_type": "application/json",
        },
        {"query_string": {"delete_condition": condition}, "data": b'{"dry_run": true}', "content_type": "text/plain"},
    ):
        assert web.post(address, headers=bearer, **unclear).status_code in (400, 415)
    counted = web.post(address, json={"delete_condition": condition, "dry_run": True}, headers=bearer)
    assert counted.json == {"rows_to_be_deleted": 4}

    emptied = kept(web.post("/v0/datasources/app_events/truncate", headers=bearer))
    assert web.get(f"/v0/jobs/{emptied['job_id']}", headers=bearer).json["kind"] == "truncate"  # type: ignore[index]
    for wrong in ("", "nowhere = 1", "1) or (1", "event_id in (select 1)", "file('/etc/passwd') = ''", "event_id"):
        response = web.post(address, data={"delete_condition": wrong}, headers=bearer)
        refused(response, 400, "parameter_invalid" if wrong else "parameter_required")
    for what in ("delete", "truncate"):
        refused(web.post(f"/v0/datasources/other/{what}", headers=bearer), 404, "datasource_unknown")
    client.command(f"truncate table {own.database}.jobs")


def test_scopes(web: FlaskClient, own: Settings, bearer: dict[str, str]) -> None:
    tokens = open_tokens(own)

    def holding(scope: str) -> dict[str, str]:
        token = tokens.create(scope.replace(":", "."), [scope])
        return {"Authorization": f"Bearer {token}"}

    sender, reader = holding("DATASOURCES:APPEND:app_events"), holding("DATASOURCES:READ:app_events")
    answer = kept(web.post(f"{ADDRESS}&format=ndjson", data=ndjson(event("scoped")), headers=sender))
    assert web.get(f"/v0/jobs/{answer['job_id']}", headers=sender).status_code == 200
    listed = web.get("/v0/datasources", headers=reader).json
    assert listed
    assert [it["name"] for it in listed["datasources"]] == ["app_events"]
    assert web.get("/v0/datasources", headers=sender).json == {"datasources": []}
    job = kept(web.post("/v0/datasources/app_events/truncate", headers=bearer))["job_id"]
    refused(web.get(f"/v0/jobs/{job}", headers=sender), 404, "job_unknown")
    for method, address, token in (
        ("POST", ADDRESS, reader),
        ("GET", "/v0/datasources/app_events", sender),
        ("GET", "/v0/datasources/app_events_quarantine", reader),
        ("GET", f"/v0/jobs/{answer['job_id']}", reader),
        ("GET", "/v0/jobs", sender),
        ("POST", "/v0/datasources/app_events/truncate", sender),
        ("POST", "/v0/datasources/app_events/delete", sender),
        ("GET", "/v0/variables", sender),
    ):
        refused(web.open(address, method=method, headers=token), 403, "scope_missing")
        refused(web.open(address, method=method), 401, "token_missing")
    for unknown in ("nothing", "..", "%2e%2e%2fserve_password", "a*"):
        assert web.get(f"/v0/jobs/{unknown}", headers=bearer).status_code == 404
