"""The OpenAPI document, openapi.yaml with the deployed endpoints in it, and a page on which to try them."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import flask_swagger_ui
import yaml
from flask import Blueprint, Response, request, send_from_directory

from serve.catalogue import Endpoint
from serve.metrics import VERSION
from serve.parameters import Parameter
from serve.routes import FORMATS, json_answer, readable_endpoints

FOLDER = Path(__file__).parent
# By way of JSON, so that what YAML's anchors share is not changed in two places at once.
ROUTES: dict[str, Any] = json.loads(json.dumps(yaml.safe_load((FOLDER / "openapi.yaml").read_text())))
ROUTES["info"]["version"] = VERSION
CALL = "/v0/pipes/{name}.{extension}"

documentation = Blueprint(
    "documentation",
    __name__,
    static_folder=Path(flask_swagger_ui.__file__).with_name("dist"),
    static_url_path="/docs/swagger-ui",
)


@documentation.after_request
def _contain(response: Response) -> Response:
    # The page takes a token: nothing from elsewhere runs in it, and it sends nothing elsewhere.
    response.headers["Content-Security-Policy"] = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


@documentation.get("/docs", defaults={"name": "index.html"})
@documentation.get("/docs/<name>")
def show_page(name: str) -> Response:
    """The page, which reads the document as its reader may."""
    return send_from_directory(FOLDER / "page", name)


@documentation.get("/v0/pipes/openapi.json")
def show_document() -> Response:
    """The document with the endpoints that the request's token may read; without a token, with none."""
    if not ("Authorization" in request.headers or "token" in request.args):
        return json_answer(document([]))
    return json_answer(document(readable_endpoints()))


def document(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """An OpenAPI 3.1 document in which each of the endpoints has an address of its own.

    Args:
        endpoints: with none, there is one address for whatever endpoints there are.
    """
    called = {f"/v0/pipes/{endpoint.name}.{{extension}}": _path(endpoint) for endpoint in endpoints}
    paths = {path: item for path, item in ROUTES["paths"].items() if not (called and path == CALL)}
    return {**ROUTES, "paths": called | paths}


def _path(endpoint: Endpoint) -> dict[str, Any]:
    path = copy.deepcopy(ROUTES["paths"][CALL])
    fits = {"name", "value"} <= set(endpoint.columns)
    formats = [extension for extension in FORMATS if fits or extension != "prometheus"]
    schemas = {parameter.name: parameter.schema for parameter in endpoint.parameters.values()}
    in_json = {parameter.name: _in_json(parameter) for parameter in endpoint.parameters.values()}
    required = [parameter.name for parameter in endpoint.parameters.values() if parameter.required]
    for method, operation in path.items():
        operation["operationId"] = endpoint.name if method == "get" else f"{endpoint.name}_{method}"
        operation["summary"] = endpoint.description.split("\n")[0] or endpoint.name
        operation["description"] = f"{endpoint.description}\n\n{operation['description']}"
        # Of the call's own parameters the name is part of the address here.
        extension = operation["parameters"][1]
        extension["schema"] = {"type": "string", "enum": formats}
        operation["parameters"] = [extension]
        content = operation["responses"]["200"]["content"]
        if not fits:
            del content["text/plain"]
        if endpoint.columns:
            properties = {name: _column(column) for name, column in endpoint.columns.items()}
            row = {"type": "object", "required": list(properties), "properties": properties}
            rows = {"properties": {"data": {"type": "array", "items": row}}}
            content["application/json"]["schema"] = {"allOf": [content["application/json"]["schema"], rows]}
    path["get"]["parameters"] += [_parameter(parameter) for parameter in endpoint.parameters.values()]
    for media_type, body in path["post"]["requestBody"]["content"].items():
        properties = in_json if media_type == "application/json" else schemas
        body["schema"] = {"type": "object", "properties": properties, "required": required}
    return path


def _parameter(parameter: Parameter) -> dict[str, Any]:
    told: dict[str, Any] = {"name": parameter.name, "in": "query", "required": parameter.required}
    told["description"] = f"{parameter.description} Takes {parameter.takes}.".strip()
    told["schema"] = parameter.schema
    if parameter.example:
        told["example"] = parameter.example
    return told


def _in_json(parameter: Parameter) -> dict[str, Any]:
    # Text may be any scalar of JSON, and null is as good as absent.
    kinds = ["string", "number", "boolean"] if parameter.schema == {"type": "string"} else [parameter.schema["type"]]
    return {**parameter.schema, "type": kinds if parameter.required else [*kinds, "null"]}


# What a value of a ClickHouse type is in JSON; whatever matches none may be anything.
_IN_JSON = (
    (r"U?Int\d+", "integer"),
    (r"Float\d+|BFloat16|Decimal.*", "number"),
    (r"Bool", "boolean"),
    (r"(Fixed)?String|UUID|IPv[46]|Enum.*|Date.*", "string"),
    (r"Array.*", "array"),
    (r"Map.*", "object"),
)


def _column(column: dict[str, Any]) -> dict[str, Any]:
    name = re.sub(r"^LowCardinality\((.*)\)$", r"\1", str(column.get("type", "")))
    core = re.sub(r"^Nullable\((.*)\)$", r"\1", name)
    schema: dict[str, Any] = {"description": column.get("description", "")}
    for pattern, kind in _IN_JSON:
        if re.fullmatch(pattern, core):
            # There is no NaN and no infinity in JSON.
            schema["type"] = [kind, "null"] if core != name or kind == "number" else kind
    return schema
