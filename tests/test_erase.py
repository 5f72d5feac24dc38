"""Erasing reaches everything: events, quarantine, rollups, files and spool; and the account still adds up."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import signal
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from clickhouse_connect.driver.client import Client
from conftest import Dbt, EmbeddedServer, environment
from erasure import account, event, killed, put

from warehouse import landing
from warehouse.conditions import Condition, ConditionError
from warehouse.connection import connect
from warehouse.erase import rows_to_be_deleted
from warehouse.framing import frames
from warehouse.jobs import do_jobs, do_now
from warehouse.landing import LandingFolder, Outcome, ingest, land, read_frames, spool, waiting_files
from warehouse.schema import apply_schema
from warehouse.settings import Settings


@pytest.fixture
def folder(settings: Settings, tmp_path: Path) -> Settings:
    """Settings with a landing folder of the test's own."""
    (tmp_path / "landing").mkdir()
    return replace(settings, landing_url=str(tmp_path / "landing"))


def lines(settings: Settings, path: str) -> dict[int, bytes]:
    """The frames of a file by their line number."""
    folder = LandingFolder(settings)
    return {
        number: line
        for batch in read_frames(folder, folder.file(path))
        for number, line in zip(batch.numbers, batch.lines, strict=True)
    }


def csv_text(events: list[dict]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(events[0]))
    writer.writeheader()
    writer.writerows(events)
    return text.getvalue().encode()


def parquet(events: list[dict]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(events), sink)
    return sink.getvalue()


def decompress(content: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(content)


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("", "empty"),
        ("user_id = ", "breaks off"),
        ("user_id = 'u1", "breaks off"),
        ("user_id = 'u1'; drop table app_events", "no SQL"),
        ("user_id = 'u1' format JSON", "breaks off at 'format'"),
        ("user_id = 'u1') settings max_threads = (1", "no SQL"),
        ("1) union all (select 1", "no SQL"),
        ("user_id = 'u1'), (1", "no SQL"),
        ("user_id = 'u1', 1", "true or false"),
        ("1) from (select 1", "no SQL"),
        ("user_id in (select user_id from app_events)", "subquery"),
        ("exists(select 1)", "exists"),
        ("user_id = file('/etc/passwd')", "uses file"),
        ("dictGet('d', 'a', 1) = '1'", "uses dictGet"),
        ("event_time < now()", "uses now"),
        ("sleep(3) = 0", "uses sleep"),
        ("count() > 1", "uses count"),
        ("rand() = 1", "uses rand"),
        ("arrayExists(x -> x = 'u1', [user_id])", "uses arrayExists"),
        ("import_id = 'x'", "names import_id; the columns are event_id"),
        ("user_id in other_table", "names other_table"),
        ("app_events.user_id = 'u1'", "names app_events.user_id"),
        ("(user_id = 'u1') as x", "leave out the `as`"),
        ("user_id = {x:String}", "no SQL"),
        ("*", "something else"),
        ("user_id", "type String"),
        ("user_id = 5", "does not take the condition"),
        ("x" * 200_000, "at most"),
    ],
)
def test_a_condition_is_about_one_event_and_nothing_else(client: Client, condition: str, reason: str) -> None:
    with pytest.raises(ConditionError, match=reason) as refused:
        Condition(client, condition)
    sentence = str(refused.value)
    assert "\n" not in sentence.removesuffix(".")
    for leak in ("DB::", "(version", "select (", "http"):
        assert leak not in sentence


def test_a_condition_that_a_constant_function_would_run_is_never_run(client: Client) -> None:
    with pytest.raises(ConditionError, match="uses throwIf"):
        Condition(client, "throwIf(1) = 1")


def test_what_a_condition_is_about(client: Client, settings: Settings) -> None:
    """Columns where a line can be read, words of the text where it cannot; nothing by a part of a word."""
    user = f"u{uuid.uuid4().hex}"
    lines = {
        "kept": event(user),
        "kept of another": event("someone", properties=json.dumps({"friend": user})),
        "quarantined": event(user, event_time="yesterday"),
        "quarantined of another": event("someone", event_time="yesterday", properties=user),
        "user in an object": event("", user_id={"id": user}),
    }
    texts = {name: json.dumps(line) for name, line in lines.items()} | {
        "cut": json.dumps(event(user))[:-30],
        "as CSV": f"e1,{user},open",
        "longer word": f"e1,{user}0,open",
        "escaped": '{"user_id": "\\u00e9' + user + '"',
    }
    content = "\n".join(texts.values()).encode()
    land(client, settings, uuid.uuid4().hex, "http", frames([content]))

    def count(condition: str) -> tuple[int, int]:
        return tuple(rows_to_be_deleted(client, settings, Condition(client, condition)).values())

    assert count(f"user_id = '{user}'") == (1, 4)
    assert count(f"user_id in ('{user}', 'é{user}')") == (1, 5)
    # An event_time that is no time is neither before nor after.
    assert count(f"user_id = '{user}' and event_time < '2026-01-01'") == (1, 1)
    assert count(f"user_id = '{user}' and event_time >= '2026-01-01'") == (0, 0)
    assert count(f"position(properties, '{user}') > 0") == (1, 3)


def test_erasing_a_user_reaches_every_table(client: Client, settings: Settings) -> None:
    import_id, others = uuid.uuid4().hex, uuid.uuid4().hex
    user = f"u{import_id}"
    mine = [event(user), event(user, event_time="1971-01-01 00:00:00"), event(user, event_time="yesterday")]
    yours = [event("someone"), event("someone", country=["x"])]
    content = "\n".join([*map(json.dumps, mine + yours), json.dumps(event(user))[:-9]]).encode()
    only_mine = json.dumps(mine[0]).encode()
    land(client, settings, import_id, "http", frames([content]))
    land(client, settings, others, "http", frames([only_mine]))
    assert account(client, settings, others)["duplicates"] == 1

    condition = f"user_id = '{user}'"
    assert rows_to_be_deleted(client, settings, Condition(client, condition)) == {
        "app_events": 3,
        "app_events_quarantine": 2,
    }
    job = do_now(client, settings, "delete_data", {"delete_condition": condition})
    assert (job.status, job.rows_affected, job.statistics["app_events"]) == ("done", 5, 3)
    assert sum(rows_to_be_deleted(client, settings, Condition(client, condition)).values()) == 0
    after = account(client, settings, import_id)
    assert (after["lines"], after["kept"], after["quarantined"], after["erased"]) == (6, 1, 1, 4)
    assert account(client, settings, others)["erased"] == 1
    # The projection, by which endpoints know what is fresh, followed.
    by_hour = (
        "select toStartOfHour(event_time) as hour, count(), sum(content_hash) from {table} group by hour order by hour"
    )
    table = f"{settings.database}.app_events"
    assert (
        client.query(by_hour.format(table=table), settings={"force_optimize_projection": 1}).result_rows
        == client.query(by_hour.format(table=table), settings={"optimize_use_projections": 0}).result_rows
    )
    # Sent again in the same batch it is no news; in another batch it is a new event.
    for _ in range(2):
        land(client, settings, import_id, "http", frames([content]))
        land(client, settings, others, "http", frames([only_mine]))
    assert account(client, settings, import_id) == after
    land(client, settings, uuid.uuid4().hex, "http", frames([only_mine]))
    assert rows_to_be_deleted(client, settings, Condition(client, condition))["app_events"] == 1


def test_what_cannot_be_erased_says_why(client: Client, settings: Settings) -> None:
    def error(kind: str, **arguments: object) -> str:
        job = do_now(client, settings, kind, arguments)
        assert job.status == "error"
        return job.error

    assert "one event at a time" in error("delete_data", delete_condition="user_id in (select 1)")
    assert "empty" in error("delete_data")
    assert "ClickHouse refused" in error("delete_data", delete_condition="toDate(user_id) = '2024-01-01'")
    assert "app_events or" in error("truncate", datasource="users")
    assert "names nothing" in error("replay", condition="nothing = 1")


FORMATS = {
    ".ndjson": lambda events: b"\n" + b"\n".join(json.dumps(event).encode() for event in events),
    ".jsonl": lambda events: b"".join(json.dumps(event, indent=1).encode() + b"\r\n" for event in events),
    ".json": lambda events: b"\xef\xbb\xbf" + json.dumps(events, indent=1).encode(),
    ".csv": csv_text,
    ".parquet": parquet,
}
COMPRESSIONS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def test_files_that_are_kept_lose_the_lines_and_are_not_ingested_again(client: Client, folder: Settings) -> None:
    """Every format and compression: what remains reads as before, with its line numbers, and is no new import."""
    user = f"u{uuid.uuid4().hex}"
    before = {}
    for extension, write in FORMATS.items():
        for suffix, compress in COMPRESSIONS.items():
            events = [event(user if n % 5 in (0, 3, 4) else "someone", properties=f'a\nb,"{n}é\\') for n in range(20)]
            path = f"day/a{extension}{suffix}"
            put(folder, path, compress(write(events)))
            before[path] = [e for e in events if e["user_id"] == "someone"], lines(folder, path)
    put(folder, "none.ndjson", FORMATS[".ndjson"]([event("someone")]))
    untouched = Path(folder.landing_url, "none.ndjson").read_bytes()
    put(folder, "all.json", json.dumps([event(user)]).encode())
    Path(folder.landing_url, "all.json").chmod(0o600)
    spool(folder, user, json.dumps(event(user)).encode(), ".ndjson")

    job = do_now(client, folder, "delete_data", {"delete_condition": f"user_id = '{user}'"})
    assert job.status == "done", job.error
    assert job.statistics == {
        "rows_affected": 15 * 12 + 2,
        "app_events": 15 * 12 + 2,
        "app_events_quarantine": 0,
        "landing_folder": 15 * 12 + 1,
        "files_rewritten": 16,
        "files_unreadable": [],
    }
    for path, (stay, frames_before) in before.items():
        after = lines(folder, path)
        assert [json.loads(line)["event_id"] for line in after.values()] == [e["event_id"] for e in stay], path
        assert user not in str(after)
        if not path.startswith("day/a.parquet"):
            assert after.items() <= frames_before.items(), path
    document = decompress(Path(folder.landing_url, "day/a.json.zst").read_bytes())
    assert len(json.loads(document.removeprefix(b"\xef\xbb\xbf"))) == 8
    assert Path(folder.landing_url, "none.ndjson").read_bytes() == untouched
    assert json.loads(Path(folder.landing_url, "all.json").read_bytes()) == []
    assert Path(folder.landing_url, "all.json").stat().st_mode & 0o777 == 0o600
    # Nothing of it is new to the ingestion, not even when the ledger's row of the new version is missing.
    time.sleep(landing.QUIET_SECONDS + 0.1)
    assert waiting_files(client, folder) == []
    os.utime(Path(folder.landing_url, "day/a.csv"), (1e9, 1e9))
    assert list(ingest(client, folder)) == [Outcome("day/a.csv", "done")]
    assert do_now(client, folder, "delete_data", {"delete_condition": f"user_id = '{user}'"}).rows_affected == 0


def test_files_set_aside_lose_the_lines_too_or_are_named(client: Client, folder: Settings) -> None:
    user = f"u{uuid.uuid4().hex}"
    put(folder, "set_aside/a.ndjson", json.dumps(event(user)).encode() + b"\n{}")
    put(folder, "set_aside/b.csv", f"event_id,user_id\n1,{user}\n2\n3,{user},4\n".encode())
    put(folder, "set_aside/c.ndjson.gz", gzip.compress(json.dumps(event(user)).encode())[:-20])
    put(folder, "set_aside/d.xlsx", b"PK")
    job = do_now(client, folder, "delete_data", {"delete_condition": f"user_id = '{user}'"})
    assert (job.statistics["files_rewritten"], job.statistics["landing_folder"]) == (2, 3)
    assert sorted(job.statistics["files_unreadable"]) == ["set_aside/c.ndjson.gz", "set_aside/d.xlsx"]
    assert Path(folder.landing_url, "set_aside/a.ndjson").read_bytes() == b"\n{}"
    assert Path(folder.landing_url, "set_aside/b.csv").read_bytes() == b"event_id,user_id\n\n2\n\n"


def test_nothing_is_erased_while_a_file_cannot_be_read(
    client: Client, folder: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = f"u{uuid.uuid4().hex}"
    put(folder, "a.ndjson", json.dumps(event(user)).encode())

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")  # tests may run as root, whom nothing is refused

    monkeypatch.setattr(LandingFolder, "open", refuse)
    job = do_now(client, folder, "delete_data", {"delete_condition": f"user_id = '{user}'"})
    assert job.error == "a.ndjson cannot be ingested now, so nothing was erased; see why, and ask again."


@pytest.mark.parametrize("statements", [0, 1, 2, 3])
def test_an_erasure_that_is_killed_is_finished_by_whoever_comes_next(
    server: EmbeddedServer, client: Client, folder: Settings, statements: int
) -> None:
    import_id = uuid.uuid4().hex
    user = f"u{import_id}"
    content = "\n".join(map(json.dumps, [event(user), event("someone"), event(user, event_time="no")])).encode()
    put(folder, "a.ndjson", content)
    land(client, folder, import_id, "http", frames([content]))
    killed(server, folder, statements, "delete_data", "delete_condition", f"user_id = '{user}'")
    # What comes after the kill is not erased: it came later.
    later = uuid.uuid4().hex
    land(client, folder, later, "http", frames([content]))
    done = {job.arguments["delete_condition"]: job for job in do_jobs(client, folder) if job.kind == "delete_data"}
    job = done[f"user_id = '{user}'"]
    assert (job.status, job.rows_affected) == ("done", 4)  # of the file and of the request
    assert user.encode() not in Path(folder.landing_url, "a.ndjson").read_bytes()
    assert account(client, folder, import_id)["erased"] == 2
    assert account(client, folder, later)["erased"] == 0


def test_values_leave_the_rollups_and_every_endpoint_is_right_at_once(
    client: Client, settings: Settings, dbt: Dbt
) -> None:
    user, other = f"u{uuid.uuid4().hex}", f"o{uuid.uuid4().hex}"
    hour = {"event_time": "2019-03-04 05:06:07", "country": "ZZ"}
    events = [event(name, properties=json.dumps({"secret": name}), session_id=name, **hour) for name in (user, other)]
    fresh = event("someone", properties=json.dumps({"secret": f"f{user}"}), event_time="2019-06-07 08:09:10")
    land(client, settings, user, "http", frames(["\n".join(map(json.dumps, [*events, fresh])).encode()]))
    dbt("build", "--select", "+endpoints", "--exclude-resource-type", "test", "unit_test")

    def values(table: str) -> list[str]:
        # Every version of a period's row, also those that were replaced.
        sql = f"select distinct pair.property_value from {settings.database}.{table} array join pairs as pair"
        return [value for (value,) in client.query(sql).result_rows]

    def answers() -> tuple[list, list]:
        api = settings.api_database
        bounds = "start_date = '2019-03-04 00:00:00', end_date = '2019-03-04 23:59:59'"
        pairs = client.query(
            f"select property_value from {api}.event_properties({bounds}, event_type = null, "
            "property_key = 'secret', limit = null)"
        ).result_rows
        sessions = client.query(
            f"select total_users from {api}.user_sessions({bounds}, country = 'ZZ', device_type = null)"
        ).result_rows
        return sorted(pairs), sessions

    tables = [
        table
        for (table,) in client.query(
            "select table from system.columns where database = {database:String} and name = 'pairs' and table in "
            "(select name from system.tables where database = {database:String} and engine like '%MergeTree')",
            parameters={"database": settings.database},
        ).result_rows
    ]
    assert tables
    assert all(user in values(table) for table in tables)
    assert answers() == (sorted([(user,), (other,)]), [(2,)])
    assert do_now(client, settings, "delete_data", {"delete_condition": f"user_id = '{user}'"}).status == "done"
    assert answers() == ([(other,)], [(1,)])
    for table in tables:
        assert user not in values(table), "physically, in every version of the row"
        assert f"f{user}" in values(table), "what is fresh stays"


def test_truncating_leaves_nothing_but_the_account(tmp_path: Path) -> None:
    server = EmbeddedServer(environment(tmp_path))
    server.start()
    try:
        settings = server.settings
        apply_schema(settings)
        client = connect(settings)
        content = (json.dumps(event("u")) + "\n{}\nx").encode()
        land(client, settings, "first", "http", frames([content]))
        job = do_now(client, settings, "truncate", {"datasource": "app_events_quarantine"})
        assert (job.status, job.rows_affected) == ("done", 2)
        after = account(client, settings, "first")
        assert (after["kept"], after["quarantined"], after["erased"]) == (1, 0, 2)
        land(client, settings, "second", "http", frames([content]))
        job = do_now(client, settings, "truncate", {})
        assert (job.rows_affected, job.statistics["app_events"]) == (4, 2)
        assert [account(client, settings, name)["erased"] for name in ("first", "second")] == [3, 3]
        # The same requests again are still the same imports, also after a restart.
        server.stop(signal.SIGKILL)
        server.start()
        for name in ("first", "second"):
            land(client, settings, name, "http", frames([content]))
            assert account(client, settings, name)["erased"] == 3
    finally:
        server.stop()
