"""One shape for whatever fails: ``{"error", "code", "documentation"}``, with ``"parameter"`` where one is at fault."""

from __future__ import annotations

import logging

from flask import Flask, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException

log = logging.getLogger("serve")


class ApiError(Exception):
    """A failure that the caller is told about.

    Args:
        status: the HTTP status.
        code: stable name of the failure, for programs.
        error: one sentence that the caller can act on; holds no SQL, address or credential.
        parameter: the request's parameter at fault.
        retry_after: seconds after which the same request may succeed.
    """

    def __init__(
        self, status: int, code: str, error: str, *, parameter: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(error)
        self.status = status
        self.code = code
        self.error = error
        self.parameter = parameter
        self.retry_after = retry_after


def install(app: Flask) -> None:
    """Answer every failure of the app in the one shape."""
    app.register_error_handler(ApiError, _answer)
    app.register_error_handler(HTTPException, _answer_http)
    app.register_error_handler(Exception, _answer_unexpected)


def _answer(error: ApiError) -> Response:
    body = {"error": error.error, "code": error.code, "documentation": request.host_url + "docs"}
    if error.parameter is not None:
        body["parameter"] = error.parameter
    response = jsonify(body)
    response.status_code = error.status
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response


_HTTP_ERRORS = {
    400: ("bad_request", "The request cannot be read; send well-formed HTTP with UTF-8 text."),
    404: ("not_found", "There is nothing at this address; GET /v0/pipes lists the endpoints."),
    405: ("method_not_allowed", "This address does not take that method; the Allow header names those it takes."),
    413: ("body_too_large", "The body is too large; send it in smaller parts."),
}


def _answer_http(error: HTTPException) -> Response:
    status = error.code or 500
    code, sentence = _HTTP_ERRORS.get(status, ("http_error", error.name))
    response = _answer(ApiError(status, code, sentence))
    for name, value in error.get_headers():
        if name.lower() not in ("content-type", "content-length"):
            response.headers[name] = value
    return response


def _answer_unexpected(error: Exception) -> Response:
    log.exception("unexpected", extra={"request_id": g.request_id}, exc_info=error)
    return _answer(
        ApiError(500, "internal", f"Something failed here; the log tells what, under request id {g.request_id}.")
    )
