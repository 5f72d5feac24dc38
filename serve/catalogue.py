"""The endpoints there are: the views of the API's database, as ClickHouse has them now."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from serve.database import Database
from serve.parameters import Parameter

# What the name of an endpoint's twin ends with, which reads events alone (macros/endpoint.sql).
_FROM_EVENTS = "__from_events"
_VIEWS = (
    "select name, parameterized_view_parameters as parameters, comment from system.tables "
    "where database = {database:String} and engine = 'View' order by name"
)


@dataclass(frozen=True)
class Endpoint:
    """A view that can be called.

    Attributes:
        sql: the call, every parameter a bound placeholder.
        sql_from_events: the same of its twin, which reads no rollup; empty for one that reads none anyway.
        columns: name → type and description, in order; empty when the view's comment does not tell.
    """

    name: str
    sql: str
    sql_from_events: str
    parameters: dict[str, Parameter]
    description: str = ""
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The endpoint as ``GET /v0/pipes`` tells it."""
        return {
            "name": self.name,
            "type": "endpoint",
            "description": self.description,
            "parameters": [
                {
                    "name": parameter.name,
                    "type": parameter.type,
                    "required": parameter.required,
                    "description": parameter.description,
                    "takes": parameter.takes,
                    "example": parameter.example,
                }
                for parameter in self.parameters.values()
            ],
            "columns": [{"name": name, **column} for name, column in self.columns.items()],
        }


class Catalogue:
    """The endpoints of a database, read from it when what was read last is too old.

    Args:
        database: where they are read.
        api_database: the database that holds the endpoint views, their twins and nothing else.
    """

    def __init__(self, database: Database, api_database: str) -> None:
        self._database = database
        self._api_database = api_database
        self._endpoints: dict[str, Endpoint] = {}
        self._read_at = float("-inf")
        self._reading = threading.Lock()

    def endpoints(self, max_age: float) -> dict[str, Endpoint]:
        """Endpoints by name, read at most `max_age` seconds ago; 0 reads them now.

        Raises:
            UnavailableError: ClickHouse does not answer.
        """
        asked_at = time.monotonic()
        if self._read_at < asked_at - max_age:
            with self._reading:
                # Another thread may have read them while this one waited.
                if self._read_at < asked_at - max_age:
                    started_at = time.monotonic()
                    self._endpoints = self._read()
                    self._read_at = started_at
        return self._endpoints

    def _read(self) -> dict[str, Endpoint]:
        with self._database.client() as client:
            rows = client.raw_query(_VIEWS, parameters={"database": self._api_database}, fmt="JSONEachRow").splitlines()
        views = [json.loads(row) for row in rows]
        names = {view["name"] for view in views}
        return {
            view["name"]: _endpoint(self._api_database, **view, has_twin=view["name"] + _FROM_EVENTS in names)
            for view in views
            if not view["name"].endswith(_FROM_EVENTS)
        }


def _endpoint(database: str, name: str, parameters: list[dict[str, str]], comment: str, has_twin: bool) -> Endpoint:
    words = _words(comment)
    told = words.get("parameters", {})
    # In the order in which they are described; ClickHouse has none.
    names = [*told, *sorted(parameter["name"] for parameter in parameters if parameter["name"] not in told)]
    types = {parameter["name"]: parameter["type"] for parameter in parameters}
    arguments = ", ".join(f"{parameter} = {{{parameter}:{types[parameter]}}}" for parameter in sorted(types))
    call = f"({arguments})" if arguments else ""
    return Endpoint(
        name=name,
        sql=f"select * from `{database}`.`{name}`{call}",
        sql_from_events=f"select * from `{database}`.`{name}{_FROM_EVENTS}`{call}" if has_twin else "",
        parameters={
            parameter: Parameter(
                parameter,
                types[parameter],
                str(told.get(parameter, {}).get("description", "")),
                str(told.get(parameter, {}).get("example", "")),
            )
            for parameter in names
            if parameter in types
        },
        description=words.get("description", ""),
        columns=words.get("columns", {}),
    )


def _words(comment: str) -> dict[str, Any]:
    """What the view's comment tells: JSON written by dbt, or any text, which then is the description."""
    try:
        words = json.loads(comment)
    except ValueError:
        return {"description": comment}
    if not isinstance(words, dict):
        return {"description": comment}
    for key in ("parameters", "columns"):
        told = words.get(key)
        words[key] = {name: it for name, it in told.items() if isinstance(it, dict)} if isinstance(told, dict) else {}
    return words
