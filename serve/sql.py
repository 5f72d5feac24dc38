"""SQL that callers wrote: over the whole project with the scope ADMIN, or over one endpoint's answer, which is ``_``.

Rights are the database's: the one user may read the project's tables and nothing else, the other may read nothing at
all and is handed the answer along with the query. Neither may change a setting, and so no limit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl

from clickhouse_connect.driver.exceptions import ClickHouseError, Error
from clickhouse_connect.driver.external import ExternalData
from flask import Blueprint, Response, current_app, g, request

from serve.auth import authorize
from serve.body import read_body
from serve.database import Answer, Database, UnavailableError
from serve.errors import ApiError
from serve.parameters import MAX_VALUE_BYTES
from serve.routes import (
    MEMORY_LIMIT_EXCEEDED,
    OVERLOADED,
    TIMEOUT_EXCEEDED,
    TOO_SLOW,
    overloaded,
    respond,
    timed_out,
    unavailable,
)
from warehouse.conditions import Condition
from warehouse.connection import refusal
from warehouse.erase import rows_to_be_deleted
from warehouse.settings import Settings
from warehouse.tokens import ADMIN

sql = Blueprint("sql", __name__)

# ClickHouse's codes.
LOGICAL_ERROR, STD_EXCEPTION = 49, 1001
ACCESS_DENIED, AUTHENTICATION_FAILED = 497, 516
# Of an endpoint's answer, which is held in memory while it is asked.
MAX_ASKED_BYTES = 50_000_000

# Those that need no right and read what no right is asked for: the embedded server's `file` reads any file of the
# machine. They are refused by name wherever the parsed query has one, and so are table functions but these, as others
# take code as text: `format('TSV', 'a String default file(…)', '')`.
REFUSED_FUNCTIONS = frozenset(("file", "logTrace"))
TABLE_FUNCTIONS = frozenset(("numbers", "numbers_mt", "zeros", "zeros_mt", "generateSeries", "generate_series"))

_PARAMETER = re.compile(r"\{\s*(\w+)\s*:[^{}]+\}")
_TEMPLATE = re.compile(r"\{\{\s*(\w+)\(\s*(\w+)\s*(?:,\s*('[^'{}]*'|[^'{},=]+))?\s*\)\s*\}\}")


class Sql:
    """ClickHouse as callers' SQL sees it."""

    def __init__(self, settings: Settings, max_execution_time: int) -> None:
        self._settings = settings
        self._analyst = Database(settings, max_execution_time, as_user=settings.sql_user)
        self._reader = Database(settings, max_execution_time, as_user=settings.answers_user)

    def answer(self, query: str, parameters: Mapping[str, str], query_id: str) -> Answer:
        """What a SELECT over the project's tables answers, in the format that it names, else JSON.

        Raises:
            ApiError: what the caller can act on.
            UnavailableError: ClickHouse does not answer.
        """
        tree = self._parsed(self._analyst, query)
        names = set(_PARAMETER.findall(query))
        bound = {name: value for name, value in parameters.items() if name in names}
        return _fetched(self._analyst, query, query_id, bound, "" if "format_ast" in tree else "JSON", None)

    def answer_over(self, rows: Answer, query: str, output_format: str, query_id: str) -> Answer:
        """What a SELECT over ``_`` answers, which are rows in the format TabSeparatedWithNamesAndTypes.

        Raises:
            ApiError, UnavailableError: as ``answer``.
        """
        tree = self._parsed(self._reader, query)
        if tree.get("format_ast", {}).get("name", output_format) != output_format:
            raise ApiError(400, "sql_refused", "The address names the format; leave FORMAT out.", parameter="q")
        if rows.size > MAX_ASKED_BYTES:
            raise ApiError(
                400, "sql_too_large", f"_ is larger than {MAX_ASKED_BYTES} bytes; ask for less of it by its parameters."
            )
        with rows.content as content:
            names, types = (content.readline().decode().rstrip("\n").split("\t") for _ in range(2))
            table = ExternalData(
                file_name="_",
                data=content.read(),
                fmt="TabSeparated",
                # Names are escaped in TabSeparated as they are between backticks, but for the backtick itself.
                structure=[
                    "`" + name.replace("`", "\\`") + "` " + kind.replace("\\'", "'")
                    for name, kind in zip(names, types, strict=True)
                ],
            )
        try:
            return _fetched(self._reader, query, query_id, {}, output_format, table)
        except ApiError as error:
            if g.facts.get("db_exception_code") != ACCESS_DENIED:
                raise
            raise ApiError(403, "sql_refused", "Only _ can be read here.", parameter="q") from error

    def rows_to_be_deleted(self, condition: Condition) -> int:
        """How many rows of the events and of the quarantine a condition is about.

        Raises:
            ApiError, UnavailableError: as ``answer``.
        """
        try:
            with self._analyst.client() as client:
                return sum(rows_to_be_deleted(client, self._settings, condition).values())
        except ClickHouseError as error:
            raise _translated(error) from error

    def _parsed(self, database: Database, query: str) -> dict[str, Any]:
        """The query's syntax tree, ClickHouse's own."""
        if len(query.encode()) > MAX_VALUE_BYTES:
            raise ApiError(400, "sql_too_large", f"The query is longer than {MAX_VALUE_BYTES} bytes.", parameter="q")
        try:
            with database.client() as client:
                text = client.raw_query(
                    "select parseQueryToJSON({query:String}) format TSVRaw", parameters={"query": query}
                )
        except UnavailableError as error:
            if isinstance(error.__cause__, Error) and error.__cause__.code == AUTHENTICATION_FAILED:
                raise ApiError(403, "sql_off", "This server takes no SQL: it has no database user for it.") from error
            raise
        except ClickHouseError as error:
            raise _translated(error) from error
        tree: dict[str, Any] = json.loads(text)
        if tree["type"] != "SelectWithUnionQuery":
            raise ApiError(400, "sql_refused", "Only SELECT is taken here.", parameter="q")
        for node in _nodes(tree):
            table_function = (node.get("table_function") or {}).get("name", "")
            # A name with a dot is that of a view with parameters; the user's rights decide about it.
            if table_function and "." not in table_function and table_function not in TABLE_FUNCTIONS:
                raise _refused(table_function)
            for name in (node.get("name"), node.get("func_name")):
                if name in REFUSED_FUNCTIONS and node["type"] in ("Function", "ColumnsApplyTransformer"):
                    raise _refused(name)
        return tree


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


def _refused(function: str) -> ApiError:
    return ApiError(403, "sql_refused", f"The function {function} is not for SQL over HTTP.", parameter="q")


def _fetched(
    database: Database,
    query: str,
    query_id: str,
    parameters: Mapping[str, str],
    output_format: str,
    table: ExternalData | None,
) -> Answer:
    try:
        # Not appended to the query: what it says stays what was checked.
        return database.fetch(query, dict(parameters), output_format, query_id, external_data=table, as_header=True)
    except ClickHouseError as error:
        raise _translated(error) from error


def _translated(error: ClickHouseError) -> Exception:
    code = error.code if isinstance(error, Error) else None
    g.facts["db_exception_code"] = code
    sentence = refusal(error)
    if code in (TIMEOUT_EXCEEDED, TOO_SLOW):
        return timed_out()
    # A query's own limit is its author's business.
    if code in OVERLOADED and not (code == MEMORY_LIMIT_EXCEEDED and "(total)" not in str(error)):
        return overloaded()
    if code in (None, LOGICAL_ERROR, STD_EXCEPTION):
        return error
    return ApiError(403 if code == ACCESS_DENIED else 400, "sql_invalid", sentence, parameter="q")


@sql.route("/v0/sql", methods=["GET", "POST"])
def run_sql() -> Response:
    """A SELECT over the project's tables."""
    authorize(ADMIN)
    given = _given()
    query, defaults = _placeholders(given.pop("q", "").strip())
    if not query:
        raise ApiError(400, "parameter_required", "Send a SELECT: ?q=select count() from app_events", parameter="q")
    asked: Sql = current_app.extensions["sql"]
    try:
        answer = asked.answer(query, defaults | given, g.request_id)
    except UnavailableError:
        raise unavailable() from None
    return respond(answer, answer.media_type)


def _given() -> dict[str, str]:
    """The query and its parameters: from the address, and from a body that is a form, JSON or the query itself."""
    given = dict(request.args)
    if request.method != "POST":
        return given
    body = read_body(request, current_app.config["MAX_BODY_BYTES"])
    try:
        text = body.decode()
        if request.mimetype == "application/json":
            fields = json.loads(text)
            if not isinstance(fields, dict):
                raise ValueError("no object")
            fields = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
        else:
            fields = dict(parse_qsl(text, keep_blank_values=True)) if "form" in request.mimetype else {}
            if not fields.get("q") and text.strip() and "q" not in given:
                fields = {"q": text}  # curl sends any text as a form
    except (ValueError, RecursionError):
        raise ApiError(400, "body_invalid", 'The body is no SQL; send it as text, as q=… or as {"q": "…"}.') from None
    return given | fields


def _placeholders(query: str) -> tuple[str, dict[str, str]]:
    """A query with ClickHouse's placeholders in place of a template's, and the values that its author gave them."""
    if not query.startswith("%"):
        return query, {}
    defaults: dict[str, str] = {}

    def placeholder(found: re.Match[str]) -> str:
        kind, name, default = found.groups()
        if default:
            defaults[name] = default.strip().strip("'")
        return f"{{{name}:{'Bool' if kind == 'Boolean' else kind}}}"

    query = _TEMPLATE.sub(placeholder, query[1:].strip())
    if "{{" in query or "{%" in query:
        raise ApiError(
            400, "sql_refused", "Of templates only placeholders are taken, such as {{Int32(x, 1)}}.", parameter="q"
        )
    return query, defaults
