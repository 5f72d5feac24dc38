"""The OpenAPI document tells what the API does, and all of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from conftest import EmbeddedServer, environment
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator
from test_serve_server import TOKEN, Api

from serve.app import create_app
from serve.openapi import ROUTES
from serve.parameters import Parameter
from warehouse.connection import admin_token, connect
from warehouse.schema import apply_schema
from warehouse.settings import PROJECT_DIR, Settings

DOCUMENT = "/v0/pipes/openapi.json"
COMMENT = {
    "description": "Events by type, most first.",
    "parameters": {
        "start_date": {"description": "From this second on.", "example": "2025-05-01"},
        "limit": {"description": "At most so many rows.", "example": "10"},
    },
    "columns": {
        "event_type": {"type": "LowCardinality(String)", "description": "As sent."},
        "share": {"type": "Nullable(Float64)", "description": "Of all."},
    },
}


@pytest.fixture(scope="module")
def web(settings: Settings) -> FlaskClient:
    return create_app(settings).test_client()


@pytest.fixture(scope="module")
def bearer(settings: Settings) -> dict[str, str]:
    return {"Authorization": f"Bearer {admin_token(settings)}"}


@pytest.fixture(scope="module")
def document(web: FlaskClient, bearer: dict[str, str], client: Client, settings: Settings) -> Iterator[dict[str, Any]]:
    """The document while there is an endpoint that tells much of itself, one that tells nothing, and a metric."""
    made = {
        "shares": "select 'a' as event_type, 0.5 as share, {start_date:Nullable(DateTime('UTC'))} as s, "
        "{limit:UInt16} as l, {names:Array(String)} as n",
        "silent": "select 1 as one",
        "gauge": "select 'g' as name, 1 as value",
    }
    told = {"shares": COMMENT, "gauge": {"columns": {"name": {"type": "String"}, "value": {"type": "UInt8"}}}}
    for name, sql in made.items():
        comment = json.dumps(told.get(name, {}))
        client.command(f"create or replace view {settings.api_database}.{name} as {sql} comment '{comment}'")
    yield web.get(DOCUMENT, headers=bearer).json or {}
    for name in made:
        client.command(f"drop view {settings.api_database}.{name}")


def test_it_is_valid(document: dict[str, Any], web: FlaskClient) -> None:
    for it in (document, web.get(DOCUMENT).json):
        assert it
        assert it["openapi"].startswith("3.1")
        OpenAPIV31SpecValidator(it).validate()


def test_every_route_is_in_it_and_nothing_else(web: FlaskClient) -> None:
    routes = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule).rstrip("/"), method.lower())
        for rule in web.application.url_map.iter_rules()
        if not rule.rule.startswith("/docs")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    told = {(path, method) for path, item in ROUTES["paths"].items() for method in item}
    assert told == routes


def test_each_operation_tells_its_failures_in_the_one_shape(document: dict[str, Any]) -> None:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert operation["summary"], (path, method)
            guarded = operation.get("security") != []
            expected = {"401", "403", "429", "500", "503"} if guarded else {"500"}
            if {} in operation.get("security", []):
                expected -= {"401"}
            assert expected <= set(operation["responses"]), (path, method)
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    shared = document["components"]["responses"][response["$ref"].rpartition("/")[2]]
                    schema = shared["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Error"}, (path, method, status)


def test_an_endpoint_is_told_from_the_catalogue(document: dict[str, Any]) -> None:
    path = document["paths"]["/v0/pipes/shares.{extension}"]
    parameters = {parameter["name"]: parameter for parameter in path["get"]["parameters"]}
    assert list(parameters) == ["extension", "start_date", "limit", "names"]
    assert path["get"]["summary"] == COMMENT["description"]
    assert parameters["start_date"]["description"].startswith("From this second on. Takes a time")
    assert parameters["start_date"]["example"] == "2025-05-01"
    assert (parameters["start_date"]["required"], parameters["limit"]["required"]) == (False, True)
    assert parameters["limit"]["schema"] == {"type": "integer", "minimum": 0, "maximum": 65535}
    assert parameters["names"]["schema"] == {"type": "array", "items": {"type": "string"}}
    bodies = path["post"]["requestBody"]["content"]
    assert {"application/json", "application/x-www-form-urlencoded", "multipart/form-data"} == set(bodies)
    for body in bodies.values():
        assert set(body["schema"]["properties"]) == {"start_date", "limit", "names"}
        assert body["schema"]["required"] == ["limit"]
    assert bodies["application/json"]["schema"]["properties"]["start_date"]["type"] == ["string", "null"]
    _, rows = path["get"]["responses"]["200"]["content"]["application/json"]["schema"]["allOf"]
    assert rows["properties"]["data"]["items"]["properties"] == {
        "event_type": {"description": "As sent.", "type": "string"},
        "share": {"description": "Of all.", "type": ["number", "null"]},
    }


def test_a_format_is_told_where_the_columns_fit_it(document: dict[str, Any]) -> None:
    def formats(name: str) -> list[str]:
        [extension] = document["paths"][f"/v0/pipes/{name}.{{extension}}"]["get"]["parameters"][:1]
        formats: list[str] = extension["schema"]["enum"]
        return formats

    assert "prometheus" in formats("gauge")
    assert "prometheus" not in formats("shares")
    assert {"json", "csv", "ndjson", "parquet", "arrow"} < set(formats("silent"))


def test_without_a_token_it_names_no_endpoint(document: dict[str, Any], web: FlaskClient, settings: Settings) -> None:
    public = web.get(DOCUMENT).json
    assert public
    assert "shares" not in json.dumps(public)
    assert "/v0/pipes/{name}.{extension}" in public["paths"]
    assert web.get(f"{DOCUMENT}?token=wrong").status_code == 403
    assert web.get(f"{DOCUMENT}?token={admin_token(settings)}").json == document


@pytest.mark.parametrize(
    "type_name", ["DateTime('UTC')", "DateTime64(3, 'UTC')", "Date", "UInt8", "Int64", "Decimal(10, 2)", "Bool", "UUID"]
)
@given(data=st.data())
def test_what_a_parameter_is_said_to_take_is_taken(type_name: str, data: st.DataObject) -> None:
    parameter = Parameter("start_date", f"Nullable({type_name})")
    schema = parameter.schema
    if "pattern" in schema:
        text = data.draw(st.from_regex(re.compile(schema["pattern"].replace("$", r"\Z"), re.ASCII)))
    elif schema["type"] == "integer":
        text = str(data.draw(st.integers(schema["minimum"], schema["maximum"])))
    elif schema["type"] == "boolean":
        text = data.draw(st.sampled_from(["true", "false"]))
    else:
        text = str(data.draw(st.uuids()))
    assert (parameter.bind([text]) is None) == (text == "")


@pytest.mark.parametrize("text", ["2023-02-29", "2023-13-01", "2023-01-32", "2023-04-31", "2023-01-01 24:00:00", "x"])
def test_what_no_calendar_has_is_not_said_to_be_taken(text: str) -> None:
    pattern = Parameter("start_date", "DateTime").schema["pattern"]
    assert not re.search(pattern, text)
    assert re.search(pattern, "2024-02-29T23:59:59.999Z")
    assert re.search(pattern, "2000-02-29")


def test_the_page_it_links_to_is_there_and_needs_nothing_from_elsewhere(web: FlaskClient) -> None:
    refused = web.get("/nowhere").json
    assert refused
    page = web.get(refused["documentation"].removeprefix("http://localhost"))
    assert page.status_code == 200
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(addresses) >= 4
    for address in addresses:
        assert web.get(address).status_code == 200, address


def test_the_api_does_what_the_document_says(tmp_path: Path) -> None:
    """Requests that fit the document and requests that do not, to a server that keeps what they leave."""
    server = EmbeddedServer(environment(tmp_path))
    server.start()
    api = Api(server.environ, tmp_path / "api.log")
    try:
        apply_schema(server.settings)
        connect(server.settings).command(
            f"create view {server.settings.api_database}.typed as select {{n:Nullable(UInt8)}} as n, "
            "{at:Nullable(DateTime('UTC'))} as at, {text:Nullable(String)} as text"
        )
        api.start()
        command: list[str | Path] = [Path(sys.executable).with_name("schemathesis")]
        command += ["--config-file", PROJECT_DIR / "schemathesis.toml", "run", f"http://127.0.0.1:{api.port}{DOCUMENT}"]
        command += ["--header", f"Authorization: Bearer {TOKEN}", "--phases", "examples,coverage,fuzzing"]
        # The same requests each time; more of them: --max-examples.
        command += ["--max-examples", "5", "--seed", "1", "--generation-database", "none", "--no-color"]
        done = subprocess.run(command, env=server.environ, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        api.stop()
        server.stop()
