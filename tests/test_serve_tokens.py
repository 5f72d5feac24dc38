"""Tokens: what each may do and no more, gone at once when revoked, never told to anyone."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from clickhouse_connect.driver.client import Client
from conftest import EmbeddedServer, environment
from flask.testing import FlaskClient
from test_serve_server import TOKEN, Api
from werkzeug.test import TestResponse

from serve.app import create_app
from warehouse.connection import admin_token
from warehouse.settings import PROJECT_DIR, Settings
from warehouse.tokens import TokenError, Tokens, open_tokens

HOUR = 3600
EVENT = b'{"event_id": "tokens", "event_type": "t", "event_time": "2024-01-01 00:00:00"}'


@pytest.fixture(scope="module")
def views(settings: Settings, client: Client) -> Iterator[str]:
    api = settings.api_database
    made = {
        "tenant": "select {country:Nullable(String)} as country, {n:Nullable(UInt8)} as n, "
        "{names:Array(String)} as names, {b:Nullable(Bool)} as b",
        "other": "select 1 as one, {x:Nullable(String)} as x",
    }
    for name, sql in made.items():
        client.command(f"create or replace view {api}.{name} as {sql}")
    yield api
    for name in made:
        client.command(f"drop view {api}.{name}")


@pytest.fixture(scope="module")
def web(settings: Settings, views: str) -> FlaskClient:
    return create_app(settings).test_client()


@pytest.fixture(scope="module")
def admin(settings: Settings) -> dict[str, str]:
    return bearer(admin_token(settings))


@pytest.fixture
def tokens(settings: Settings) -> Iterator[Tokens]:
    tokens = open_tokens(settings)
    yield tokens
    for token in tokens.all():
        tokens.revoke(token.name)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def claims(resource: str = "tenant", fixed: Any = None, **others: Any) -> dict[str, Any]:
    scope = {"type": "PIPES:READ", "resource": resource} | ({} if fixed is None else {"fixed_params": fixed})
    return {"exp": int(time.time()) + HOUR, "scopes": [scope], **others}


@pytest.fixture(scope="module")
def sign(settings: Settings) -> Any:
    """Signs as a backend does that knows the ADMIN token."""
    return lambda claims: jwt.encode(claims, admin_token(settings), "HS256")


def code(response: TestResponse, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.json
    return response.json["code"]


def row(response: TestResponse) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    assert response.json
    return response.json["data"][0]


def test_a_static_token_does_what_its_scopes_say_and_no_more(
    web: FlaskClient, tokens: Tokens, admin: dict[str, str]
) -> None:
    reader = bearer(tokens.create("reader", ["PIPES:READ:tenant"]))
    writer = bearer(tokens.create("writer", ["DATASOURCES:APPEND:app_events"]))
    both = bearer(tokens.create("both", ["PIPES:READ:tenant", "DATASOURCES:APPEND:app_events"]))
    everything = bearer(tokens.create("everything", ["ADMIN"]))
    for headers, reads, writes in [
        (reader, 200, 403),
        (writer, 403, 200),
        (both, 200, 200),
        (everything, 200, 200),
        (admin, 200, 200),
    ]:
        assert web.get("/v0/pipes/tenant.json", headers=headers).status_code == reads
        assert web.get("/v0/pipes/tenant", headers=headers).status_code == reads
        assert web.post("/v0/events?name=app_events", data=EVENT, headers=headers).status_code == writes
    for address in ("/v0/pipes/other.json", "/v0/pipes/other", "/v0/pipes/nowhere.json"):
        assert code(web.get(address, headers=reader), 403) == "scope_missing"
    listed = {
        name: {pipe["name"] for pipe in web.get("/v0/pipes", headers=headers).json["pipes"]}  # type: ignore[index]
        for name, headers in [("reader", reader), ("writer", writer), ("everything", everything)]
    }
    assert (listed["reader"], listed["writer"]) == ({"tenant"}, set())
    assert {"tenant", "other"} <= listed["everything"]


def test_a_revoked_token_is_refused_at_once_by_every_worker(settings: Settings, views: str, tokens: Tokens) -> None:
    workers = [create_app(settings).test_client() for _ in range(2)]
    token = bearer(tokens.create("leaked", ["PIPES:READ:tenant"]))
    assert [worker.get("/v0/pipes/tenant.json", headers=token).status_code for worker in workers] == [200, 200]
    tokens.revoke("leaked")
    assert [worker.get("/v0/pipes/tenant.json", headers=token).status_code for worker in workers] == [403, 403]
    again = bearer(tokens.create("leaked", ["PIPES:READ:tenant"]))
    assert workers[0].get("/v0/pipes/tenant.json", headers=token).status_code == 403
    assert workers[0].get("/v0/pipes/tenant.json", headers=again).status_code == 200


def test_where_a_token_is_looked_for(web: FlaskClient, tokens: Tokens) -> None:
    good, bad = tokens.create("good", ["PIPES:READ:tenant"]), "p.unknown"
    address = "/v0/pipes/tenant.json"
    for headers, query, status in [
        ({}, f"?token={good}", 200),
        (bearer(good), f"?token={bad}", 200),  # the header wins
        (bearer(bad), f"?token={good}", 403),
        ({"Authorization": f"bearer  {good} "}, "", 200),
        ({"Authorization": f"Basic {base64.b64encode(good.encode()).decode()}"}, "", 401),
        ({"Authorization": f"Basic {good}"}, f"?token={good}", 200),
        ({"Authorization": good}, "", 401),
        ({"Authorization": "Bearer "}, "", 401),
        ({"Authorization": "Bearer"}, f"?token={good}", 401),
        ({}, "?token=", 401),
        ({}, "", 401),
    ]:
        response = web.get(address + query, headers=headers)
        assert response.status_code == status, (headers, query, response.text)
        assert ("WWW-Authenticate" in response.headers) == (status == 401)
    # In a body it is none of our business.
    assert web.post(address, data={"token": good}).status_code == 401


def test_the_command_tells_what_it_did(settings: Settings, tmp_path: Path) -> None:
    def run(*arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "warehouse.tokens", *arguments],
            env=os.environ | {"DATA_DIR": str(tmp_path)},
            cwd=PROJECT_DIR,
            capture_output=True,
            text=True,
        )
        assert bool(done.returncode) == bool(status), done.stderr
        assert "Traceback" not in done.stderr
        return (done.stderr if status else done.stdout).strip()

    token = run("create", "dashboards", "--scope", "PIPES:READ:events_by_type", "--scope", "PIPES:READ:user_sessions")
    assert len(token.partition(".")[2]) >= 43  # 256 bits
    assert (tmp_path / "tokens.db").stat().st_mode & 0o777 == 0o600
    assert token.encode() not in (tmp_path / "tokens.db").read_bytes()
    assert hashlib.sha256(token.encode()).digest() in (tmp_path / "tokens.db").read_bytes()
    listed = run("list")
    assert "dashboards" in listed
    assert "PIPES:READ:user_sessions" in listed
    assert token not in listed
    assert "already" in run("create", "dashboards", "--scope", "ADMIN", status=1)
    assert "dashboards" in run("revoke", "dashboard", status=1)
    assert "no scope" in run("create", "b", "--scope", "PIPES:WRITE:x", status=1)
    assert "PIPES:READ:<name>" in run("create", "b", "--scope", "PIPES:WRITE:x", status=1)
    run("revoke-jwt", "app-7")
    assert "app-7" in run("list")
    run("restore-jwt", "app-7")
    assert "app-7" in run("restore-jwt", "app-7", status=1)
    run("revoke", "dashboards")
    assert run("list") == ""


@pytest.mark.parametrize(
    "scope", ["", "admin", "PIPES:READ", "PIPES:READ:", "PIPES:READ:*", "PIPES:READ:a b", "READ:x", "PIPES:READ:x:y"]
)
def test_what_is_no_scope_makes_no_token(tokens: Tokens, scope: str) -> None:
    with pytest.raises(TokenError, match="DATASOURCES:APPEND:<name>"):
        tokens.create("none", [scope])
    with pytest.raises(TokenError, match="ADMIN"):
        tokens.create("none", [])
    assert tokens.all() == []


def test_lookups_go_on_while_others_write(tokens: Tokens) -> None:
    """Readers and writers of one file in many threads: none fails, none sees half of a change."""
    kept = tokens.create("kept", ["ADMIN"])
    failures: list[BaseException] = []
    done = threading.Event()

    def look() -> None:
        try:
            while not done.is_set():
                assert tokens.find(kept)
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=look) for _ in range(8)]
    for reader in readers:
        reader.start()
    for number in range(30):
        tokens.create(f"t{number}", ["ADMIN"])
        tokens.revoke(f"t{number}")
    done.set()
    for reader in readers:
        reader.join()
    assert not failures


def test_tokens_that_cannot_be_read_let_nobody_in(settings: Settings, views: str, tmp_path: Path) -> None:
    path = tmp_path / "tokens.db"
    app = create_app(settings)
    app.extensions["tokens"] = Tokens(path)
    token = bearer(app.extensions["tokens"].create("a", ["PIPES:READ:tenant"]))
    web = app.test_client()
    assert web.get("/v0/pipes/tenant.json", headers=token).status_code == 200
    path.unlink()
    response = web.get("/v0/pipes/tenant.json", headers=token)
    assert code(response, 503) == "unavailable"
    assert str(path) not in response.text
    path.write_bytes(b"no database at all" * 1000)
    assert web.get("/v0/pipes/tenant.json", headers=token).status_code == 503


def test_a_jwt_reads_its_endpoints(web: FlaskClient, sign: Any) -> None:
    token = sign(claims())
    assert web.get("/v0/pipes/tenant.json", headers=bearer(token)).status_code == 200
    assert web.get(f"/v0/pipes/tenant.json?token={token}").status_code == 200
    assert code(web.get("/v0/pipes/other.json", headers=bearer(token)), 403) == "scope_missing"
    assert code(web.post("/v0/events?name=app_events", data=EVENT, headers=bearer(token)), 403) == "scope_missing"
    assert code(web.get("/v0/tokens", headers=bearer(token)), 403) == "scope_missing"
    append = {"exp": time.time() + HOUR, "scopes": [{"type": "DATASOURCES:APPEND", "resource": "app_events"}]}
    assert web.post("/v0/events?name=app_events", data=EVENT, headers=bearer(sign(append))).status_code == 200


def test_fixed_parameters_win_over_every_way_to_give_another(web: FlaskClient, sign: Any) -> None:
    headers = bearer(sign(claims(fixed={"country": "US", "n": 7, "names": ["a,b", "c"], "b": True})))
    address = "/v0/pipes/tenant.json"
    for response in [
        web.get(address, headers=headers),
        web.get(f"{address}?country=ES&n=1", headers=headers),
        web.get(f"{address}?country=ES&country=FR&country=", headers=headers),
        web.get(f"{address}?country=&n=&names=", headers=headers),
        web.get(f"{address}?n=no+number", headers=headers),
        web.get(f"{address}?COUNTRY=ES&country%00=ES&country[]=ES", headers=headers),
        web.post(address, data={"country": "ES", "names": "d"}, headers=headers),
        web.post(f"{address}?country=ES", json={"country": "FR", "n": None, "names": [], "b": False}, headers=headers),
        web.post(address, json={"country": ["ES", "FR"]}, headers=headers),
    ]:
        assert row(response) == {"country": "US", "n": 7, "names": ["a,b", "c"], "b": True}


@pytest.mark.parametrize(
    "fixed",
    [
        {"tenant_id": "7"},  # the endpoint has no such parameter
        {"country": "US", "tenant_id": "7"},
        {"country": ""},
        {"country": None},
        {"country": []},
        {"country": [""]},
        {"country": {"a": 1}},
        {"country": ["US", "ES"]},
        {"names": []},
        {"names": ","},
        {"names": [None]},
        {"n": "seven"},
        {"n": 256},
        {"b": 2},
        ["country"],
        "country",
    ],
)
def test_a_fixed_parameter_that_cannot_be_obeyed_gives_no_answer(web: FlaskClient, sign: Any, fixed: Any) -> None:
    headers = bearer(sign(claims(fixed=fixed)))
    for query in ("", "?country=ES&n=1"):
        response = web.get(f"/v0/pipes/tenant.json{query}", headers=headers)
        assert response.status_code == 403, response.text


def test_a_view_that_loses_a_fixed_parameter_gives_no_answer(
    web: FlaskClient, sign: Any, client: Client, views: str
) -> None:
    headers = bearer(sign(claims("losing", {"country": "US"})))
    client.command(f"create or replace view {views}.losing as select {{country:Nullable(String)}} as country")
    assert row(web.get("/v0/pipes/losing.json", headers=headers)) == {"country": "US"}
    # Replaced within the second for which the catalogue is kept.
    client.command(f"create or replace view {views}.losing as select 'all of them' as country")
    response = web.get("/v0/pipes/losing.json", headers=headers)
    client.command(f"drop view {views}.losing")
    assert code(response, 403) == "token_unusable"


def unsigned(header: dict[str, Any], payload: dict[str, Any], signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), json.dumps(payload).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def test_only_hs256_with_the_admin_token_is_a_signature(web: FlaskClient, settings: Settings) -> None:
    key = admin_token(settings)
    good = claims()
    whole = jwt.encode(good, key, "HS256")

    def signed(algorithm: str, digest: str) -> str:
        head_and_body = unsigned({"alg": algorithm}, good)[:-1]
        return unsigned({"alg": algorithm}, good, hmac.digest(key.encode(), head_and_body.encode(), digest))

    head, body, signature = whole.split(".")
    forged = {
        "another key": jwt.encode(good, "x" * 43, "HS256"),
        "no key": unsigned({"alg": "HS256", "typ": "JWT"}, good, hmac.digest(b"", f"{head}.{body}".encode(), "sha256")),
        "none": unsigned({"alg": "none", "typ": "JWT"}, good),
        "None": unsigned({"alg": "None", "typ": "JWT"}, good),
        "none, signed": unsigned({"alg": "none"}, good, base64.urlsafe_b64decode(signature + "=")),
        "HS512": signed("HS512", "sha512"),
        "HS384": signed("HS384", "sha384"),
        "RS256": signed("RS256", "sha256"),
        "other claims": f"{head}.{unsigned({}, claims('other')).split('.')[1]}.{signature}",
        "signature cut": whole[:-2],
        "no signature": f"{head}.{body}.",
        "not JSON": "a.b.c",
        "dots": "..",
        "a list": unsigned({"alg": "HS256"}, [], b"x"),  # type: ignore[arg-type]
    }
    for how, token in forged.items():
        assert code(web.get("/v0/pipes/tenant.json", headers=bearer(token)), 403) == "token_refused", how
    for token in (whole, signed("HS256", "sha256")):
        assert web.get("/v0/pipes/tenant.json", headers=bearer(token)).status_code == 200


@pytest.mark.parametrize(
    "changed",
    [
        {"exp": None},
        {"exp": "soon"},
        {"exp": int(time.time()) - 1},
        {"exp": []},
        {"nbf": int(time.time()) + HOUR},
        {"scopes": None},
        {"scopes": []},
        {"scopes": "ADMIN"},
        {"scopes": [{"type": "ADMIN"}]},
        {"scopes": [{"type": "ADMIN", "resource": "tenant"}]},
        {"scopes": [{"type": ["PIPES:READ"], "resource": "tenant"}]},
        {"scopes": [{"type": "PIPES:READ"}]},
        {"scopes": [{"type": "PIPES:READ", "resource": "*"}]},
        {"scopes": [{"type": "PIPES:READ", "resource": "tenant", "filter": "country = 'US'"}]},
        {"scopes": [{"type": "PIPES:READ", "resource": "tenant"}] * 2},
        {"scopes": [{"type": "DATASOURCES:READ", "resource": "app_events", "fixed_params": {"a": "b"}}]},
        {"limits": {"rps": "10"}},
        {"limits": 10},
        {"name": 7},
    ],
)
def test_a_jwt_whose_claims_are_not_understood_is_refused(web: FlaskClient, sign: Any, changed: dict[str, Any]) -> None:
    token = sign({name: value for name, value in (claims() | changed).items() if value is not None})
    assert code(web.get("/v0/pipes/tenant.json", headers=bearer(token)), 403) == "token_refused"


def test_one_jwt_is_revoked_and_the_others_are_not(web: FlaskClient, sign: Any, tokens: Tokens) -> None:
    one, same_name, other = (
        bearer(sign(claims(jti=jti, name=name))) for jti, name in (("1", "ann"), ("2", "ann"), ("3", "bob"))
    )

    def statuses() -> list[int]:
        return [web.get("/v0/pipes/tenant.json", headers=it).status_code for it in (one, same_name, other)]

    assert statuses() == [200, 200, 200]
    tokens.revoke_jwt("1")
    assert statuses() == [403, 200, 200]
    tokens.revoke_jwt("ann")
    assert statuses() == [403, 403, 200]
    tokens.restore_jwt("ann")
    tokens.restore_jwt("1")
    assert statuses() == [200, 200, 200]


def test_another_admin_token_ends_every_jwt(settings: Settings, views: str, web: FlaskClient, sign: Any) -> None:
    token = bearer(sign(claims()))
    rotated = create_app(settings)
    rotated.config["ADMIN_TOKEN"] = "r" * 43
    assert web.get("/v0/pipes/tenant.json", headers=token).status_code == 200
    assert code(rotated.test_client().get("/v0/pipes/tenant.json", headers=token), 403) == "token_refused"


def test_a_short_admin_token_signs_nothing(settings: Settings, views: str) -> None:
    app = create_app(settings)
    app.config["ADMIN_TOKEN"] = key = "guessable"  # noqa: S105 - that is the point
    web = app.test_client()
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        token = jwt.encode(claims(), key, "HS256")
    assert code(web.get("/v0/pipes/tenant.json", headers=bearer(token)), 403) == "token_refused"
    asked = web.post(f"/v0/tokens?expiration_time={time.time() + HOUR:.0f}", json=claims(), headers=bearer(key))
    assert code(asked, 403) == "jwt_key_short"
    assert "ADMIN_TOKEN" in asked.text


def test_a_jwt_is_minted_as_its_clients_ask_for_it(web: FlaskClient, admin: dict[str, str], tokens: Tokens) -> None:
    expires_at = int(time.time()) + HOUR
    body = {"name": "jwt", "scopes": claims(fixed={"country": "US"})["scopes"], "limits": {"rps": 100}}
    for address in ("/v0/tokens/", "/v0/tokens"):
        minted = web.post(f"{address}?expiration_time={expires_at}&from=ts-sdk", json=body, headers=admin)
        assert minted.status_code == 200, minted.text
        assert minted.json
        response = web.get("/v0/pipes/tenant.json?country=ES", headers=bearer(minted.json["token"]))
        assert row(response)["country"] == "US"
        assert response.headers["X-RateLimit-Limit"] == "100"
        decoded = jwt.decode(minted.json["token"], options={"verify_signature": False})
        assert (decoded["name"], decoded["exp"]) == ("jwt", expires_at)
        tokens.revoke_jwt(minted.json["jti"])
        assert web.get("/v0/pipes/tenant.json", headers=bearer(minted.json["token"])).status_code == 403
    query = {"name": "in the query", "expiration_time": expires_at}
    minted = web.post("/v0/tokens/", query_string=query, data=json.dumps(body), headers=admin)
    assert minted.json
    assert jwt.decode(minted.json["token"], options={"verify_signature": False})["name"] == "in the query"


@pytest.mark.parametrize(
    ("query", "body", "word"),
    [
        ("", {"scopes": [{"type": "PIPES:READ", "resource": "a"}]}, "expiration_time"),
        ("expiration_time=1", {"scopes": [{"type": "PIPES:READ", "resource": "a"}]}, "expiration_time"),
        ("expiration_time=tomorrow", {"scopes": [{"type": "PIPES:READ", "resource": "a"}]}, "expiration_time"),
        ("expiration_time=1893456000000", {"scopes": [{"type": "PIPES:READ", "resource": "a"}]}, "expiration_time"),
        ("expiration_time=-1", {"scopes": [{"type": "PIPES:READ", "resource": "a"}]}, "expiration_time"),
        (f"expiration_time={'9' * 5000}", {"scopes": [{"type": "PIPES:READ", "resource": "a"}]}, "expiration_time"),
        ("expiration_time=1893456000", {}, "scopes"),
        ("expiration_time=1893456000", [], "JSON object"),
        ("expiration_time=1893456000", {"scopes": [{"type": "ADMIN", "resource": "a"}]}, "PIPES:READ"),
        (
            "expiration_time=1893456000",
            {"scopes": [{"type": "PIPES:READ", "resource": "a", "fixed_params": {"country": None}}]},
            "country",
        ),
        ("expiration_time=1893456000", {"scopes": [{"type": "PIPES:READ", "resource": "a"}], "limits": 5}, "rps"),
    ],
)
def test_what_could_not_be_used_is_not_minted(
    web: FlaskClient, admin: dict[str, str], query: str, body: Any, word: str
) -> None:
    refused = web.post(f"/v0/tokens/?{query}", json=body, headers=admin)
    assert refused.status_code == 400, refused.text
    assert word in refused.text
    assert "9" * 100 not in refused.text


def test_only_admin_manages_tokens(web: FlaskClient, admin: dict[str, str], tokens: Tokens) -> None:
    reader = bearer(tokens.create("reader", ["PIPES:READ:tenant"]))
    body = {"scopes": claims()["scopes"]}
    for headers, status in (({}, 401), (reader, 403)):
        assert web.post("/v0/tokens/?expiration_time=1893456000", json=body, headers=headers).status_code == status
        assert web.get("/v0/tokens", headers=headers).status_code == status
        assert web.delete("/v0/tokens/reader", headers=headers).status_code == status
    listed = web.get("/v0/tokens", headers=admin).json
    assert listed
    assert [(it["name"], it["scopes"]) for it in listed["tokens"]] == [
        ("reader", [{"type": "PIPES:READ", "resource": "tenant"}])
    ]
    assert web.delete("/v0/tokens/reader", headers=admin).status_code == 200
    assert web.get("/v0/pipes/tenant.json", headers=reader).status_code == 403
    assert code(web.delete("/v0/tokens/reader", headers=admin), 404) == "token_unknown"


def test_a_limit_holds_between_threads_and_is_told(settings: Settings, views: str, sign: Any) -> None:
    app = create_app(settings)
    limit = 20
    headers = bearer(sign(claims(name="limited", limits={"rps": limit})))
    answers: list[tuple[int, dict[str, str]]] = []

    def ask() -> None:
        for _ in range(10):
            response = app.test_client().get("/v0/pipes/tenant", headers=headers)
            answers.append((response.status_code, dict(response.headers)))

    started_at = time.time()
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = int(time.time()) - int(started_at) + 1
    statuses = Counter(status for status, _ in answers)
    assert set(statuses) <= {200, 429}
    # As many as the limit in each second that they were sent in, and none was refused before.
    assert limit <= statuses[200] <= limit * seconds
    for status, told in answers:
        assert told["X-RateLimit-Limit"] == str(limit)
        assert told["X-RateLimit-Reset"] == "1"
        assert 0 <= int(told["X-RateLimit-Remaining"]) < limit
        assert ("Retry-After" in told) == (status == 429)


def test_over_the_limit_another_token_is_not_held_up(web: FlaskClient, sign: Any) -> None:
    one, same_name, other, unlimited = (
        bearer(sign(claims(jti=jti, name=name, limits={"rps": rps})))
        for jti, name, rps in (("1", "one", 1), ("2", "one", 1), ("3", "other", 1), ("4", "unlimited", 0))
    )
    deadline = time.monotonic() + 30
    # Two requests may lie on both sides of a second's end.
    while (refused := [web.get("/v0/pipes/tenant", headers=it) for it in (one, same_name)][1]).status_code == 200:
        assert time.monotonic() < deadline
    assert code(refused, 429) == "rate_limited"
    assert refused.headers["Retry-After"] == "1"
    assert web.get("/v0/pipes/tenant", headers=other).status_code == 200
    for _ in range(5):
        response = web.get("/v0/pipes/tenant", headers=unlimited)
        assert response.status_code == 200
        assert "X-RateLimit-Limit" not in response.headers


def test_the_file_is_readable_by_its_owner_only_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        tokens = Tokens(tmp_path / "tokens.db")
    finally:
        os.umask(before)
    tokens.create("a", ["ADMIN"])
    assert (tmp_path / "tokens.db").stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(tmp_path / "tokens.db") as database:
        assert database.execute("pragma journal_mode").fetchone() == ("delete",)


def test_no_token_is_told_to_anyone(server: EmbeddedServer, client: Client, views: str, tmp_path: Path) -> None:
    """Not in the log, not in an answer's head or body, whatever goes wrong and wherever the token stood."""
    client.command(f"create or replace view {views}.failing as select throwIf(1) as a, {{x:Nullable(String)}} as x")
    api = Api({**server.environ, "API_PORT": environment(tmp_path)["API_PORT"]}, tmp_path / "api.log")
    secrets = [
        TOKEN,
        open_tokens(server.settings).create("told", ["PIPES:READ:tenant", "PIPES:READ:failing"]),
        jwt.encode(claims(), TOKEN, "HS256"),
        jwt.encode(claims() | {"exp": 1}, TOKEN, "HS256"),
        jwt.encode(claims(fixed={"nothing": "1"}), TOKEN, "HS256"),
        jwt.encode(claims(limits={"rps": 1}), TOKEN, "HS256"),
        "p.a-wrong-one-that-is-somebody-elses",
    ]
    requests = [
        ("GET", "/v0/pipes/tenant.json", None),
        ("GET", "/v0/pipes/tenant.json?n=none", None),
        ("GET", "/v0/pipes/failing.json", None),
        ("GET", "/v0/pipes/nowhere.xml", None),
        ("GET", "//v0/pipes", None),
        ("GET", "/nowhere/", None),
        ("DELETE", "/v0/pipes/tenant.json", None),
        ("POST", "/v0/events?name=app_events", b"{"),
        ("POST", "/v0/events?name=nowhere", b"{"),
        ("POST", "/v0/events?name=app_events&format=json", b" " * 2_000_000),
        ("POST", "/v0/pipes/tenant.json", b"[1"),
        ("POST", "/v0/tokens/?expiration_time=1", b"{}"),
        ("DELETE", "/v0/tokens/none", None),
        ("GET", "/v0/sql?q=select+none", None),
    ]
    api.start()
    try:
        answers = []
        for secret in secrets:
            for method, target, body in requests:
                query = f"{target}{'&' if '?' in target else '?'}token={secret}"
                headers = {"Content-Type": "application/json", "Referer": f"http://127.0.0.1/?token={secret}"}
                for where, sent in ((query, headers), (target, {**headers, "Authorization": f"Bearer {secret}"})):
                    status, told, content = api.request(method, where, body, sent)
                    answers.append((where, status, f"{told}{content.decode(errors='replace')}"))
            for broken in (
                f"GET /v0/pipes?token={secret} HTTP/9\r\n\r\n",
                f"GET /v0/pipes?token={secret} NOTHING\r\nAuthorization: Bearer {secret}\r\n\r\n",
                f"GET /v0/pipes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n" + "X: y\r\n" * 1000 + "\r\n",
            ):
                with socket.create_connection(("127.0.0.1", api.port), timeout=10) as caller:
                    caller.sendall(broken.encode())
                    answers.append((broken, 0, caller.recv(10_000).decode(errors="replace")))
    finally:
        api.stop()
        client.command(f"drop view {views}.failing")
    log = api.log.read_text()
    assert "throwIf" in log  # the failures themselves are there
    assert {200, 400, 403, 404, 405, 413, 429, 500} <= {status for _, status, _ in answers}
    for secret in secrets:
        assert secret not in log
        for where, status, told in answers:
            assert secret not in told, (where, status)
