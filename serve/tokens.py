"""Tokens over HTTP: JWTs are minted, static tokens listed and revoked, with the scope ADMIN."""

from __future__ import annotations

import time
from typing import Any

from flask import Blueprint, current_app, jsonify, request
from flask.typing import ResponseReturnValue

from serve.auth import access_of, authorize, new_jti, sign
from serve.errors import ApiError
from warehouse.tokens import ADMIN, TokenError, Tokens

tokens = Blueprint("tokens", __name__, url_prefix="/v0/tokens")

# Of seconds; a Unix time in milliseconds is later.
LAST_EXPIRATION = 2**32 - 1


@tokens.post("", strict_slashes=False)
def mint() -> ResponseReturnValue:
    """A JWT with the scopes and limits of the body; it needs no record here."""
    authorize(ADMIN)
    body = request.get_json(force=True, silent=True)
    if not isinstance(body, dict):
        raise ApiError(400, "body_invalid", 'The body is a JSON object such as {"scopes": […], "limits": {"rps": 10}}.')
    now = int(time.time())
    expires_at = request.args.get("expiration_time", body.get("expiration_time"))
    text = str(expires_at)
    if not (text.isdecimal() and text.isascii() and now < int(text[:11]) <= LAST_EXPIRATION):
        raise ApiError(
            400,
            "parameter_invalid",
            "expiration_time is a Unix time in seconds that is still to come; static tokens, which do not expire, are "
            "made with the command python -m warehouse.tokens create.",
            parameter="expiration_time",
        )
    claims: dict[str, Any] = {"jti": new_jti(), "iat": now, "exp": int(text)}
    claims |= {
        claim: value
        for claim, value in (
            ("name", request.args.get("name") or body.get("name")),
            ("scopes", body.get("scopes")),
            ("limits", body.get("limits")),
        )
        if value is not None
    }
    try:
        access_of(claims)
    except ValueError as error:
        raise ApiError(400, "token_invalid", f"Such a JWT could not be used: {error}.") from None
    return jsonify({"token": sign(claims), "jti": claims["jti"]})


@tokens.get("", strict_slashes=False)
def list_tokens() -> ResponseReturnValue:
    """The static tokens, without their secrets."""
    authorize(ADMIN)
    return jsonify({"tokens": _described()})


@tokens.get("/<name>")
def describe_token(name: str) -> ResponseReturnValue:
    """One static token, without its secret."""
    authorize(ADMIN)
    for described in _described():
        if described["name"] == name:
            return jsonify(described)
    raise ApiError(404, "token_unknown", "There is no static token of that name; GET /v0/tokens lists them.")


@tokens.delete("/<name>")
def revoke(name: str) -> ResponseReturnValue:
    """Revoke a static token."""
    authorize(ADMIN)
    try:
        _tokens().revoke(name)
    except TokenError as error:
        raise ApiError(404, "token_unknown", str(error)) from None
    return jsonify({"ok": True})


def _described() -> list[dict[str, Any]]:
    return [
        {"name": token.name, "scopes": [_scope(scope) for scope in token.scopes], "created_at": token.created_at}
        for token in _tokens().all()
    ]


def _scope(scope: str) -> dict[str, str]:
    kind, _, resource = scope.rpartition(":")
    return {"type": kind, "resource": resource} if kind else {"type": scope}


def _tokens() -> Tokens:
    found: Tokens = current_app.extensions["tokens"]
    return found
