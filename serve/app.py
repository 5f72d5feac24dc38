"""The app factory: settings in, a WSGI app out."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

from flask import Flask, Response, current_app, g, request
from flask_compress import Compress

from serve import errors
from serve.asgi import REFUSAL
from serve.auth import RateLimiter
from serve.catalogue import Catalogue
from serve.database import Database
from serve.datasources import datasources
from serve.keys import Keys
from serve.metrics import Metrics, metrics
from serve.openapi import documentation
from serve.routes import routes
from serve.sql import Sql, sql
from serve.tokens import tokens
from warehouse.connection import admin_token
from warehouse.settings import Settings, SettingsError
from warehouse.tokens import open_tokens

log = logging.getLogger("serve")

# Each can be set by a variable of the environment: SERVE_WORKERS=2. What a query may take stands in warehouse.settings.
DEFAULTS = {
    "WORKERS": 1,  # processes
    "MAX_BODY_BYTES": 10_000_000,  # of a request's body, also once decompressed
    "MAX_BODY_SECONDS": 10,  # that a body may take to arrive; longer while it comes with 10 kB/s
    "MAX_UPLOAD_BYTES": 500_000_000,  # of a file, also once decompressed
    "URL_ALLOWED": "",  # a comma-separated list of the beginnings of addresses that files are fetched from
    # At once, in each process. On two cores that ClickHouse shares 8 and 16 queries are alike.
    "MAX_CONCURRENT_QUERIES": 12,
    "MAX_CONCURRENT_IMPORTS": 8,  # and whatever else is no query
    "MAX_CONCURRENT_UPLOADS": 4,  # of files
    "MAX_WAITING": 256,  # requests of each of these kinds that stand in line
    "CORS_ORIGINS": "*",  # or a comma-separated list of origins
    # Of answers: Parquet and Arrow are compressed by themselves, and a small answer grows. The lowest levels: 1.5 MB of
    # rows take 2 ms (zstd), 5 ms (br) and 7 ms (gzip); at the usual levels 6, 36 and 14 ms for nothing.
    "COMPRESS_ALGORITHM": ["zstd", "br", "gzip"],
    "COMPRESS_ALGORITHM_STREAMING": ["zstd", "br", "gzip"],
    "COMPRESS_MIMETYPES": [
        "application/json",
        "application/x-ndjson",
        "text/css",
        "text/csv",
        "text/html",
        "text/javascript",
        "text/plain",
    ],
    "COMPRESS_ZSTD_LEVEL": 1,
    "COMPRESS_BR_LEVEL": 1,
    "COMPRESS_LEVEL": 1,
    "COMPRESS_MIN_SIZE": 1400,  # bytes that one packet takes anyway
}
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def create_app(settings: Settings, config: Mapping[str, Any] | None = None) -> Flask:
    """An app that needs no ClickHouse to start: it connects when first asked for something.

    Args:
        settings: where everything is.
        config: values for the names of ``DEFAULTS`` and for ``MAX_EXECUTION_TIME``, stronger than the environment's.

    Raises:
        SettingsError: one of them is not what it takes.
    """
    app = Flask("serve", static_folder=None)
    app.config.from_mapping(DEFAULTS, MAX_EXECUTION_TIME=settings.query_limits["max_execution_time"])
    app.config.from_prefixed_env("SERVE")
    app.config.from_mapping(config or {})
    for name, default in DEFAULTS.items():
        value = app.config[name]
        if isinstance(default, int) and not (isinstance(value, int) and value > 0):
            raise SettingsError(f"SERVE_{name} is {value!r}; it takes a whole number greater than 0.")
    app.config["ADMIN_TOKEN"] = admin_token(settings)
    # One more than allowed: a chunked body is cut there without a word, and must then still be seen to be too large.
    app.config["MAX_CONTENT_LENGTH"] = app.config["MAX_FORM_MEMORY_SIZE"] = app.config["MAX_BODY_BYTES"] + 1
    # No redirects: they would repeat the address, in which a token may stand.
    app.url_map.merge_slashes = False
    app.url_map.strict_slashes = False
    app.json.sort_keys = False  # type: ignore[attr-defined]  # of the default provider, not of its base class
    Compress(app)
    database = Database(settings, app.config["MAX_EXECUTION_TIME"])
    app.extensions |= {
        "settings": settings,
        "database": database,
        "catalogue": Catalogue(database, settings.api_database),
        "tokens": open_tokens(settings),
        "keys": Keys(settings.data_dir / "keys.db"),
        "rate_limiter": RateLimiter(),
        "metrics": Metrics(settings),
        "sql": Sql(settings, app.config["MAX_EXECUTION_TIME"]),
    }
    app.before_request(_begin)
    app.after_request(_finish)
    errors.install(app)
    for blueprint in (routes, datasources, sql, tokens, metrics, documentation):
        app.register_blueprint(blueprint)
    return app


def _begin() -> None:
    g.started_at = time.perf_counter()
    asked_id = request.headers.get("X-Request-Id", "")
    g.request_id = asked_id if _SANE_REQUEST_ID.fullmatch(asked_id) else str(uuid.uuid4())
    # What the log tells of the request; whoever answers it adds what there is to know.
    g.facts = {"endpoint": (request.endpoint or "none").rpartition(".")[2]}
    if refusal := request.environ.get(REFUSAL):
        raise refusal


def _finish(response: Response) -> Response:
    response.headers["X-Request-Id"] = g.request_id
    response.headers.setdefault("Cache-Control", "no-store")
    if code := g.facts.get("db_exception_code"):
        response.headers["X-DB-Exception-Code"] = str(code)
    _allow_origin(response)
    seconds = time.perf_counter() - g.started_at
    current_app.extensions["metrics"].observe(request.method, response.status_code, seconds, g.facts)
    # Never the query string: it may hold a token.
    told = {"method": request.method, "path": request.path, "status": response.status_code}
    log.info("request", extra={"request_id": g.request_id, **told, "duration_ms": round(seconds * 1000, 1), **g.facts})
    return response


def _allow_origin(response: Response) -> None:
    allowed = [origin.strip() for origin in current_app.config["CORS_ORIGINS"].split(",")]
    origin = request.headers.get("Origin", "")
    if "*" in allowed:
        response.headers["Access-Control-Allow-Origin"] = "*"
    else:
        response.vary.add("Origin")
        if origin not in allowed:
            return
        response.headers["Access-Control-Allow-Origin"] = origin
    response.headers["Access-Control-Expose-Headers"] = (
        "ETag, Retry-After, X-DB-Exception-Code, X-Request-Id, "
        "X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset"
    )
    if request.method == "OPTIONS":
        response.headers["Access-Control-Allow-Methods"] = response.headers.get("Allow", "GET, HEAD, OPTIONS, POST")
        response.headers["Access-Control-Allow-Headers"] = (
            "Authorization, Content-Type, Content-Encoding, Idempotency-Key, If-None-Match, X-Request-Id"
        )
        response.headers["Access-Control-Max-Age"] = "86400"
