"""Erasing reaches everything: events, quarantine, rollups, files and spool; and the account still adds up."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from clickhouse_connect.driver.client import Client
from conftest import Dbt, EmbeddedServer, own_server
from erasure import account, command, event, killed, put
from exactness import Warehouse, everything

from warehouse import landing, rewriting
from warehouse.conditions import Condition, ConditionError
from warehouse.connection import connect
from warehouse.erase import purge_rollups, rows_to_be_deleted
from warehouse.framing import frames
from warehouse.jobs import Job, do_jobs, do_now
from warehouse.landing import LandingFolder, Outcome, Unfinished, ingest, land, read_frames, spool, waiting_files
from warehouse.rewriting import erase_lines
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
        "events in an array": json.dumps([event("someone"), event(user)]),
        "values in an array": json.dumps(["e1", "someone", "open", "2025-05-11 22:01:58", "", "", "", "", "", user]),
        "array of others": json.dumps([event("someone"), user + "0"]),
    }
    content = "\n".join(texts.values()).encode()
    land(client, settings, uuid.uuid4().hex, "http", frames([content]))

    def count(condition: str) -> tuple[int, int]:
        return tuple(rows_to_be_deleted(client, settings, Condition(client, condition)).values())

    assert count(f"user_id = '{user}'") == (1, 6)
    assert count(f"user_id in ('{user}', 'é{user}')") == (1, 7)
    # An event_time that is no time is neither before nor after.
    assert count(f"user_id = '{user}' and event_time < '2026-01-01'") == (1, 1)
    assert count(f"user_id = '{user}' and event_time >= '2026-01-01'") == (0, 0)
    assert count(f"position(properties, '{user}') > 0") == (1, 5)


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


def test_a_rollup_of_another_layout_is_emptied(client: Client, settings: Settings) -> None:
    """As one of an earlier version, which no build has replaced yet: what it holds cannot be told."""
    table = f"{settings.database}.older_periods"
    client.command(
        f"create table {table} (starts DateTime, input_rows UInt64, input_fingerprint UInt64, names Array(String)) "
        "engine = ReplacingMergeTree order by starts"
    )
    try:
        client.command(f"insert into {table} values ('2025-05-11 22:00:00', 1, 1, ['somebody'])")
        purge_rollups(client, settings)
        assert client.query(f"select count() from {table}").first_row == (0,)
    finally:
        client.command(f"drop table {table} sync")


def test_what_cannot_be_erased_says_why(client: Client, settings: Settings) -> None:
    land(client, settings, uuid.uuid4().hex, "http", frames([json.dumps(event("nobody")).encode()]))

    def error(kind: str, **arguments: object) -> str:
        job = do_now(client, settings, kind, arguments)
        assert job.status == "error"
        return job.error

    assert "one event at a time" in error("delete_data", delete_condition="user_id in (select 1)")
    assert "empty" in error("delete_data")
    assert "ClickHouse refused" in error("delete_data", delete_condition="toDate(user_id) = '2024-01-01'")
    assert "app_events or" in error("truncate", datasource="users")
    assert "names nothing" in error("replay", condition="nothing = 1")


def test_as_many_users_at_once_as_a_condition_takes(client: Client, folder: Settings) -> None:
    users = [f"u{uuid.uuid4().hex}" for _ in range(1_000)]
    put(folder, "a.ndjson", "\n".join(json.dumps(event(user)) for user in users).encode())
    put(folder, "b.ndjson", json.dumps(event(users[0])).encode()[:-5])

    def erase(number: int) -> Job:
        condition = f"user_id in ({', '.join(map(repr, users[:number]))})"
        return do_now(client, folder, "delete_data", {"delete_condition": condition})

    assert "it takes at most 25,000" in erase(1_000).error
    job = erase(650)
    assert job.status == "done", job.error
    assert (job.status, job.statistics["app_events"], job.statistics["landing_folder"]) == ("done", 650, 651)


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


def test_parquet_files_lose_the_rows_whatever_they_are_made_of(client: Client, folder: Settings) -> None:
    """Of every codec, and with texts of the kind that other libraries write."""
    user = f"u{uuid.uuid4().hex}"
    codecs = ("none", "snappy", "gzip", "brotli", "lz4", "zstd")
    for codec in codecs:
        table = pa.Table.from_pylist([event(user), event("someone"), event("someone"), event(user)])
        views = pa.schema([pa.field(name, pa.string_view()) for name in table.column_names])
        sink = io.BytesIO()
        pq.write_table(table.cast(views), sink, compression=codec)
        put(folder, f"{codec}.parquet", sink.getvalue())
    job = do_now(client, folder, "delete_data", {"delete_condition": f"user_id = '{user}'"})
    assert job.status == "done", job.error
    assert (job.statistics["landing_folder"], job.statistics["files_unreadable"]) == (2 * len(codecs), [])
    for codec in codecs:
        with pq.ParquetFile(Path(folder.landing_url, f"{codec}.parquet")) as file:
            assert file.read(["user_id"]).to_pydict() == {"user_id": ["someone"] * 2}
            assert file.metadata.row_group(0).column(0).compression == codec.upper().replace("NONE", "UNCOMPRESSED")


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
def test_csv_files_lose_the_lines_whatever_ends_them(
    client: Client, folder: Settings, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(rewriting, "READ_BYTES", 5)
    user, other = f"u{uuid.uuid4().hex}", f"o{uuid.uuid4().hex}"
    mine, yours = (f'{{}},open,2025-05-11 22:01:58,{name},"a{end}b"' for name in (user, other))
    rows = [f'event_id,event_type,event_time,user_id,"of{end}two lines"', mine, yours, mine, yours, yours]
    put(folder, "a.csv", "".join(row.format(n) + end for n, row in enumerate(rows)).encode())
    before = lines(folder, "a.csv")
    job = do_now(client, folder, "delete_data", {"delete_condition": f"user_id = '{user}'"})
    assert (job.statistics["app_events"], job.statistics["landing_folder"]) == (2, 2)
    assert job.statistics["files_unreadable"] == []
    after = {number: line for number, line in before.items() if other.encode() in line}
    assert len(after) == 3
    assert lines(folder, "a.csv") == after


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


def test_what_comes_after_a_kill_cannot_keep_an_erasure_from_its_end(tmp_path: Path) -> None:
    """The account tells of it already, so it has to be done, also where the condition fails for what came later."""
    with own_server(tmp_path) as server:
        settings = server.settings
        client = connect(settings)
        content = "\n".join(map(json.dumps, [event("1"), event("2"), event("1", event_time="no")])).encode()
        land(client, settings, "before", "http", frames([content]))
        killed(server, settings, 2, "delete_data", "delete_condition", "toUInt64(user_id) = 1")
        later = "\n".join(map(json.dumps, [event("x"), event("x", event_time="no")])).encode()
        land(client, settings, "later", "http", frames([later]))
        [job] = do_jobs(client, settings)
        assert (job.status, job.rows_affected) == ("done", 2)
        after = account(client, settings, "before")
        assert (after["kept"], after["quarantined"], after["erased"]) == (1, 0, 2)
        assert account(client, settings, "later")["erased"] == 0
        client.command(f"optimize table {settings.database}.app_events final")
        job = do_now(client, settings, "delete_data", {"delete_condition": "toUInt64(user_id) = 2"})
        assert "Cannot parse" in job.error
        account(client, settings, "before")


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


class Traffic:
    """Batches that come by every door while rollups are built; each has a good and a bad line of every user.

    Attributes:
        there: the numbers of the batches that have been acknowledged.
        begun: how many were begun to be sent.
        imports: those that came over HTTP.
    """

    def __init__(self, warehouse: Warehouse, settings: Settings, users: list[str]) -> None:
        self.warehouse, self.settings, self.users = warehouse, settings, users
        self.there: list[int] = []
        self.begun = 0
        self.imports: list[str] = []
        self.over = threading.Event()

    def name(self, user: str, number: int) -> str:
        """What only this user's events of this batch hold: in their id, type, session and properties."""
        return f"{user}_{number}"

    def content(self, number: int) -> bytes:
        lines = []
        for user in self.users:
            name = self.name(user, number)
            good = event(user, event_id=name, event_type=name, session_id=name, event_time="2019-05-11 22:01:58")
            good["properties"] = json.dumps({"key": "name", "value": name})
            lines += [good, good | {"event_time": "yesterday"}]
        return "\n".join(map(json.dumps, lines)).encode()

    def send(self) -> None:
        client = connect(self.settings)
        while not self.over.wait(0.2):
            number, self.begun = self.begun, self.begun + 1
            import_id, content = uuid.uuid4().hex, self.content(number)
            if number % 3 == 0:
                land(client, self.settings, import_id, "http", frames([content]))
                self.imports.append(import_id)
            elif number % 3 == 1:
                spool(self.settings, import_id, content, ".ndjson")
            else:
                put(self.settings, f"{number}.ndjson.gz", gzip.compress(content))
            self.there.append(number)

    def ingest(self) -> None:
        client = connect(self.settings)
        while not self.over.wait(0.05):
            list(ingest(client, self.settings))

    def build(self) -> None:
        refresh = False
        while not self.over.wait(0.05):
            self.warehouse.build(refresh=refresh)
            refresh = not refresh

    def doors(self) -> list[Callable[[], None]]:
        return [self.send, self.ingest, self.build]

    def remains(self, user: str, numbers: Iterable[int]) -> dict[str, list[str]]:
        """Where something of a user's events of these batches is, in every version of a row, and in every file."""
        client, database = connect(self.settings), self.settings.database
        names = [self.name(user, number) for number in numbers]
        held = {
            "app_events": "event_id from {table} where event_id in {names:Array(String)}",
            "app_events_quarantine": "event_id from {table} where event_id in {names:Array(String)}",
            "events_by_type_periods": "count.event_type as name from {table} array join counts as count "
            "where name in {names:Array(String)}",
            "event_properties_periods": "pair.property_value as name from {table} array join pairs as pair "
            "where name in {names:Array(String)}",
            "sessions_periods": "name from (select arrayJoin({names:Array(String)}) as name) where "
            "reinterpretAsUInt128(sipHash128(name)) in "
            "(select arrayJoin(session.session_keys) from {table} array join sessions as session)",
        }
        found = {}
        for table, sql in held.items():
            query = f"select distinct {sql.replace('{table}', f'{database}.{table}')}"
            found[table] = [name for (name,) in client.query(query, parameters={"names": names}).result_rows]
        for path in Path(self.settings.landing_url).rglob("*.*"):
            with suppress(FileNotFoundError):
                content = path.read_bytes()
                text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
                found[path.name] = [name for name in names if f'"{name}"' in text]
        return {place: names for place, names in found.items() if names}


@pytest.mark.timeout(300)
def test_erasing_while_events_come_in_and_rollups_are_built(
    warehouse: Warehouse, server: EmbeddedServer, folder: Settings
) -> None:
    """What was there before is gone, at once and for good; everybody else, and what came later, is all there."""
    forgotten, other = [f"f{uuid.uuid4().hex}" for _ in range(2)], f"o{uuid.uuid4().hex}"
    traffic = Traffic(warehouse, folder, [*forgotten, other])
    before: dict[str, list[int]] = {}
    after: dict[str, int] = {}
    with ThreadPoolExecutor() as pool:
        doors = [pool.submit(door) for door in traffic.doors()]
        try:
            for user in forgotten:
                time.sleep(3)
                before[user] = list(traffic.there)
                ended = command(server.environ, folder, "warehouse.erase", f"user_id = '{user}'")
                after[user] = traffic.begun
                assert ended.returncode == 0, ended.stderr
                assert traffic.remains(user, before[user]) == {}
        finally:
            time.sleep(1)
            traffic.over.set()
        for door in doors:
            door.result()
    client = warehouse.client
    assert {outcome.state for outcome in ingest(client, folder)} <= {"done"}
    warehouse.assert_exact(*everything())
    warehouse.build()
    warehouse.assert_exact(*everything())
    tables = {"app_events": "import_id", "app_events_quarantine": "c__import_id"}
    for user in forgotten:
        assert len(before[user]) > 3
        assert traffic.remains(user, before[user]) == {}
    for user in traffic.users:
        for table in tables:
            rows = client.query(
                f"select event_id from {folder.database}.{table} where user_id = {{user:String}}",
                parameters={"user": user},
            ).result_rows
            ids = [event_id for (event_id,) in rows]
            assert len(set(ids)) == len(ids), "nothing is there twice"
            assert {traffic.name(user, number) for number in range(after.get(user, 0), traffic.begun)} <= set(ids)
    for import_id in traffic.imports[:10]:
        account(client, folder, import_id)


def test_the_command(server: EmbeddedServer, client: Client, folder: Settings) -> None:
    """What docs/quarantine-and-erasure.md shows: counts first, then the work, then there is nothing left to do."""
    user = f"u{uuid.uuid4().hex}"
    lines = [event(user), event(user, event_time="yesterday"), event("someone")]
    put(folder, "a.ndjson", "\n".join(map(json.dumps, lines)).encode())
    list(ingest(client, folder))
    condition = f"user_id = '{user}'"

    def erase(*arguments: str) -> dict:
        ended = command(server.environ, folder, "warehouse.erase", *arguments)
        assert (ended.returncode, ended.stderr) == (0, "")
        return json.loads(ended.stdout)

    for _ in range(2):
        assert erase(condition, "--dry-run") == {
            "rows_to_be_deleted": 2,
            "app_events": 1,
            "app_events_quarantine": 1,
            "landing_folder": 2,
        }
    assert erase(condition) == {
        "rows_affected": 2,
        "app_events": 1,
        "app_events_quarantine": 1,
        "landing_folder": 2,
        "files_rewritten": 1,
        "files_unreadable": [],
    }
    assert erase(condition, "--dry-run")["rows_to_be_deleted"] == 0
    assert erase(condition)["rows_affected"] == 0


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_the_command_says_in_a_sentence_why_it_does_nothing(
    server: EmbeddedServer, client: Client, folder: Settings, dry_run: list[str]
) -> None:
    land(client, folder, uuid.uuid4().hex, "http", frames([json.dumps(event("u")).encode()]))

    def refused(condition: str, **environ: str) -> str:
        ended = command(server.environ | environ, folder, "warehouse.erase", condition, *dry_run)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert len(ended.stderr.splitlines()) == 1, ended.stderr
        return ended.stderr

    assert "one event at a time" in refused("user_id in (select user_id from app_events)")
    assert "breaks off" in refused("user_id = 'u1")
    assert "empty" in refused("")
    assert "Cannot parse" in refused("toDate(user_id) = '2024-01-01'")
    assert "none answers at http://127.0.0.1:1." in refused("true", CLICKHOUSE_PORT="1")
    assert "CLICKHOUSE_PORT" in refused("true", CLICKHOUSE_PORT="none")
    Path(folder.landing_url).rmdir()
    Path(folder.landing_url).write_bytes(b"")
    assert "The landing folder cannot be read or written" in refused("user_id = 'nobody'")


def test_counting_goes_on_when_a_file_is_written_or_gone(
    client: Client, folder: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = f"u{uuid.uuid4().hex}"
    for name in ("gone", "kept", "written"):
        put(folder, f"{name}.ndjson", json.dumps(event(user)).encode())
    condition = Condition(client, f"user_id = '{user}'")
    listed = LandingFolder.files

    def and_then_gone(*arguments: object, **options: bool) -> list[landing.LandingFile]:
        files = listed(*arguments, **options)
        Path(folder.landing_url, "gone.ndjson").unlink(missing_ok=True)
        return files

    monkeypatch.setattr(LandingFolder, "files", and_then_gone)
    with Path(folder.landing_url, "written.ndjson").open("ab"):
        assert erase_lines(client, folder, condition, dry_run=True).lines == 1
        with pytest.raises(Unfinished):
            erase_lines(client, folder, condition)


def test_a_file_that_comes_while_the_folder_is_listed_is_neither_rewritten_nor_lost(
    client: Client, folder: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, other = f"u{uuid.uuid4().hex}", f"o{uuid.uuid4().hex}"
    listed = LandingFolder.files
    came: list[str] = []

    def and_one_more(*arguments: object, **options: bool) -> list[landing.LandingFile]:
        files = listed(*arguments, **options)
        came.append(f"{len(came)}.ndjson")
        put(
            folder, came[-1], "\n".join(json.dumps(event(name, session_id=came[-1])) for name in (user, other)).encode()
        )
        return files

    monkeypatch.setattr(LandingFolder, "files", and_one_more)
    assert do_now(client, folder, "delete_data", {"delete_condition": f"user_id = '{user}'"}).status == "done"
    monkeypatch.undo()
    assert len(came) > 3
    assert {outcome.state for outcome in ingest(client, folder)} == {"done"}
    sessions = client.query(
        f"select session_id from {folder.database}.app_events where user_id = '{other}' order by session_id"
    ).result_rows
    assert [session for (session,) in sessions] == sorted(came)


def test_nothing_is_erased_while_a_folder_cannot_be_listed(
    client: Client, folder: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = f"u{uuid.uuid4().hex}"
    put(folder, "day/a.ndjson", json.dumps(event(user)).encode())
    assert [outcome.state for outcome in ingest(client, folder)] == ["done"]
    scandir = os.scandir

    def failing(path: str) -> Any:
        if str(path).endswith("/day"):
            raise OSError(5, "Input/output error")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    job = do_now(client, folder, "delete_data", {"delete_condition": f"user_id = '{user}'"})
    assert (job.status, job.error) == ("error", "The landing folder cannot be read or written: Input/output error.")
    monkeypatch.undo()
    job = do_now(client, folder, "delete_data", {"delete_condition": f"user_id = '{user}'"})
    assert (job.status, job.statistics["landing_folder"]) == ("done", 1)


def test_a_file_that_a_link_leads_to_loses_the_lines(client: Client, folder: Settings, tmp_path: Path) -> None:
    user = f"u{uuid.uuid4().hex}"
    put(replace(folder, landing_url=str(tmp_path)), "a.ndjson", json.dumps(event(user)).encode())
    Path(folder.landing_url, "a.ndjson").symlink_to(tmp_path / "a.ndjson")
    job = do_now(client, folder, "delete_data", {"delete_condition": f"user_id = '{user}'"})
    assert (job.status, job.rows_affected, job.statistics["landing_folder"]) == ("done", 1, 1)
    assert user.encode() not in (tmp_path / "a.ndjson").read_bytes()
    time.sleep(landing.QUIET_SECONDS + 0.1)
    assert waiting_files(client, folder) == []


def test_erasures_one_right_after_the_other(client: Client, folder: Settings) -> None:
    users = [f"u{uuid.uuid4().hex}" for _ in range(3)]
    names = ("a.ndjson", "set_aside/b.ndjson")
    for name in names:
        put(folder, name, "\n".join(json.dumps(event(user)) for user in users).encode())
    assert [outcome.state for outcome in ingest(client, folder)] == ["done"]
    for user in users[:2]:
        assert erase_lines(client, folder, Condition(client, f"user_id = '{user}'")) == (2, 2, [])
    time.sleep(landing.QUIET_SECONDS + 0.1)
    assert waiting_files(client, folder) == []
    for name in names:
        assert json.loads(Path(folder.landing_url, name).read_bytes())["user_id"] == users[2]


def test_a_file_that_came_just_before_loses_the_lines_too(client: Client, folder: Settings) -> None:
    user = f"u{uuid.uuid4().hex}"
    Path(folder.landing_url).mkdir(exist_ok=True)
    Path(folder.landing_url, "a.ndjson").write_text(json.dumps(event(user)))
    job = do_now(client, folder, "delete_data", {"delete_condition": f"user_id = '{user}'"})
    assert (job.status, job.rows_affected, job.statistics["landing_folder"]) == ("done", 1, 1)


def test_what_killed_writers_have_left_goes_too(
    client: Client, folder: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The drafts of a file and of a batch; one that is being written stays, and one that is about to get its name."""
    users = [f"u{uuid.uuid4().hex}" for _ in range(2)]
    put(folder, "day/a.ndjson", "\n".join(json.dumps(event(user)) for user in users).encode())
    list(ingest(client, folder))

    def killed_there(*_: object) -> None:
        raise KeyboardInterrupt

    for name in ("rename", "link", "unlink"):
        monkeypatch.setattr(os, name, killed_there)
    with pytest.raises(KeyboardInterrupt):
        erase_lines(client, folder, Condition(client, f"user_id = '{users[0]}'"))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            spool(folder, uuid.uuid4().hex, json.dumps(event(users[1])).encode(), ".ndjson")
    monkeypatch.undo()
    drafts = sorted(path for path in Path(folder.landing_url).rglob(".*") if users[1] in path.read_text())
    assert len(drafts) == 3
    new = drafts[-1]
    assert new.parent.name == "spool"
    os.utime(drafts[1], (1e9, 1e9))
    with Path(folder.landing_url, "spool", f".other.ndjson.{16 * '0'}").open("wb") as other:
        os.utime(other.fileno(), (1e9, 1e9))
        erase_lines(client, folder, Condition(client, f"user_id = '{users[1]}'"))
    found = {path for path in Path(folder.landing_url).rglob(".*") if path.is_file()}
    assert found == {new, Path(other.name)}


@pytest.mark.parametrize("place", [(rewriting, "record"), (os, "rename")])
def test_a_file_that_is_replaced_while_it_is_rewritten_is_not_lost(
    client: Client, folder: Settings, monkeypatch: pytest.MonkeyPatch, place: tuple[ModuleType, str]
) -> None:
    """Right before the rewritten file takes its place, and right after that."""
    user, other = f"u{uuid.uuid4().hex}", f"o{uuid.uuid4().hex}"
    put(folder, "a.ndjson", json.dumps(event(user)).encode())
    list(ingest(client, folder))
    original, rename = getattr(*place), os.rename
    calls = []

    def and_replaced(*arguments: object) -> None:
        original(*arguments)
        calls.append(arguments)
        if len(calls) == 1:
            put(folder, "new.tmp", json.dumps(event(other)).encode())
            rename(Path(folder.landing_url, "new.tmp"), Path(folder.landing_url, "a.ndjson"))

    monkeypatch.setattr(*place, and_replaced)
    do_now(client, folder, "delete_data", {"delete_condition": f"user_id = '{user}'"})
    monkeypatch.undo()
    assert calls
    assert [outcome.lines for outcome in ingest(client, folder)] == [1]
    events = f"select count() from {folder.database}.app_events where user_id = {{user:String}}"
    assert client.query(events, parameters={"user": other}).first_row == (1,)


def test_nothing_is_erased_while_a_file_is_not_known_to_be_complete(client: Client, folder: Settings) -> None:
    """One that goes on changing would be ingested after the erasure."""
    user, over = f"u{uuid.uuid4().hex}", threading.Event()
    put(folder, "a.ndjson", json.dumps(event(user)).encode())

    def change() -> None:
        while not over.wait(0.1):
            Path(folder.landing_url, "a.ndjson").touch()

    def erase() -> Job:
        return do_now(client, folder, "delete_data", {"delete_condition": f"user_id = '{user}'"})

    with ThreadPoolExecutor() as pool:
        changing = pool.submit(change)
        time.sleep(0.5)
        job = erase()
        over.set()
        changing.result()
    assert job.error == "a.ndjson cannot be ingested now, so nothing was erased; see why, and ask again."
    assert erase().rows_affected == 1


def test_truncating_leaves_nothing_but_the_account(tmp_path: Path) -> None:
    with own_server(tmp_path) as server:
        settings = server.settings
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
