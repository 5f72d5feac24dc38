"""Data sources as the public API has them: files in, rows out by job, and what became of each."""

from __future__ import annotations

import json
import posixpath
import uuid
from collections.abc import Iterator
from typing import IO, Any
from urllib.parse import parse_qs

from clickhouse_connect.driver.client import Client
from flask import Blueprint, Response, current_app, g, request

from serve.auth import authorize, identify
from serve.database import Database, UnavailableError
from serve.errors import ApiError
from serve.remote import fetch
from serve.routes import (
    DATA_SOURCE,
    RETRY_AFTER,
    authorize_append,
    given_parameters,
    json_answer,
    unavailable,
    unknown_datasource,
)
from serve.sql import Sql
from warehouse.conditions import Condition, ConditionError
from warehouse.landing import Unreadable
from warehouse.settings import Settings
from warehouse.tokens import ADMIN
from warehouse.uploads import TooLarge, is_waiting, keep

datasources = Blueprint("datasources", __name__, url_prefix="/v0")

FORMATS = ("csv", "ndjson", "parquet")
FILE_FIELDS = ("csv", "ndjson", "parquet", "file")
PIECE = 256 * 1024


@datasources.post("/datasources")
def append_file() -> Response:
    """Keep a file; Dagster ingests it within seconds, and the job tells when."""
    authorize_append()
    if request.args.get("mode", "append") != "append":
        raise ApiError(
            400,
            "parameter_invalid",
            "Only mode=append is taken: the table is there, and to replace its rows truncate it first.",
            parameter="mode",
        )
    if request.args.get("dialect_delimiter", ",") != "," or request.args.get("dialect_escapechar"):
        raise ApiError(
            400,
            "parameter_invalid",
            "A CSV file has commas, and quotes that are doubled inside of quotes; no other dialect is read.",
            parameter="dialect_delimiter" if "dialect_delimiter" in request.args else "dialect_escapechar",
        )
    limit = current_app.config["MAX_UPLOAD_BYTES"]
    # One more than allowed: a chunked body is cut there without a word.
    request.max_content_length = limit + 1
    file_name, pieces = _file()
    try:
        upload = keep(_settings(), pieces, f".{_format(file_name)}", limit)
    except TooLarge as error:
        raise ApiError(413, "body_too_large", str(error)) from None
    except Unreadable as error:
        raise ApiError(400, "file_unreadable", str(error)) from None
    except OSError:
        current_app.logger.exception("nowhere to keep a file", extra={"request_id": g.request_id})
        raise ApiError(
            503, "unavailable", "The file could not be kept; send it again later.", retry_after=RETRY_AFTER
        ) from None
    g.facts["import_id"] = upload.import_id
    job = _document(upload.import_id, "import", "waiting")
    counts = {"successful_rows": upload.lines, "quarantined_rows": 0, "quarantine_rows": 0, "invalid_lines": 0}
    return json_answer({**job, **counts, "error": False, "job": job}, 202)


def _file() -> tuple[str, Iterator[bytes]]:
    """The file's name, if it has one, and its content: of an address, of a form's field, or the body itself."""
    url = request.args.get("url", "")
    if request.mimetype == "multipart/form-data":
        url = url or request.form.get("url", "")
        if file := next((request.files[field] for field in FILE_FIELDS if field in request.files), None):
            return file.filename or "", _pieces(file.stream)
    # Gzip and zstd are recognised by how they begin.
    if request.headers.get("Content-Encoding", "").strip().lower() not in ("", "identity", "gzip", "x-gzip", "zstd"):
        raise ApiError(415, "encoding_unknown", "This Content-Encoding is not understood; send gzip, zstd or none.")
    pieces = _pieces(request.stream)
    if not url and request.mimetype == "application/x-www-form-urlencoded":
        # curl sends any text as a form.
        first = next(pieces, b"")
        url = parse_qs(first.decode(errors="replace")).get("url", [""])[0]
        pieces = _before(first, pieces)
    if url:
        allowed = str(current_app.config["URL_ALLOWED"])
        return posixpath.basename(url.partition("?")[0]), fetch(url, allowed)
    if request.mimetype == "multipart/form-data":
        raise ApiError(400, "file_missing", f"Send the file as one of the fields {', '.join(FILE_FIELDS)}.")
    return "", _whole(pieces)


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    while piece := stream.read(PIECE):
        yield piece


def _before(first: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from pieces


def _whole(pieces: Iterator[bytes]) -> Iterator[bytes]:
    size = 0
    for piece in pieces:
        size += len(piece)
        yield piece
    if request.content_length is not None and size < request.content_length:
        raise ApiError(400, "body_incomplete", "The body ended before its Content-Length; send it again.")


def _format(file_name: str) -> str:
    """The format that the request names, else that of the file's name or of the content type, else CSV."""
    asked = request.args.get("format", "")
    if asked and asked not in FORMATS:
        raise ApiError(400, "parameter_invalid", f"The format is one of {', '.join(FORMATS)}.", parameter="format")
    name = file_name.lower().removesuffix(".gz").removesuffix(".zst")
    guesses = (form for form in FORMATS if name.endswith(f".{form}") or form in request.mimetype)
    return asked or next(guesses, FORMATS[0])


@datasources.get("/datasources")
def list_datasources() -> Response:
    """The data sources that the token may read."""
    access = identify()
    readable = [it for it in _described() if access.allows(f"DATASOURCES:READ:{it['name']}")]
    return json_answer({"datasources": readable})


@datasources.get("/datasources/<name>")
def describe_datasource(name: str) -> Response:
    """One data source: its columns, rows and bytes."""
    authorize(f"DATASOURCES:READ:{name}")
    for described in _described():
        if described["name"] == name:
            return json_answer(described)
    raise unknown_datasource()


def _described() -> list[dict[str, Any]]:
    return [
        {
            "id": row["name"],
            "name": row["name"],
            "description": row["description"],
            "type": "ndjson",
            "engine": {key: row[key] for key in ("engine", "partition_key", "sorting_key")},
            "columns": (columns := [_column(column) for column in row["columns"]]),
            "schema": {"columns": columns},
            "statistics": {"bytes": row["bytes"], "row_count": row["row_count"]},
            "tags": {},
            "used_by": [],
        }
        for row in _rows("datasource_list")
    ]


def _column(column: dict[str, str]) -> dict[str, Any]:
    nullable = column["type"].startswith("Nullable(")
    return {**column, "normalized_name": column["name"], "jsonpath": f"$.{column['name']}", "nullable": nullable}


@datasources.post("/datasources/<name>/truncate")
def truncate(name: str) -> Response:
    """Empty the data source, by a job."""
    authorize(ADMIN)
    _require(name)
    return _requested("truncate", {"datasource": name})


@datasources.post("/datasources/<name>/delete")
def delete_rows(name: str) -> Response:
    """Erase the rows that a condition names, by a job; with ``dry_run`` count them."""
    authorize(ADMIN)
    _require(name)
    given = given_parameters()
    condition = _one(given, "delete_condition")
    if not condition:
        raise ApiError(
            400, "parameter_required", "Name the rows: delete_condition=user_id = 'u1'.", parameter="delete_condition"
        )
    try:
        with _database().client() as client:
            checked = Condition(client, condition)
    except ConditionError as error:
        raise ApiError(400, "parameter_invalid", str(error), parameter="delete_condition") from None
    except UnavailableError:
        raise unavailable() from None
    dry_run = (_one(given, "dry_run") or "false").lower()
    # Nothing is erased for somebody who meant to count.
    if dry_run not in ("true", "1", "false", "0"):
        raise ApiError(400, "parameter_invalid", "dry_run is true or false.", parameter="dry_run")
    if dry_run in ("true", "1"):
        asked: Sql = current_app.extensions["sql"]
        try:
            return json_answer({"rows_to_be_deleted": asked.rows_to_be_deleted(checked)})
        except UnavailableError:
            raise unavailable() from None
    return _requested("delete_data", {"delete_condition": condition})


def _one(given: dict[str, list[Any]], name: str) -> str:
    texts = {str(value) for value in given.get(name, []) if value not in ("", None)}
    if len(texts) > 1:
        raise ApiError(400, "parameter_ambiguous", f"{name} was given {len(texts)} different values.", parameter=name)
    return texts.pop() if texts else ""


def _requested(kind: str, arguments: dict[str, Any]) -> Response:
    job_id = uuid.uuid4().hex
    row = {"job_id": job_id, "kind": kind, "arguments": json.dumps(arguments)}

    def insert(client: Client, query_id: str) -> None:
        client.raw_insert(
            f"{_settings().database}.job_requests",
            list(row),
            json.dumps(row).encode(),
            settings={"query_id": query_id},
            fmt="JSONEachRow",
        )

    try:
        _database().run(insert, g.request_id)
    except UnavailableError:
        raise unavailable() from None
    job = _document(job_id, kind, "waiting")
    return json_answer({**job, "delete_id": job_id, "job": job}, 202)


@datasources.get("/jobs")
def list_jobs() -> Response:
    """The jobs of the last 48 hours, at most 100, newest first; ``kind`` and ``status`` choose among them."""
    authorize(ADMIN)
    jobs = [_job(row) for row in _rows("job_list")]
    asked = {key: request.args[key] for key in ("kind", "status") if request.args.get(key)}
    return json_answer({"jobs": [job for job in jobs if asked.items() <= job.items()]})


@datasources.get("/jobs/<job_id>")
def describe_job(job_id: str) -> Response:
    """How far a job is, or the import of a file or of a request."""
    # Whoever may send a file may follow it; what is being erased is the administrator's.
    access = identify()
    if not access.allows(f"DATASOURCES:APPEND:{DATA_SOURCE}"):
        authorize(ADMIN)
    rows = _rows("job_results(job_id = {id:String})", id=job_id)
    if rows and (rows[0]["kind"] == "import" or access.allows(ADMIN)):
        return json_answer(_job(rows[0]))
    if is_waiting(_settings(), job_id):
        return json_answer(_document(job_id, "import", "waiting"))
    raise ApiError(404, "job_unknown", "There is no such job; GET /v0/jobs lists those of the last 48 hours.")


def _job(row: dict[str, Any]) -> dict[str, Any]:
    job = _document(row["job_id"], row["kind"], row["status"])
    job |= {key: row[key] for key in ("created_at", "started_at", "updated_at", "rows_affected")}
    if row["kind"] == "import":
        # Rows that became events, and lines that did not.
        job |= {"successful_rows": row["rows_affected"], "lines": row["lines"]}
        job |= dict.fromkeys(("quarantined_rows", "quarantine_rows", "invalid_lines"), row["quarantined"])
    if row["statistics"]:
        job["statistics"] = json.loads(row["statistics"])
    if row["error"]:
        job["error"] = row["error"]
    return job


def _document(job_id: str, kind: str, status: str) -> dict[str, Any]:
    """What every answer about a job tells."""
    return {
        "id": job_id,
        "job_id": job_id,
        "import_id" if kind == "import" else "delete_id": job_id,
        "kind": kind,
        "status": status,
        "job_url": f"{request.host_url}v0/jobs/{job_id}",
        "datasource": {"id": DATA_SOURCE, "name": DATA_SOURCE},
        "progress_percentage": 100 if status == "done" else 0,
        "is_cancellable": False,
    }


@datasources.get("/variables")
def list_variables() -> Response:
    """None: clients ask for them."""
    authorize(ADMIN)
    return json_answer({"variables": []})


def _rows(view: str, **parameters: str) -> list[dict[str, Any]]:
    sql = f"select * from {_settings().database}.{view}"
    numbers = {"output_format_json_quote_64bit_integers": 0}
    try:
        answer = _database().fetch(sql, parameters, "JSONEachRow", g.request_id, settings=numbers)
    except UnavailableError:
        raise unavailable() from None
    with answer.content as content:
        return [json.loads(line) for line in content]


def _require(name: str) -> None:
    if name != DATA_SOURCE:
        raise unknown_datasource()


def _settings() -> Settings:
    settings: Settings = current_app.extensions["settings"]
    return settings


def _database() -> Database:
    database: Database = current_app.extensions["database"]
    return database
