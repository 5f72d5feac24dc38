"""Who may do what: a bearer token in the header, or ``?token=``."""

from __future__ import annotations

import hmac

from flask import current_app, request

from serve.errors import ApiError


def authorize(scope: str) -> None:
    """Let the request pass if its token has the scope.

    Args:
        scope: for example ``PIPES:READ:events_by_type``.

    Raises:
        ApiError: 401 without a token, 403 when the token is wrong or has no such scope.
    """
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    token = credentials.strip() if scheme.lower() == "bearer" else request.args.get("token", "")
    if not token:
        raise ApiError(
            401, "token_missing", "Send a token: the header Authorization: Bearer <token>, or ?token=<token>."
        )
    # Compared as bytes: compare_digest refuses text that is not ASCII.
    if not hmac.compare_digest(token.encode(errors="replace"), current_app.config["ADMIN_TOKEN"].encode()):
        raise ApiError(403, "token_refused", f"This token is not valid for {scope}.")
