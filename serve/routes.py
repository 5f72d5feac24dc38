"""What can be called: one generic route turns a request into a call of a view, one takes events in."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sqlite3
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, Error
from flask import Blueprint, Response, current_app, g, jsonify, request
from werkzeug.datastructures import MultiDict
from werkzeug.formparser import FormDataParser
from werkzeug.wsgi import FileWrapper

from serve.auth import FixedParams, authorize, identify
from serve.body import read_body
from serve.catalogue import Catalogue, Endpoint
from serve.database import ANSWER_IN_MEMORY, PIECE, Answer, Database, UnavailableError
from serve.errors import ApiError
from serve.keys import Keys
from serve.metrics import Metrics
from serve.parameters import Value
from warehouse.framing import frames
from warehouse.landing import ImportResult, content_id, import_result, land, spool, spooled_lines
from warehouse.settings import Settings

if TYPE_CHECKING:
    from serve.sql import Sql

log = logging.getLogger("serve")
routes = Blueprint("routes", __name__)

DATA_SOURCE = "app_events"
# Extension of the address → ClickHouse's format, media type, settings.
FORMATS: dict[str, tuple[str, str, dict[str, int]]] = {
    "json": ("JSON", "application/json", {"output_format_json_quote_64bit_integers": 0}),
    "csv": ("CSVWithNames", "text/csv; charset=utf-8", {}),
    "ndjson": (
        "JSONEachRow",
        "application/x-ndjson",
        {"output_format_json_quote_64bit_integers": 0, "output_format_json_validate_utf8": 1},
    ),
    "parquet": ("Parquet", "application/vnd.apache.parquet", {}),
    "arrow": ("ArrowStream", "application/vnd.apache.arrow.stream", {}),
    "prometheus": ("Prometheus", "text/plain; version=0.0.4; charset=utf-8", {}),
}
FORMATS["csvwithnames"] = FORMATS["csv"]
# Sent by clients along with an endpoint's parameters, and none of them.
NO_PARAMETERS = frozenset(("token", "from", "cli_version", "__tb__client", "mode", "format", "name", "q"))

# ClickHouse's codes.
BAD_ARGUMENTS = 36
UNKNOWN_FUNCTION, UNKNOWN_IDENTIFIER, UNKNOWN_TABLE, TABLE_IS_DROPPED = 46, 47, 60, 218
TIMEOUT_EXCEEDED, TOO_SLOW = 159, 160
MEMORY_LIMIT_EXCEEDED, TOO_MANY_ROWS_OR_BYTES = 241, 396
OVERLOADED = (202, MEMORY_LIMIT_EXCEEDED, 473)  # too many queries, not enough memory, deadlock avoided
# How ClickHouse names a value of one of the types that it reads itself.
_PARAMETER_IN_MESSAGE = re.compile(r"for query parameter '(\w+)'")
# What ends an answer in those of ClickHouse's JSON formats that have it: how long it took.
_STATISTICS = re.compile(rb'"statistics":\s*\{\s*"elapsed":[^{}]*\}\s*\}\s*\Z')

Values = dict[str, Value | list[Value] | None]

HOUR = timedelta(hours=1)
# Seconds after which an overloaded or absent ClickHouse may be asked again.
RETRY_AFTER = 2
# How many times as long as a query may take a key waits for the batch that it named first; a request takes less.
KEY_PATIENCE = 10


@routes.post("/v0/events")
def receive_events() -> Response:
    """Take in events: 200 when they can be queried, 202 when they are on disk and will be."""
    authorize_append()
    body = read_body(request, current_app.config["MAX_BODY_BYTES"])
    asked_format = request.args.get("format", "")
    document = asked_format == "json" or (not asked_format and request.mimetype == "application/json")
    key = request.headers.get("Idempotency-Key", "")  # an empty one names nothing
    extension = ".json" if document else ".ndjson"
    content = content_id([body], extension)
    import_id = content_id([b"Idempotency-Key\n", key.encode()]) if key else content
    settings: Settings = current_app.extensions["settings"]
    database: Database = current_app.extensions["database"]
    g.facts["import_id"] = import_id
    is_blank = not body.strip(b" \t\r\n,[]\xef\xbb\xbf")  # brings nothing, so that a key may name another one
    if key and not is_blank and (first := _of_another_content(import_id, content)):
        return first
    # The read timeout alone ends no slow insert: ClickHouse keeps the connection alive with headers of its progress.
    limit = {"max_execution_time": current_app.config["MAX_EXECUTION_TIME"]}

    def ingest(client: Client, query_id: str) -> ImportResult | None:
        g.facts["query_id"] = query_id
        batches = frames([body], document=document)
        lines = land(client, settings, import_id, "http", batches, {"query_id": query_id, **limit})
        # Nothing but white space is an empty batch of an SDK's timer: all of it arrived.
        return import_result(client, settings, import_id) if lines else None

    try:
        result = database.run_in_time(ingest, g.request_id)
    except Exception:
        # Not the sender's fault, whatever it is: any line can be landed. What answers for ClickHouse may be anything.
        log.warning("spooling", extra={"request_id": g.request_id, "import_id": import_id}, exc_info=True)
        return _spooled(settings, import_id, body, document)
    if result:
        _metrics().events.labels("accepted").inc(result.kept)
        _metrics().events.labels("quarantined").inc(result.quarantined)
    return _landed(import_id, result)


def _landed(import_id: str, result: ImportResult | None) -> Response:
    answer: dict[str, Any] = {"successful_rows": 0, "quarantined_rows": 0, "import_id": import_id}
    if result:
        answer |= {"successful_rows": result.kept, "quarantined_rows": result.quarantined}
        if result.rejects:
            answer["quarantined"] = [
                {"line": line, "column": column, "error": error} for line, column, error in result.rejects
            ]
    return json_answer(answer, 202 if request.args.get("wait", "").lower() == "false" else 200)


def _spooled(settings: Settings, import_id: str, body: bytes, document: bool) -> Response:
    try:
        spool(settings, import_id, body, ".json" if document else ".ndjson")
    except Exception:
        log.exception("nowhere to keep the events", extra={"request_id": g.request_id})
        raise ApiError(
            503, "unavailable", "The events could not be kept; send them again later.", retry_after=RETRY_AFTER
        ) from None
    lines = sum(len(run.lines) for run in frames([body], document=document))
    _metrics().events.labels("spooled").inc(lines)
    return _waits(import_id, lines)


def _waits(import_id: str, lines: int) -> Response:
    return json_answer({"successful_rows": lines, "quarantined_rows": 0, "import_id": import_id}, 202)


def _of_another_content(import_id: str, content: str) -> Response | None:
    """What became of the batch that the request's key names, if that is another one; None when this one is to go in.

    Raises:
        ApiError: 503 nobody can tell now.
    """
    settings: Settings = current_app.extensions["settings"]
    database: Database = current_app.extensions["database"]
    keys: Keys = current_app.extensions["keys"]
    try:
        if keys.names(import_id, content):
            return None
    except (sqlite3.Error, OSError):
        log.exception("keys cannot be kept", extra={"request_id": g.request_id})
        return None
    try:
        # In this order: it leaves the spool once it can be queried.
        if (lines := spooled_lines(settings, import_id)) is not None:
            return _waits(import_id, lines)
        result = database.run_in_time(lambda client, _: import_result(client, settings, import_id), g.request_id)
        if result.lines:
            return _landed(import_id, result)
        # Its sender was never answered: it is on its way, or was never kept.
        if keys.rename(import_id, content, KEY_PATIENCE * current_app.config["MAX_EXECUTION_TIME"]):
            return None
    except Exception:
        log.warning("nobody can tell what a key names", extra={"request_id": g.request_id}, exc_info=True)
    raise ApiError(
        503,
        "unavailable",
        "This Idempotency-Key came with another batch, of which nothing is known now; send it again later.",
        retry_after=RETRY_AFTER,
    )


@routes.route("/v0/pipes/<name>.<extension>", methods=["GET", "POST"])
def call_endpoint(name: str, extension: str) -> Response:
    """Call an endpoint with the request's parameters and answer with ClickHouse's own bytes."""
    fixed = authorize(f"PIPES:READ:{name}")
    if extension not in FORMATS:
        raise ApiError(404, "format_unknown", f"There is no such format; there are {', '.join(FORMATS)}.")
    given = given_parameters()
    try:
        endpoint, values = _bind(name, given, fixed, max_age=1.0)
        try:
            return _answer(endpoint, values, extension, _query(endpoint, given))
        except ClickHouseError:
            # The view may have been replaced since the catalogue was read.
            fresh, values = _bind(name, given, fixed, max_age=0)
            if fresh == endpoint:
                raise
            return _answer(fresh, values, extension, _query(fresh, given))
    except UnavailableError:
        raise unavailable() from None
    except ClickHouseError as error:
        raise _translated(error) from error


def _query(endpoint: Endpoint, given: dict[str, list[Any]]) -> str:
    """The SQL that is asked of the endpoint's answer, if any."""
    texts = [] if "q" in endpoint.parameters else given.get("q", [])
    return str(texts[0]).strip() if texts else ""


def given_parameters() -> dict[str, list[Any]]:
    """The request's parameters from its query string and its body: name → the texts, or values of a JSON body."""
    given: dict[str, list[Any]] = {key: list(texts) for key, texts in request.args.lists()}
    if request.method != "POST" or not (request.content_length or "Transfer-Encoding" in request.headers):
        return given
    if request.mimetype in ("application/x-www-form-urlencoded", "multipart/form-data"):
        for key, texts in _form().lists():
            given.setdefault(key, []).extend(texts)
    elif request.mimetype == "application/json":
        for key, value in _json_object().items():
            given.setdefault(key, []).append(value)
    else:
        # Left unread, it would give an answer that is not filtered.
        raise ApiError(415, "content_type_unknown", "Send the parameters as a form, as JSON or in the query string.")
    return given


def _form() -> MultiDict[str, str]:
    # Flask's own parser takes a form that cannot be read for an empty one: the answer would not be filtered.
    size = request.max_form_memory_size
    parser = FormDataParser(max_form_memory_size=size, max_content_length=size, silent=False)
    try:
        return parser.parse(request.stream, request.mimetype, request.content_length, request.mimetype_params)[1]
    except ValueError:
        raise ApiError(400, "body_invalid", "The body is not a form that can be read.") from None


def _json_object() -> dict[str, Any]:
    try:
        # Numbers stay as they were written.
        body = json.loads(request.get_data(cache=False), parse_int=str, parse_float=str, parse_constant=str)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise ApiError(400, "body_invalid", "The body is not a JSON object of parameters.")
    return body


def _bind(name: str, given: dict[str, list[Any]], fixed: FixedParams, max_age: float) -> tuple[Endpoint, Values]:
    """The endpoint and a value for each of its parameters: the token's fixed one, else the request's.

    A definition read within `max_age` seconds is used when everything in the request fits it. Whatever does not fit may
    be newer: the view is looked up before a request is refused or a name is ignored.
    """
    endpoints = _catalogue().endpoints(max_age)
    endpoint = endpoints.get(name)
    is_fresh = max_age == 0
    if endpoint and (is_fresh or all(key in endpoint.parameters or _is_no_parameter(key) for key in given)):
        try:
            return endpoint, _values(endpoint, given, fixed)
        except ApiError:
            if is_fresh:
                raise
    if is_fresh:
        raise _unknown_endpoint(endpoints)
    return _bind(name, given, fixed, max_age=0)


def _is_no_parameter(key: str) -> bool:
    return key in NO_PARAMETERS or key.startswith("utm_")


def _values(endpoint: Endpoint, given: dict[str, list[Any]], fixed: FixedParams) -> Values:
    if unknown := fixed.keys() - endpoint.parameters.keys():
        raise _unusable(f"{', '.join(sorted(unknown))}, which {endpoint.name} does not have")
    values: Values = {}
    for key, parameter in endpoint.parameters.items():
        items = [fixed[key]] if key in fixed else given.get(key, [])
        try:
            values[key] = parameter.bind([text for item in items for text in parameter.split(item)])
        except ApiError as error:
            raise _unusable(f"{key}, and not to a value that it takes") if key in fixed else error from None
        # Not given is not filtered.
        if key in fixed and values[key] in (None, []):
            raise _unusable(f"{key}, and to nothing")
    return values


def _unusable(fixed: str) -> ApiError:
    return ApiError(403, "token_unusable", f"This token fixes the parameter {fixed}; have another one minted.")


def _answer(endpoint: Endpoint, values: Values, extension: str, query: str) -> Response:
    output_format, media_type, settings = FORMATS[extension]
    g.facts["endpoint"] = endpoint.name
    if not query:
        return respond(_fetch(endpoint, values, output_format, g.request_id, settings), media_type)
    rows = _fetch(endpoint, values, "TabSeparatedWithNamesAndTypes", f"{g.request_id}-rows")
    asked: Sql = current_app.extensions["sql"]
    return respond(asked.answer_over(rows, query, output_format, g.request_id), media_type)


def _fetch(
    endpoint: Endpoint, values: Values, output_format: str, query_id: str, settings: dict[str, int] | None = None
) -> Answer:
    """The endpoint's rows; added up from events alone where no rollup can help, or while one is not there."""
    database: Database = current_app.extensions["database"]
    if endpoint.sql_from_events and not _holds_an_hour(values):
        return database.fetch(endpoint.sql_from_events, values, output_format, query_id, settings=settings)
    try:
        return database.fetch(endpoint.sql, values, output_format, query_id, settings=settings)
    except Error as error:
        # Not there, or with the columns of another layout while a build brings a new one.
        if error.code not in (UNKNOWN_IDENTIFIER, UNKNOWN_TABLE, TABLE_IS_DROPPED) or not endpoint.sql_from_events:
            raise
        log.warning("a rollup is not there", extra={"request_id": g.request_id, "endpoint": endpoint.name})
        return database.fetch(endpoint.sql_from_events, values, output_format, query_id, settings=settings)


def _holds_an_hour(values: Values) -> bool:
    """Whether a whole hour, the shortest period of a rollup, can lie between ``start_date`` and ``end_date`` (UTC)."""
    try:
        first, last = (datetime.fromisoformat(str(values.get(name))) for name in ("start_date", "end_date"))
        hour = first.replace(minute=0, second=0, microsecond=0)
        if hour < first:
            hour += HOUR
        return last - hour >= HOUR - timedelta(seconds=1)
    except (ValueError, TypeError):  # one is open, or, in an endpoint that declares its own, no time in UTC
        return True


def respond(answer: Answer, media_type: str) -> Response:
    """The answer of a query as the request's."""
    g.facts |= {"query_id": answer.query_id, "rows_read": answer.rows_read, "bytes_read": answer.bytes_read}
    if answer.size > ANSWER_IN_MEMORY:
        # With its length, an answer that is cut off on its way does not look complete.
        headers = {"Content-Type": media_type, "Content-Length": str(answer.size)}
        return Response(FileWrapper(answer.content, PIECE), headers=headers, direct_passthrough=True)
    with answer.content:
        content = answer.content.read()
    response = Response(content, content_type=media_type)
    # The query runs each time: a client that has the same rows already is spared their transfer, and never a newer
    # answer. Weak, as the rows are equal and `statistics`, how long they took, is not.
    took = _STATISTICS.search(content) if media_type.startswith("application/json") else None
    rows = content[: took.start()] if took else content
    response.set_etag(hashlib.blake2b(rows, digest_size=16).hexdigest(), weak=True)
    response.headers["Cache-Control"] = "private, no-cache"
    response.make_conditional(request)
    return response


def _translated(error: ClickHouseError) -> Exception:
    """What the caller is told of ClickHouse's refusal; what is nobody's fault stays as it is and answers 500."""
    code = error.code if isinstance(error, Error) else None
    g.facts["db_exception_code"] = code
    if code in (TIMEOUT_EXCEEDED, TOO_SLOW):
        return timed_out()
    # Of the two limits of memory one is the query's own, the other everybody's.
    if code == TOO_MANY_ROWS_OR_BYTES or (code == MEMORY_LIMIT_EXCEEDED and "(total)" not in str(error)):
        return ApiError(400, "query_too_large", "That is too much to answer at once; ask for less, such as fewer days.")
    if code in OVERLOADED:
        return overloaded()
    if match := _PARAMETER_IN_MESSAGE.search(str(error)):
        name = match[1]
        return ApiError(400, "parameter_invalid", f"Parameter {name} does not fit its type.", parameter=name)
    if code == BAD_ARGUMENTS and "output format" in str(error):
        return ApiError(
            400, "format_unsuitable", "This endpoint's columns do not fit the format; prometheus takes name and value."
        )
    if code in (UNKNOWN_FUNCTION, UNKNOWN_TABLE):
        return ApiError(404, "endpoint_unknown", "This endpoint is no longer there; GET /v0/pipes lists the endpoints.")
    return error


@routes.get("/v0/pipes")
def list_endpoints() -> Response:
    """The endpoints that the token may read."""
    return json_answer({"pipes": [endpoint.document() for endpoint in readable_endpoints()]})


@routes.get("/v0/pipes/<name>")
def describe_endpoint(name: str) -> Response:
    """One endpoint."""
    authorize(f"PIPES:READ:{name}")
    endpoints = _endpoints()
    if name not in endpoints:
        raise _unknown_endpoint(endpoints)
    return json_answer(endpoints[name].document())


@routes.get("/health")
def health() -> Response:
    """200 only when ClickHouse answers the API's own user."""
    _endpoints()
    return json_answer({"status": "ok"})


def _endpoints() -> dict[str, Endpoint]:
    try:
        return _catalogue().endpoints(max_age=0)
    except UnavailableError:
        raise unavailable() from None


def _metrics() -> Metrics:
    metrics: Metrics = current_app.extensions["metrics"]
    return metrics


def _catalogue() -> Catalogue:
    catalogue: Catalogue = current_app.extensions["catalogue"]
    return catalogue


def readable_endpoints() -> list[Endpoint]:
    """The endpoints that the request's token may read."""
    access = identify()
    return [endpoint for endpoint in _endpoints().values() if access.allows(f"PIPES:READ:{endpoint.name}")]


def _unknown_endpoint(endpoints: dict[str, Endpoint]) -> ApiError:
    names = ", ".join(endpoints) or "none yet"
    return ApiError(404, "endpoint_unknown", f"There is no such endpoint; there are: {names}.")


def timed_out() -> ApiError:
    seconds = current_app.config["MAX_EXECUTION_TIME"]
    return ApiError(408, "query_timeout", f"The query took longer than {seconds} s; ask for less, such as fewer days.")


def overloaded() -> ApiError:
    return ApiError(503, "overloaded", "ClickHouse has too much to do; ask again later.", retry_after=RETRY_AFTER)


def unavailable() -> ApiError:
    return ApiError(503, "unavailable", "ClickHouse does not answer; ask again later.", retry_after=RETRY_AFTER)


def authorize_append() -> None:
    """Refuse a request that may not append to the data source which it names, or names none that there is."""
    name = request.args.get("name", "")
    authorize(f"DATASOURCES:APPEND:{name or DATA_SOURCE}")
    if not name:
        raise ApiError(400, "name_missing", f"Name the data source: ?name={DATA_SOURCE}.", parameter="name")
    if name != DATA_SOURCE:
        raise unknown_datasource("name")


def unknown_datasource(parameter: str | None = None) -> ApiError:
    sentence = f"There is no data source of that name; there is {DATA_SOURCE}."
    return ApiError(404, "datasource_unknown", sentence, parameter=parameter)


def json_answer(content: dict[str, Any], status: int = 200) -> Response:
    response = jsonify(content)
    response.status_code = status
    return response
