"""SQL over HTTP: what an analyst may read, what a query over an endpoint's answer may not, and who holds them to it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from serve.app import create_app
from serve.sql import MAX_ASKED_BYTES
from warehouse.connection import admin_token, connect
from warehouse.settings import Settings
from warehouse.tokens import open_tokens

EVENT = '{"event_id": "sql-1", "event_type": "sql_test", "event_time": "2025-05-11 22:01:58", "user_id": "u1"}'


@pytest.fixture(scope="module")
def views(settings: Settings, client: Client) -> Iterator[str]:
    """Endpoints made for these tests: one that a token may read, and one that it may not."""
    api = settings.api_database
    made = {
        "letters": "select char(97 + number)::String as letter, number as `the number`, "
        "if(number = 2, null, 'it\\'s\\t\\\\N') as text, [number, 1] as list, "
        "toDateTime64('2025-01-01 00:00:00.123', 3, 'UTC') as at "
        "from numbers(10) where {least:Nullable(UInt64)} is null or number >= {least:Nullable(UInt64)}",
        "forbidden": "select 'secret' as secret, {x:Nullable(String)} as x",
        "many": "select number, toString(number) as text from numbers(assumeNotNull({rows:UInt64}))",
    }
    for name, sql in made.items():
        client.command(f"create or replace view {api}.{name} sql security definer as {sql}")
    client.raw_insert(
        f"{settings.database}.landing",
        ["line", "line_number", "import_id", "source"],
        insert_block=json.dumps({"line": EVENT, "line_number": 1, "import_id": "sql", "source": "test"}).encode(),
        fmt="JSONEachRow",
    )
    yield api
    for name in made:
        client.command(f"drop view {api}.{name}")


@pytest.fixture(scope="module")
def web(settings: Settings, views: str) -> FlaskClient:
    return create_app(settings).test_client()


@pytest.fixture(scope="module")
def admin(settings: Settings) -> dict[str, str]:
    return {"Authorization": f"Bearer {admin_token(settings)}"}


@pytest.fixture(scope="module")
def reader(settings: Settings) -> dict[str, str]:
    """A token for the endpoints ``letters`` and ``many`` alone."""
    token = open_tokens(settings).create("sql-reader", ["PIPES:READ:letters", "PIPES:READ:many"])
    return {"Authorization": f"Bearer {token}"}


def data(response: TestResponse) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.json
    return response.json["data"]


def refused(response: TestResponse, status: int, code: str) -> str:
    assert response.json
    assert (response.status_code, response.json["code"]) == (status, code), response.text
    error: str = response.json["error"]
    assert "127.0.0.1" not in error
    assert "version" not in error
    assert "parseQueryToJSON" not in error
    return error


COUNT = "select count() as n from app_events where event_id = 'sql-1'"


def test_a_query_in_every_way_that_clients_send_it(web: FlaskClient, admin: dict[str, str]) -> None:
    form = "application/x-www-form-urlencoded"
    for response in (
        web.get("/v0/sql", query_string={"q": COUNT}, headers=admin),
        web.get("/v0/sql", query_string={"q": f"{COUNT} FORMAT JSON"}, headers=admin),
        web.post("/v0/sql", query_string={"q": COUNT}, headers=admin),
        web.post("/v0/sql", data={"q": COUNT}, headers=admin),
        web.post("/v0/sql", json={"q": COUNT}, headers=admin),
        web.post("/v0/sql", data=COUNT, content_type="text/plain", headers=admin),
        web.post("/v0/sql", data=COUNT, headers=admin),
        web.post("/v0/sql", data=f"{COUNT} and 1 = 1 -- &q", content_type=form, headers=admin),
        web.post("/v0/sql", query_string={"from": "ts-sdk"}, data=f"{COUNT};", headers=admin),
    ):
        assert data(response) == [{"n": 1}]
        assert response.content_type.startswith("application/json")


def test_the_query_names_its_format(web: FlaskClient, admin: dict[str, str]) -> None:
    csv = web.get("/v0/sql", query_string={"q": "select 1 as a, 'x' as b FORMAT CSVWithNames"}, headers=admin)
    assert (csv.status_code, csv.text) == (200, '"a","b"\n1,"x"\n')
    assert csv.content_type.startswith("text/csv")
    parquet = web.get("/v0/sql", query_string={"q": "select 1::UInt64 as a FORMAT Parquet"}, headers=admin)
    assert pq.read_table(io.BytesIO(parquet.data)).to_pylist() == [{"a": 1}]


@pytest.mark.parametrize(
    "output_format",
    ["JSON", "JSONCompact", "JSONColumns", "JSONCompactColumns", "JSONObjectEachRow", "JSONEachRow", "CSV"],
)
def test_only_an_answer_that_is_known_already_is_spared(
    web: FlaskClient, admin: dict[str, str], output_format: str
) -> None:
    """Not every JSON format tells how long the query took, which alone may differ."""

    def ask(text: str, known: str = "") -> TestResponse:
        query = f"select {text} as statistics, 1 as elapsed format {output_format}"
        return web.get("/v0/sql", query_string={"q": query}, headers={**admin, "If-None-Match": known})

    first = ask("1")
    known = first.headers["ETag"]
    assert (first.status_code, ask("1", known).status_code, ask("2", known).status_code) == (200, 304, 200)


def test_an_analyst_reads_what_the_project_holds(web: FlaskClient, admin: dict[str, str], settings: Settings) -> None:
    for query in (
        "select * from app_events limit 1",
        "select * from app_events_quarantine limit 1",
        "select * from imports final limit 1",
        f"select letter from {settings.api_database}.letters(least = 9)",
        "select name from system.tables where name = 'app_events'",
        "with a as (select 18446744073709551615::UInt64 as n) select n from a union all select number from numbers(1)",
    ):
        assert web.get("/v0/sql", query_string={"q": query}, headers=admin).status_code == 200, query
    big = web.get("/v0/sql", query_string={"q": "select 18446744073709551615 as n"}, headers=admin)
    assert data(big) == [{"n": 2**64 - 1}]


def test_placeholders_are_bound_not_pasted(web: FlaskClient, admin: dict[str, str]) -> None:
    naughty = "it's '); drop table app_events -- %s {x:String} \\"
    for query in ("select {x:String} as x", "% select {{String(x)}} as x", "%select {{String(x, 'unused')}} as x"):
        assert data(web.post("/v0/sql", data={"q": query, "x": naughty}, headers=admin)) == [{"x": naughty}], query
    assert data(web.post("/v0/sql", data={"q": "% select {{Int32(x, 5)}} as x"}, headers=admin)) == [{"x": 5}]
    assert data(web.post("/v0/sql", json={"q": "select {x:Int32} as x", "x": 7}, headers=admin)) == [{"x": 7}]
    refused(web.post("/v0/sql", data={"q": "select {x:Int32}", "x": "a"}, headers=admin), 400, "sql_invalid")
    refused(web.post("/v0/sql", data={"q": "select {x:Int32}"}, headers=admin), 400, "sql_invalid")
    refused(web.post("/v0/sql", data={"q": "% select 1 {% if x %} + 1 {% end %}"}, headers=admin), 400, "sql_refused")


def test_only_the_admin_scope_reads_by_sql(web: FlaskClient, reader: dict[str, str]) -> None:
    refused(web.get("/v0/sql", query_string={"q": "select 1"}), 401, "token_missing")
    refused(web.get("/v0/sql", query_string={"q": "select 1"}, headers=reader), 403, "scope_missing")


def test_what_is_wrong_is_told_in_clickhouses_words(web: FlaskClient, admin: dict[str, str]) -> None:
    def error(query: str) -> str:
        return refused(web.get("/v0/sql", query_string={"q": query}, headers=admin), 400, "sql_invalid")

    assert "Syntax error" in error("selec 1")
    assert "nowhere" in error("select nowhere from app_events")
    assert "Multi-statements" in error("select 1; select 2")
    assert error("select throwIf(1, 'mine')").startswith("mine")
    response = web.get("/v0/sql", query_string={"q": "select nowhere"}, headers=admin)
    assert response.headers["X-DB-Exception-Code"] == "47"
    refused(web.get("/v0/sql", headers=admin), 400, "parameter_required")
    refused(web.post("/v0/sql", data=b"\xff", headers=admin), 400, "body_invalid")
    refused(
        web.get("/v0/sql", query_string={"q": "select '" + "x" * 60_000 + "'"}, headers=admin), 400, "sql_too_large"
    )


def test_limits_hold_and_cannot_be_lifted(web: FlaskClient, admin: dict[str, str]) -> None:
    def answered(query: str) -> TestResponse:
        return web.get("/v0/sql", query_string={"q": query}, headers=admin)

    refused(answered("select count() from numbers(1e12) where sipHash64(number) = 0"), 408, "query_timeout")
    memory = refused(answered("select groupArray(number), groupArray(-number) from numbers(1e9)"), 400, "sql_invalid")
    assert "memory" in memory
    refused(answered("select number, 'x' from numbers(3e7)"), 400, "sql_invalid")
    for setting in ("max_execution_time = 0", "max_memory_usage = 0", "readonly = 0", "max_threads = 64"):
        refused(answered(f"select 1 settings {setting}"), 400, "sql_invalid")


# What reads, writes or reaches beyond the project's own tables; {api} is the endpoints' database.
ATTACKS = [
    "insert into landing (line) values ('x')",
    "insert into function file('/var/x') select 1",
    "drop table app_events",
    "alter table app_events delete where 1",
    "create table x (a Int8) engine = Memory",
    "create temporary table x (a Int8)",
    "set readonly = 0",
    "system flush logs",
    "kill query where 1",
    "grant select on *.* to default",
    "select 1 into outfile '/var/x'",
    "select * from system.users",
    "select * from system.query_log",
    "select * from system.processes",
    "select * from system.named_collections",
    "select * from information_schema.tables",
    "select file('/etc/passwd')",
    "select * apply(file) from (select '/etc/passwd')",
    "select * apply(x -> file(x)) from (select '/etc/passwd')",
    "select columns('.*') apply(file) from (select '/etc/passwd')",
    "select `fi\\x6ce`('/etc/passwd')",
    "select 1 as `'`, file('/etc/passwd') as `'`",
    "select /* */ file /* */ ('/etc/passwd') --",
    "select arrayMap(x -> file(x), ['/etc/passwd'])",
    "with file('/etc/passwd') as f select f",
    "with (select file('/etc/passwd')) as f select f",
    "select 1 where exists (select file('/etc/passwd'))",
    "select 1 order by file('/etc/passwd')",
    "select 1 limit length(file('/etc/passwd'))",
    "select sum(number) over (order by file('/etc/passwd')) from numbers(1)",
    "select * from numbers(length(file('/etc/passwd')))",
    "select * from view(select file('/etc/passwd'))",
    "select * from format('TSV', 'a String default file(\\'/etc/passwd\\')', '')",
    "select * from values('a String, b String default file(\\'/etc/passwd\\')', 'x')",
    "select * from file('/etc/passwd', 'LineAsString')",
    "select * from url('http://127.0.0.1:1/', 'LineAsString')",
    "select * from s3('http://127.0.0.1:1/bucket/x')",
    "select * from remote('127.0.0.1', system.one)",
    "select * from cluster('default', system.one)",
    "select * from merge('system', 'users')",
    "select * from executable('x', 'TSV', 'a String')",
    "select * from mysql('127.0.0.1:1', 'd', 't', 'u', 'p')",
    "select * from sqlite('/etc/passwd', 'x')",
    "select * from `s3`('http://127.0.0.1:1/bucket/x')",
    "explain select file('/etc/passwd')",
    "describe table app_events",
]
# What an analyst may read, and a query over one endpoint's answer may not.
FOREIGN = [
    "select * from {api}.forbidden(x = 'a')",
    "select * from {api}.letters(least = 1)",
    "select * from {db}.app_events",
    "select * from app_events",
    "select * from _ union all select secret, 1, '', [], now() from {api}.forbidden(x = 'a')",
    "select (select secret from {api}.forbidden(x = 'a')) from _",
    "select * from _ where letter in (select secret from {api}.forbidden(x = 'a'))",
    "select 'x' in {db}.app_events_quarantine from _",
    "with _ as (select * from {db}.app_events) select * from _",
    "with forbidden as (select * from {api}.forbidden(x = 'a')) select * from forbidden",
    "select * from _ cross join {db}.imports",
    "select * from _ /* */ , {db}.`app_events`",
    "select * from merge('{db}', '.*')",
    "select joinGet('{db}.app_events', 'event_id', 1)",
    "select hasColumnInTable('{db}', 'app_events', 'event_id') settings max_threads = 1",
]


@pytest.mark.parametrize("query", ATTACKS)
def test_nothing_else_is_read_or_changed(
    web: FlaskClient, admin: dict[str, str], reader: dict[str, str], query: str
) -> None:
    for response in (
        web.get("/v0/sql", query_string={"q": query}, headers=admin),
        web.post("/v0/sql", data=query, headers=admin),
        web.get("/v0/pipes/letters.json", query_string={"q": query}, headers=reader),
    ):
        assert response.status_code in (400, 403), response.text
        assert "root:" not in response.text


@pytest.mark.parametrize("query", FOREIGN)
def test_a_query_over_an_answer_reads_nothing_else(
    web: FlaskClient, reader: dict[str, str], settings: Settings, query: str
) -> None:
    sql = query.format(db=settings.database, api=settings.api_database)
    for response in (
        web.get("/v0/pipes/letters.json", query_string={"q": sql}, headers=reader),
        web.post("/v0/pipes/letters.csv", data={"q": sql}, headers=reader),
    ):
        assert response.status_code in (400, 403), response.text
        assert "secret" not in response.text or "secret" in sql


def test_the_rights_are_the_databases(settings: Settings, views: str, client: Client) -> None:
    """What of the above the database itself refuses, whatever the API checks: all but functions that need no right."""
    needs_no_right = ("file", "fi\\x6ce", "view(", "format(", "values(", "explain", "describe")
    for user, queries in ((settings.sql_user, ATTACKS), (settings.answers_user, ATTACKS + FOREIGN[:4])):
        login = connect(settings, as_user=user)
        for query in queries:
            if not any(word in query for word in needs_no_right):
                with pytest.raises(DatabaseError):
                    login.raw_query(query.format(db=settings.database, api=settings.api_database))
        shown = login.query("show grants").result_rows
        expected = 2 if user == settings.sql_user else 0
        assert len(shown) == expected, shown


def test_sql_over_an_endpoints_answer(web: FlaskClient, reader: dict[str, str]) -> None:
    def answered(query: str, extension: str = "json", **parameters: str) -> TestResponse:
        return web.get(f"/v0/pipes/letters.{extension}", query_string={"q": query, **parameters}, headers=reader)

    whole = data(web.get("/v0/pipes/letters.json", headers=reader))
    assert data(answered("select * from _")) == whole
    assert data(answered("SELECT * FROM `_` LIMIT 10 OFFSET 0")) == whole
    assert data(answered("select count() as n from _", least="7")) == [{"n": 3}]
    assert data(answered("with a as (select `the number` as n from _) select max(n) as n from a;")) == [{"n": 9}]
    assert answered("select letter from _ order by 1 limit 2", "csv").text == '"letter"\n"a"\n"b"\n'
    assert answered("select letter from _ limit 1", "ndjson").text == '{"letter":"a"}\n'
    parquet = answered("select list from _ limit 1", "parquet").data
    assert pq.read_table(io.BytesIO(parquet)).to_pylist() == [{"list": [0, 1]}]
    posted = web.post("/v0/pipes/letters.json", json={"q": "select count() as n from _", "least": 5}, headers=reader)
    assert data(posted) == [{"n": 5}]
    assert data(web.get("/v0/pipes/letters.json", query_string={"q": ""}, headers=reader)) == whole


def test_sql_over_an_answer_keeps_the_formats_and_parameters_of_the_endpoint(
    web: FlaskClient, reader: dict[str, str]
) -> None:
    def answered(query: str, **parameters: str) -> TestResponse:
        return web.get("/v0/pipes/letters.json", query_string={"q": query, **parameters}, headers=reader)

    refused(answered("select 1 from _ format CSV"), 400, "sql_refused")
    assert data(answered("select count() as n from _ format JSON")) == [{"n": 10}]  # some clients add it
    refused(answered("select 1 from _", least="x"), 400, "parameter_invalid")
    refused(answered("select nowhere from _"), 400, "sql_invalid")
    too_large = web.get(
        "/v0/pipes/many.json", query_string={"q": "select 1 from _", "rows": MAX_ASKED_BYTES // 14}, headers=reader
    )
    refused(too_large, 400, "sql_too_large")


def test_a_server_without_the_users_takes_no_sql(settings: Settings, views: str, admin: dict[str, str]) -> None:
    web = create_app(replace(settings, sql_user="nobody_sql")).test_client()
    for address in ("/v0/sql?q=select+1", "/v0/pipes/letters.json?q=select+1+from+_"):
        refused(web.get(address, headers=admin), 403, "sql_off")
    assert web.get("/v0/pipes/letters.json", headers=admin).status_code == 200
