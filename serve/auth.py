"""Who may do what: a static token or a JWT, in the header or as ``?token=``. ``docs/tokens.md`` is for its users."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt
from flask import Response, after_this_request, current_app, g, request

from serve.errors import ApiError
from warehouse.tokens import ADMIN, KINDS, RESOURCE, Tokens

ALGORITHM = "HS256"
# The key of the JWTs is the ADMIN token: a shorter one could be guessed by whoever holds a JWT, at leisure.
MIN_KEY_BYTES = 32

FixedParams = Mapping[str, Any]


@dataclass(frozen=True)
class Access:
    """What the request's token may do.

    Attributes:
        name: the token's, for people.
        scopes: such as ``PIPES:READ:events_by_type`` → the parameters that the token fixes there.
        rps: requests a second that it is good for; None for any number.
        ids: what a JWT can be revoked by.
    """

    name: str
    scopes: Mapping[str, FixedParams]
    rps: int | None = None
    ids: tuple[str, ...] = field(default=())

    def allows(self, scope: str) -> bool:
        return ADMIN in self.scopes or scope in self.scopes


def authorize(scope: str) -> FixedParams:
    """Let the request pass if its token has the scope.

    Args:
        scope: for example ``PIPES:READ:events_by_type``.

    Returns:
        The parameters that the token fixes, stronger than whatever the request gives; a caller that reads data must
        obey them. None are fixed but by a JWT for ``PIPES:READ``.

    Raises:
        ApiError: 401 without a token, 403 when the token is wrong or has no such scope, 429 over its limit.
    """
    access = identify()
    if not access.allows(scope):
        raise ApiError(403, "scope_missing", f"This token is not valid for {scope}.")
    return access.scopes.get(scope, {})


def identify() -> Access:
    """What the request's token may do; the request is counted against the token's limit, once.

    Raises:
        ApiError: as `authorize`.
    """
    if "access" not in g:
        access = _access(_token())
        if access.rps is not None:
            _count(access.name, access.rps)
        g.access = access
    found: Access = g.access
    return found


def _token() -> str:
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    token = credentials.strip() if scheme.lower() == "bearer" else request.args.get("token", "")
    if not token:
        after_this_request(_challenge)
        raise ApiError(
            401, "token_missing", "Send a token: the header Authorization: Bearer <token>, or ?token=<token>."
        )
    return token


def _challenge(response: Response) -> Response:
    response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _access(token: str) -> Access:
    # Compared as bytes: compare_digest refuses text that is not ASCII.
    if hmac.compare_digest(token.encode(errors="replace"), current_app.config["ADMIN_TOKEN"].encode()):
        return Access(ADMIN, {ADMIN: {}})
    tokens: Tokens = current_app.extensions["tokens"]
    try:
        if token.count(".") == 2:
            access = _jwt_access(token)
            if not tokens.is_revoked(*access.ids):
                return access
        elif found := tokens.find(token):
            return Access(found.name, {scope: {} for scope in found.scopes})
    except sqlite3.Error:
        current_app.logger.exception("tokens cannot be read", extra={"request_id": g.request_id})
        raise ApiError(503, "unavailable", "Tokens cannot be checked now; ask again later.", retry_after=2) from None
    raise _refusal("This token is not known here, or it was revoked")


def _jwt_access(token: str) -> Access:
    try:
        claims = jwt.decode(token, _key(), algorithms=[ALGORITHM], options={"require": ["exp"]})
    except jwt.ExpiredSignatureError:
        raise _refusal("This JWT has expired") from None
    except jwt.MissingRequiredClaimError:
        raise _refusal("This JWT has no exp: the Unix time in seconds at which it expires") from None
    except (jwt.InvalidTokenError, ValueError):  # also a key that is too short
        raise _refusal(f"This JWT is not one that was signed with {ALGORITHM} and the ADMIN token") from None
    try:
        return access_of(claims)
    except ValueError as error:
        raise _refusal(f"This JWT cannot be used: {error}") from None


def _refusal(sentence: str) -> ApiError:
    return ApiError(403, "token_refused", f"{sentence}.")


def sign(claims: Mapping[str, Any]) -> str:
    """The JWT with these claims.

    Raises:
        ApiError: 403 when the ADMIN token is too short to sign with.
    """
    try:
        key = _key()
    except ValueError as error:
        raise ApiError(403, "jwt_key_short", f"{error}.") from None
    return jwt.encode(dict(claims), key, ALGORITHM)


def _key() -> bytes:
    key: bytes = current_app.config["ADMIN_TOKEN"].encode()
    if len(key) < MIN_KEY_BYTES:
        raise ValueError(
            f"JWTs are signed with the ADMIN token, and this server's has fewer than {MIN_KEY_BYTES} bytes; "
            "set ADMIN_TOKEN to a long random one"
        )
    return key


def access_of(claims: Mapping[str, Any]) -> Access:
    """What a JWT with these claims may do; what is not understood is refused, as it may be a restriction.

    Raises:
        ValueError: a sentence without its full stop: a claim that is not what it should be.
    """
    scopes: dict[str, FixedParams] = {}
    given = claims.get("scopes")
    if not isinstance(given, list) or not given:
        raise ValueError('its scopes are a list such as [{"type": "PIPES:READ", "resource": "events_by_type"}]')
    for scope in given:
        if not isinstance(scope, dict) or scope.get("type") not in KINDS:
            raise ValueError(f"the type of a scope is one of {', '.join(KINDS)}")
        kind, resource, fixed = scope["type"], scope.get("resource"), scope.get("fixed_params")
        if not isinstance(resource, str) or not RESOURCE.fullmatch(resource):
            raise ValueError("the resource of a scope is the name of an endpoint or of a data source")
        if unknown := scope.keys() - {"type", "resource", "fixed_params"}:
            raise ValueError(f"a scope has type, resource and fixed_params, not {', '.join(sorted(unknown))}")
        if not isinstance(fixed, dict | None) or (fixed and kind != "PIPES:READ"):
            raise ValueError("fixed_params are an object of parameters and their values, in a scope PIPES:READ")
        name = f"{kind}:{resource}"
        if name in scopes:
            raise ValueError(f"{name} stands in its scopes twice")
        scopes[name] = {parameter: _texts(parameter, value) for parameter, value in (fixed or {}).items()}
    limits = claims.get("limits", {})
    rps = limits.get("rps", 0) if isinstance(limits, dict) else None
    if not isinstance(rps, int) or isinstance(rps, bool):
        raise ValueError('its limits are such as {"rps": 10}')
    named = [claims[claim] for claim in ("jti", "name") if claims.get(claim)]
    if not all(isinstance(it, str) for it in named):
        raise ValueError("its jti and name are text")
    name = named[-1] if named else hashlib.sha256(repr(claims).encode(errors="replace")).hexdigest()
    return Access(name, scopes, rps if rps > 0 else None, tuple(named))


def _texts(parameter: str, value: object) -> str | list[str]:
    """A fixed value as a request would give it: text, or a list of texts."""
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, (str, int, float)) for item in items):
        raise ValueError(f"its fixed parameter {parameter} is text, a number, true, false or a list of them")
    texts = [item if isinstance(item, str) else json.dumps(item) for item in items]
    return texts if isinstance(value, list) else texts[0]


class RateLimiter:
    """Requests counted by token and second; safe between threads, and each worker counts its own."""

    def __init__(self) -> None:
        self._second = 0
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def count(self, name: str) -> int:
        """How many requests this token has made in this second, this one included."""
        second = int(time.time())
        with self._lock:
            if second != self._second:
                self._second = second
                self._counts.clear()
            self._counts[name] += 1
            return self._counts[name]


def _count(name: str, rps: int) -> None:
    """Count the request, and tell the limit in the answer's headers.

    Raises:
        ApiError: 429 over the limit.
    """
    limiter: RateLimiter = current_app.extensions["rate_limiter"]
    used = limiter.count(name)

    def tell(response: Response) -> Response:
        # The count starts anew with each whole second, so one second is always long enough to wait.
        limit = {"Limit": rps, "Remaining": max(rps - used, 0), "Reset": 1}
        response.headers.update({f"X-RateLimit-{what}": str(value) for what, value in limit.items()})
        return response

    after_this_request(tell)
    if used > rps:
        raise ApiError(
            429, "rate_limited", f"This token is good for {rps} requests a second; ask again in 1 s.", retry_after=1
        )


def new_jti() -> str:
    """A name for one JWT, never given twice."""
    return secrets.token_hex(16)
