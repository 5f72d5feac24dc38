"""What the API's database user cannot do, asked as that user: as if a query had passed everything before ClickHouse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from serve.app import create_app
from warehouse.connection import admin_token, connect
from warehouse.schema import _create_users, serve_grants
from warehouse.settings import QUERY_LIMITS, Settings, SettingsError

ACCESS_DENIED = 497
CONSTRAINT = 452

FORBIDDEN = [
    # the events, and whatever is made of them
    "select count() from {d}.app_events",
    "select * from {d}.app_events_quarantine",
    "select * from {d}.imports",
    "select * from {d}.landing_checked",
    "select * from {d}.jobs",
    "select * from merge('{d}', '.*')",
    "select * from loop({d}.app_events)",
    "select * from mergeTreeIndex('{d}', 'app_events')",
    "with e as (select * from {d}.app_events) select * from e",
    "explain select * from {d}.app_events",
    "describe table {d}.app_events",
    "show create table {d}.app_events",
    "check table {d}.app_events",
    "select hasColumnInTable('{d}', 'app_events', 'event_id')",
    # secrets and other people's queries
    "select * from system.users",
    "select * from system.grants",
    "select * from system.query_log",
    "select * from system.processes",
    "select * from system.settings_profiles",
    "select * from system.named_collections",
    "select * from system.disks",
    "select * from system.parts",
    "select getServerSetting('max_server_memory_usage')",
    "show users",
    # other machines and files
    "select * from url('http://127.0.0.1:1/', 'CSV', 'a String')",
    "select * from file('users.xml', 'LineAsString', 'a String')",
    "select * from remote('127.0.0.1', '{d}.app_events')",
    "select * from s3('http://127.0.0.1:1/bucket/key', 'CSV', 'a String')",
    "select * from executable('x.sh', 'CSV', 'a String')",
    "select * from mysql('127.0.0.1:1', 'a', 'b', 'c', 'd')",
    "select * from postgresql('127.0.0.1:1', 'a', 'b', 'c', 'd')",
    "select * from mongodb('127.0.0.1:1', 'a', 'b', 'c', 'd', 'a String')",
    "select * from redis('127.0.0.1:1', 'a', 'a String')",
    "select * from sqlite('x', 'y')",
    "insert into function file('x.csv', 'CSV', 'a String') values ('a')",
    "insert into function url('http://127.0.0.1:1/', 'CSV', 'a String') values ('a')",
    "backup table {d}.app_events to Disk('x', 'y')",
    # writes but into landing and job_requests
    "insert into {d}.app_events (event_id) values ('x')",
    "insert into {d}.landing_checked (line) values ('x')",
    "insert into {d}.app_events_quarantine (raw) values ('x')",
    "insert into {d}.jobs (job_id) values ('x')",
    "alter table {d}.app_events delete where 1",
    "delete from {d}.app_events where 1",
    "truncate table {d}.app_events",
    "drop table {d}.app_events",
    "detach table {d}.app_events",
    "rename table {d}.app_events to {d}.b",
    "optimize table {d}.app_events",
    "create table {d}.x (a String) engine = Memory",
    "create temporary table x (a String)",
    "create view {a}.x as select 1",
    "create or replace view {a}.plain as select 1",
    "create function f as x -> x",
    "drop view {a}.plain",
    # the server and its users
    "create user x",
    "grant select on *.* to {u}",
    "alter user {u} settings max_memory_usage = 0",
    "system flush logs",
    "system shutdown",
    "kill query where 1",
]


@pytest.fixture(scope="module")
def views(settings: Settings, client: Client) -> Iterator[str]:
    api = settings.api_database
    made = {
        "plain": f"select count() as events, {{x:Nullable(String)}} as x from {settings.database}.app_events",
        "long": "select number as n, {x:Nullable(String)} as x from numbers(5000)",
        "heavy": "select length(groupArray(number)) as n, {x:Nullable(String)} as x from numbers(50000000)",
        "parallel": "select getSetting('max_threads')::UInt64 as n, {x:Nullable(String)} as x",
    }
    client.command("system flush logs query_log")  # which is there from its first row on
    for name, sql in made.items():
        client.command(f"create or replace view {api}.{name} sql security definer as {sql}")
    yield api
    for name in made:
        client.command(f"drop view {api}.{name}")


@pytest.fixture(scope="module")
def user(settings: Settings, views: str) -> Client:
    return connect(settings, as_serve_user=True)


def refused(client: Client, sql: str, **settings: Any) -> int | None:
    with pytest.raises(DatabaseError) as refusal:
        client.raw_query(sql, settings=settings)
    return refusal.value.code


@pytest.mark.parametrize("statement", FORBIDDEN)
def test_what_the_user_cannot_do(user: Client, settings: Settings, statement: str) -> None:
    names = {"d": settings.database, "a": settings.api_database, "u": settings.serve_user}
    assert refused(user, statement.format(**names)) == ACCESS_DENIED


def test_what_it_can_do(user: Client, settings: Settings, views: str) -> None:
    assert user.query(f"select count() from {views}.plain(x = 'a')").result_rows == [(1,)]
    user.command(f"insert into {settings.database}.landing (line) values ('no event')")
    visible = user.query("select database, name from system.tables where database not in ('system')").result_rows
    grants = [grant.split(" ON ") for grant in serve_grants(settings)]
    assert {f"{database}.{name}" for database, name in visible if database != views} == {
        what for _, what in grants if what != f"{views}.*"
    }
    written = {what.partition(".")[2] for right, what in grants if right != "SELECT"}
    assert written == {"landing", "job_requests"}


@pytest.mark.parametrize("name", [name for name, default in QUERY_LIMITS.items() if default])
def test_a_query_can_lower_its_limits_and_not_raise_them(user: Client, settings: Settings, name: str) -> None:
    most = settings.query_limits[name]
    assert user.raw_query("select getSetting({name:String})", {"name": name}).strip() == str(most).encode()
    user.raw_query("select 1", settings={name: most - 1})
    for value in (most + 1, 0):  # 0 is without end
        assert refused(user, "select 1", **{name: value}) == CONSTRAINT
        assert refused(user, f"select 1 settings {name} = {value}") == CONSTRAINT
        assert refused(user, f"set {name} = {value}") == CONSTRAINT


@pytest.mark.parametrize(
    ("limit", "value", "endpoint"),
    [
        ("max_result_rows", 1000, "long"),
        ("max_result_bytes", 1000, "long"),
        ("max_memory_usage", 10_000_000, "heavy"),
    ],
)
def test_an_answer_over_a_limit_is_refused_in_words(
    settings: Settings, views: str, limit: str, value: int, endpoint: str
) -> None:
    limited = replace(settings, query_limits={**settings.query_limits, limit: value})
    web = create_app(limited).test_client()
    bearer = {"Authorization": f"Bearer {admin_token(settings)}"}
    response = web.get(f"/v0/pipes/{endpoint}.json", headers=bearer)
    assert (response.status_code, json.loads(response.data)["code"]) == (400, "query_too_large")
    assert web.get("/v0/pipes/plain.json", headers=bearer).status_code == 200


def test_threads_are_as_many_as_are_set(settings: Settings, views: str) -> None:
    limited = replace(settings, query_limits={**settings.query_limits, "max_threads": 1})
    bearer = {"Authorization": f"Bearer {admin_token(settings)}"}
    answer = create_app(limited).test_client().get("/v0/pipes/parallel.json", headers=bearer).json
    assert answer
    assert answer["data"][0]["n"] == 1


def test_limits_are_read_from_the_environment(settings: Settings) -> None:
    limits = Settings.from_env({"SERVE_MAX_MEMORY_USAGE": "5000", "SERVE_MAX_THREADS": "3"}).query_limits
    assert (limits["max_memory_usage"], limits["max_threads"]) == (5000, 3)
    assert "max_threads" not in Settings.from_env({}).query_limits
    for value in ("0", "-1", "many", "1.5"):
        with pytest.raises(SettingsError, match="SERVE_MAX_MEMORY_USAGE"):
            Settings.from_env({"SERVE_MAX_MEMORY_USAGE": value})


class Written:
    """Takes statements down instead of executing them: the embedded server has no users made by SQL."""

    def __init__(self) -> None:
        self.statements: list[str] = []

    def command(self, statement: str) -> None:
        self.statements.append(statement)


def test_a_real_server_is_told_the_same(client: Client, user: Client, settings: Settings) -> None:
    """The statements that make the user are ClickHouse's grammar, and give the rights that are tested above."""
    written = Written()
    _create_users(written, settings)  # type: ignore[arg-type]
    own = [it for it in written.statements if settings.serve_user in it.split()]
    for statement in own:
        client.query("select formatQuery({statement:String})", parameters={"statement": statement})
    granted = {it.partition(" to ")[0].removeprefix("grant ") for it in own if it.startswith("grant ")}
    embedded = {row[0].partition(" TO ")[0].removeprefix("GRANT ") for row in user.query("show grants").result_rows}
    assert granted == embedded
    for name, value in settings.query_limits.items():
        assert f"{name} = {value} min 1 max {value}" in own[0]
