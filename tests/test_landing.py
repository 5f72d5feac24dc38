"""Lines into ClickHouse exactly once, and the landing folder: real files, a real server, real interruptions."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from clickhouse_connect.driver.client import Client
from conftest import EmbeddedServer, environment

from warehouse import landing
from warehouse.connection import connect
from warehouse.framing import Frames, frames
from warehouse.landing import LandingFolder, Outcome, content_id, import_result, ingest, land, spool, waiting_files
from warehouse.schema import apply_schema
from warehouse.settings import PROJECT_DIR, Settings


def event(number: int, **columns: object) -> dict:
    """An event that no other test sends."""
    return {
        "event_id": f"{uuid.uuid4().hex}_{number}",
        "user_id": f"user_{number}",
        "event_type": "screen_view",
        "event_time": f"2025-0{1 + number % 9}-11 22:01:58",
        "properties": json.dumps({"screen": "product", "value": number}),
    } | columns


def ndjson(events: list[dict]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


@pytest.fixture
def folder(settings: Settings, tmp_path: Path) -> Settings:
    """Settings with a landing folder of the test's own."""
    (tmp_path / "landing").mkdir()
    return replace(settings, landing_url=str(tmp_path / "landing"))


def put(settings: Settings, name: str, content: bytes) -> str:
    """Put a complete file into the landing folder; the id of its content."""
    path = Path(settings.landing_url, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    past = time.time() - 10
    os.utime(path, (past, past))
    return content_id([content], path.suffix)


def run(client: Client, settings: Settings) -> dict[str, Outcome]:
    return {outcome.path: outcome for outcome in ingest(client, settings)}


def kept(client: Client, settings: Settings, import_id: str) -> list[tuple]:
    return client.query(
        "select event_id, user_id, event_type, toString(event_time), properties, line_number "
        "from {database:Identifier}.app_events where import_id = {id:String} order by line_number",
        parameters={"database": settings.database, "id": import_id},
    ).result_rows


def quarantined(client: Client, settings: Settings, import_id: str) -> dict[int, str]:
    return dict(
        client.query(
            "select line_number, hex(raw) from {database:Identifier}.app_events_quarantine "
            "where c__import_id = {id:String} order by line_number",
            parameters={"database": settings.database, "id": import_id},
        ).result_rows
    )


def test_real_events_are_all_kept_or_quarantined_once(client: Client, settings: Settings, shared_data: Path) -> None:
    content = (shared_data / "rudderstack" / "app_events.ndjson").read_bytes()
    import_id = content_id([content[:1000], content[1000:]])
    assert import_id == content_id([content])
    assert len(import_id) == 32
    for _ in range(3):
        assert land(client, settings, import_id, "http", frames([content])) == 1691
        result = import_result(client, settings, import_id)
        assert (result.lines, result.kept + result.quarantined) == (1691, 1691)
        assert result.kept == len(kept(client, settings, import_id)) > 1000
        assert result.quarantined == len(quarantined(client, settings, import_id))
        assert len(result.rejects) == 10


def test_bytes_arrive_unchanged(client: Client, settings: Settings) -> None:
    strange = [b"\xff\xfe\x00", b'{"event_id": "\xc3\x28"', b"\xed\xa0\x80", b"\\", b"\t\x01", "null \u2028".encode()]
    content = b"\n".join([uuid.uuid4().bytes.replace(b"\n", b" "), *strange])
    import_id = content_id([content])
    land(client, settings, import_id, "http", frames([content]))
    found = quarantined(client, settings, import_id)
    for number, line in enumerate(strange, 2):
        assert bytes.fromhex(found[number]) == line.lstrip(b" \t\r")


def test_the_account_tells_what_the_tables_hold_where_an_insert_was_torn(client: Client, settings: Settings) -> None:
    """As a kill while the server writes can leave them: the books without a row, and a row that no book knows."""
    torn, unknown = uuid.uuid4().hex, uuid.uuid4().hex
    land(client, settings, torn, "http", frames([ndjson([event(1), event(2)]) + b"no event"]))
    client.command(
        f"delete from {settings.database}.app_events where import_id = {{id:String}} and line_number = 2",
        parameters={"id": torn},
    )
    client.command(
        f"insert into {settings.database}.app_events (event_id, event_type, event_time, import_id) "
        "values ('e', 't', '2025-05-11 22:01:58', {id:String})",
        parameters={"id": unknown},
    )
    rows = client.query(
        "select source, lines, kept, quarantined, erased, missing, duplicates "
        f"from {settings.database}.import_account where import_id in {{ids:Array(String)}} order by lines",
        parameters={"ids": [torn, unknown]},
    ).result_rows
    assert rows == [("", 0, 1, 0, 0, -1, 0), ("http", 3, 1, 1, 0, 1, 0)]


def test_nothing_to_land(client: Client, settings: Settings) -> None:
    assert land(client, settings, uuid.uuid4().hex, "http", frames([b"\n\n"])) == 0
    assert import_result(client, settings, uuid.uuid4().hex) == (0, 0, 0, [])


def test_hundreds_of_months_in_one_insert(client: Client, settings: Settings) -> None:
    events = [event(n, event_time=f"{1971 + n // 12}-{1 + n % 12:02}-01 00:00:00") for n in range(600)]
    content = ndjson(events)
    for _ in range(2):
        land(client, settings, content_id([content]), "http", frames([content]))
    assert len(kept(client, settings, content_id([content]))) == 600


def test_many_chunks_repeated_and_at_once(client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks in flight together, the whole import twice at the same time and once more: every line once."""
    monkeypatch.setattr(landing, "CHUNK_BYTES", 50_000)
    monkeypatch.setattr("warehouse.framing.BLOCK", 20_000)
    events = [event(n) for n in range(5000)]
    events[7] = events[3000] = {"bad": True}
    content = ndjson(events)
    import_id = content_id([content])
    with ThreadPoolExecutor(2) as pool:
        counts = list(pool.map(lambda _: land(client, settings, import_id, "f", frames([content])), range(2)))
    assert counts == [5000, 5000]
    assert land(client, settings, import_id, "f", frames([content])) == 5000
    assert import_result(client, settings, import_id)[:3] == (5000, 4998, 2)
    rows = kept(client, settings, import_id)
    assert [(row[0], row[5]) for row in rows] == [(e["event_id"], n) for n, e in enumerate(events, 1) if "bad" not in e]
    assert list(quarantined(client, settings, import_id)) == [8, 3001]


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


def test_every_format_and_compression(client: Client, folder: Settings) -> None:
    writers = {
        ".ndjson": ndjson,
        ".jsonl": ndjson,
        ".json": lambda events: json.dumps(events, indent=1).encode(),
        ".csv": csv_text,
        ".parquet": parquet,
    }
    compressions = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress, ".GZ": gzip.compress}
    sent = {}
    for extension, write in writers.items():
        for suffix, compress in compressions.items():
            events = [event(n, properties=f'{{"key":"k","value":"a\nb,\\"{n}é"}}') for n in range(20)]
            put(folder, f"sub/{suffix}day{extension}{suffix}" if suffix != ".GZ" else f"A{extension}.GZ", compress(
                write(events)))  # fmt: skip
            sent[content_id([write(events)], extension)] = events
    # Hidden folders and files are not looked at; these names start with the suffix, hence with a dot.
    hidden = {path for path in (Path(folder.landing_url) / "sub").iterdir() if path.name.startswith(".")}
    for path in hidden:
        path.rename(path.with_name("x" + path.name))
    outcomes = run(client, folder)
    assert len(outcomes) == len(sent) == 20
    assert {(o.state, o.lines, o.quarantined) for o in outcomes.values()} == {("done", 20, 0)}
    for import_id, events in sent.items():
        expected = [tuple(e[name] for name in ("event_id", "user_id", "event_type", "event_time", "properties"))
                    for e in events]  # fmt: skip
        assert [row[:5] for row in kept(client, folder, import_id)] == expected
    assert run(client, folder) == {}


def test_csv_keeps_each_row_as_it_came(client: Client, folder: Settings) -> None:
    good = event(1)["event_id"]
    rows = ['event_id,event_type,event_time,properties', f'{good},open,2025-01-01 00:00:00,"two\nlines"',
            "short,row", "", ",no id,2025-01-01,", '"x","y","z"']  # fmt: skip
    import_id = put(folder, "a.csv", b"\xef\xbb\xbf" + "\r\n".join(rows).encode() + b"\r\n\xff\xfe,t,x,y")
    assert run(client, folder)["a.csv"] == Outcome("a.csv", "done", 5, 4)
    assert [(row[0], row[4], row[5]) for row in kept(client, folder, import_id)] == [(good, "two\nlines", 2)]
    found = {number: bytes.fromhex(raw) for number, raw in quarantined(client, folder, import_id).items()}
    assert found == {4: b"short,row", 6: b",no id,2025-01-01,", 7: b'"x","y","z"', 8: b"\xff\xfe,t,x,y"}


def test_a_csv_quote_that_is_not_closed_swallows_no_rows(client: Client, folder: Settings) -> None:
    rows = [b"event_id,user_id,event_type,event_time,properties"]
    rows += [f"{uuid.uuid4().hex},u,open,2025-01-01 00:00:00,home".encode() for _ in range(3)]
    put(folder, "a.csv", b"\n".join([*rows[:2], b'x,u,open,2025-01-01 00:00:00,"home', *rows[2:]]))
    put(folder, "b.csv", b"\n".join([*rows, b'"two', b'lines",u,open,2025-01-01 00:00:00,"{}"']))
    outcomes = run(client, folder)
    assert outcomes["b.csv"] == Outcome("b.csv", "done", 4, 0)
    assert outcomes["set_aside/a.csv"].error == "A quote that opens on line 3 or after it is not closed."


def test_parquet_types(client: Client, folder: Settings) -> None:
    when = datetime.datetime(2025, 5, 11, 22, 1, 58, 123456, tzinfo=datetime.UTC)
    table = pa.table(
        {
            "event_id": pa.array([uuid.uuid4().hex] * 4),
            "event_type": pa.array(["a", "b", "c", "d"]).dictionary_encode(),
            "event_time": pa.array([when] * 4, pa.timestamp("ns", "Europe/Madrid")),
            "properties": pa.array([[("screen", "home")], [], None, [("x", None)]], pa.map_(pa.string(), pa.string())),
            "score": pa.array([1.5, float("nan"), float("inf"), None]),
            "day": pa.array([when.date()] * 4),
            "blob": pa.array([b"bytes"] * 4),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    import_id = put(folder, "types.parquet", sink.getvalue())
    assert run(client, folder)["types.parquet"] == Outcome("types.parquet", "done", 4, 0)
    rows = kept(client, folder, import_id)
    assert {row[3] for row in rows} == {"2025-05-11 22:01:58"}
    assert [json.loads(row[4] or "null") for row in rows] == [{"screen": "home"}, {}, None, {"x": None}]


NO_UTF8 = [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([10**15], pa.timestamp("ms")),
        pa.array([5_000_000], pa.date32()),
        pa.array([2**62], pa.duration("s")),
        pa.array([0], pa.timestamp("us", "No/Where")),
        pa.Array.from_buffers(pa.string(), 1, NO_UTF8),
        pa.array([[(b"key", "value")]], pa.map_(pa.binary(), pa.string())),
        pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]),
    ],
    ids=["year 33658", "day in year 15659", "long duration", "zone", "text", "key of bytes", "key twice"],
)
def test_a_parquet_value_that_python_cannot_hold_blocks_nothing(
    client: Client, folder: Settings, column: pa.Array
) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"event_id": ["a"], "value": column}), sink)
    put(folder, "a.parquet", sink.getvalue())
    put(folder, "z.ndjson", ndjson([event(1)]))
    outcomes = run(client, folder)
    assert outcomes.pop("z.ndjson") == Outcome("z.ndjson", "done", 1, 0)
    assert [(path, outcome.state) for path, outcome in outcomes.items()] == [("set_aside/a.parquet", "set aside")]


def test_a_name_that_is_no_utf_8_is_a_name(client: Client, folder: Settings) -> None:
    """As archives and shares of other systems leave them: ingested, set aside and told like any other."""
    import_id = put(folder, os.fsdecode(b"caf\xe9.ndjson"), ndjson([event(1)]))
    put(folder, os.fsdecode(b"b\xe4d.parquet"), b"none")
    put(folder, os.fsdecode(b"d\xe9/none"), b"none")
    assert {path: outcome.state for path, outcome in run(client, folder).items()} == {
        "caf\\xe9.ndjson": "done",
        "set_aside/b\\xe4d.parquet": "set aside",
        "set_aside/d\\xe9/none": "set aside",
    }
    assert len(kept(client, folder, import_id)) == 1
    assert waiting_files(client, folder) == []


def test_the_same_content_counts_once(client: Client, folder: Settings) -> None:
    """Under another name, compressed, touched, or sent over HTTP before: the same import."""
    content = ndjson([event(n) for n in range(10)])
    import_id = put(folder, "a.ndjson", content)
    land(client, folder, import_id, "http", frames([content]))
    run(client, folder)
    put(folder, "b.jsonl.gz", gzip.compress(content))
    assert run(client, folder) == {"b.jsonl.gz": Outcome("b.jsonl.gz", "done", 0, 0)}
    os.utime(Path(folder.landing_url, "a.ndjson"), (1e9, 1e9))
    assert run(client, folder) == {"a.ndjson": Outcome("a.ndjson", "done", 0, 0)}
    assert import_result(client, folder, import_id)[:3] == (10, 10, 0)
    assert len(kept(client, folder, import_id)) == 10


def test_files_that_cannot_be_read_are_set_aside_and_block_nothing(client: Client, folder: Settings) -> None:
    events = [event(n) for n in range(3000)]
    content = ndjson(events)
    table = parquet(events)
    bad = {
        "a/truncated.ndjson.gz": gzip.compress(content)[:-100],
        "a/truncated.ndjson.zst": zstandard.compress(content)[:-100],
        "a/none.ndjson.gz": b"this is no gzip",
        "a/none.parquet": b"this is no parquet",
        "a/broken.parquet": table[: len(table) // 3] + b"\0" * 500 + table[len(table) // 3 + 500 :],
        "a/cut.parquet": table[:-50],
        "a/none.xlsx": b"PK",
        "a/none": b"x",
        "a/cr.csv": b"event_id,event_type\na\rb,c\n" + b'"' + b"x" * (landing.MAX_FRAME + 1),
    }
    for name, damaged in bad.items():
        put(folder, name, damaged)
    import_id = put(folder, "z.ndjson", content)
    before = client.command(f"select count() from {folder.database}.app_events")
    outcomes = run(client, folder)
    assert outcomes.pop("z.ndjson") == Outcome("z.ndjson", "done", 3000, 0)
    assert {path.removeprefix("set_aside/") for path in outcomes} == set(bad)
    for path, outcome in outcomes.items():
        assert outcome.state == "set aside"
        assert len(outcome.error) > 20
        assert Path(folder.landing_url, path).read_bytes() == bad[path.removeprefix("set_aside/")]
    assert client.command(f"select count() from {folder.database}.app_events") == before + 3000
    assert len(kept(client, folder, import_id)) == 3000
    assert run(client, folder) == {}
    ledger = client.query(
        "select path, error from {database:Identifier}.landing_files where state = 'set aside'",
        parameters={"database": folder.database},
    ).result_rows
    assert {(path, outcome.error) for path, outcome in outcomes.items()} <= set(ledger)
    # The same name again does not replace what was set aside before.
    put(folder, "a/none", b"y")
    (again,) = run(client, folder)
    assert Path(folder.landing_url, "set_aside/a/none").read_bytes() == b"x"
    assert Path(folder.landing_url, again).read_bytes() == b"y"


def test_unfinished_files_wait(client: Client, folder: Settings) -> None:
    for name in (".hidden.ndjson", "a.ndjson.tmp", "b.part", ".git/c.ndjson", "set_aside/d.ndjson"):
        put(folder, name, b"x")
    young = Path(folder.landing_url, "young.ndjson")
    young.write_bytes(ndjson([event(1)]))
    assert waiting_files(client, folder) == []
    time.sleep(landing.QUIET_SECONDS + 0.1)
    assert [file.path for file in waiting_files(client, folder)] == ["young.ndjson"]


def test_another_content_of_the_same_size_and_time(client: Client, folder: Settings) -> None:
    """As a copy leaves it that keeps times, of events that all have one length."""
    for _ in range(2):
        put(folder, "a.ndjson", ndjson([event(1)]))
        os.utime(Path(folder.landing_url, "a.ndjson"), (1e9, 1e9))
        assert run(client, folder) == {"a.ndjson": Outcome("a.ndjson", "done", 1, 0)}
        assert run(client, folder) == {}


def test_a_link_is_the_file_that_it_leads_to(client: Client, folder: Settings, tmp_path: Path) -> None:
    for place in (folder.landing_url, tmp_path):
        put(replace(folder, landing_url=str(place)), "elsewhere/a.ndjson", ndjson([event(1)]))
    link = Path(folder.landing_url, "link.ndjson")
    link.symlink_to(tmp_path / "elsewhere" / "a.ndjson")
    Path(folder.landing_url, "to_nothing.ndjson").symlink_to("nothing")
    Path(folder.landing_url, "to_a_folder.ndjson").symlink_to("elsewhere")
    assert run(client, folder) == {name: Outcome(name, "done", 1, 0) for name in ("elsewhere/a.ndjson", "link.ndjson")}
    assert run(client, folder) == {}
    put(replace(folder, landing_url=str(tmp_path)), "elsewhere/a.ndjson", ndjson([event(1), event(2)]))
    assert run(client, folder) == {"link.ndjson": Outcome("link.ndjson", "done", 2, 0)}


def test_a_file_that_was_changed_in_the_future_does_not_wait_for_it(client: Client, folder: Settings) -> None:
    """As rsync or unzip leave it where the sender's clock or time zone is another."""
    put(folder, "a.ndjson", ndjson([event(1)]))
    os.utime(Path(folder.landing_url, "a.ndjson"), (4e9, 4e9))
    assert run(client, folder) == {"a.ndjson": Outcome("a.ndjson", "done", 1, 0)}
    assert run(client, folder) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells who writes to a file")
def test_a_file_that_a_program_has_open_for_writing_waits(client: Client, folder: Settings) -> None:
    """However long the program pauses: a file that is being copied or downloaded is not cut."""
    first, second = (ndjson([event(n)]) for n in range(2))
    path = Path(folder.landing_url, "slow.ndjson")
    with path.open("wb") as writer:
        writer.write(first[:-10])
        writer.flush()
        os.utime(path, (1e9, 1e9))
        with path.open("rb"):  # a reader is no writer
            assert run(client, folder) == {}
        writer.write(first[-10:] + second)
    os.utime(path, (1e9, 1e9))
    assert run(client, folder) == {"slow.ndjson": Outcome("slow.ndjson", "done", 2, 0)}


def test_a_file_that_changes_while_it_is_read_is_left_for_the_next_run(
    client: Client, folder: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [ndjson([event(n)]) for n in range(3)]
    put(folder, "a.ndjson", lines[0])
    prove = landing._prove_readable

    def appended(*arguments: object) -> str:
        proven = prove(*arguments)
        put(folder, "a.ndjson", b"".join(lines))
        return proven

    monkeypatch.setattr(landing, "_prove_readable", appended)
    assert run(client, folder) == {"a.ndjson": Outcome("a.ndjson", "left", error="It is still being written.")}
    monkeypatch.undo()
    assert run(client, folder) == {"a.ndjson": Outcome("a.ndjson", "done", 3, 0)}
    assert len(kept(client, folder, content_id([b"".join(lines)]))) == 3


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_file_that_is_written_over_while_it_is_read_is_not_set_aside(
    client: Client, folder: Settings, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """Its writer would go on in set_aside/, and nobody would ever read what it wrote."""
    name, compress = f"a.ndjson.{suffix}", {"gz": gzip.compress, "zst": zstandard.compress}[suffix]
    first, second = (
        compress(ndjson([event(n, user_id=os.urandom(200).hex()) for n in range(20_000)])) for _ in range(2)
    )
    put(folder, name, first)
    path = Path(folder.landing_url, name)
    writers: list[io.BufferedWriter] = []
    pieces = landing.pieces

    def written_over(stream: io.RawIOBase) -> Iterator[bytes]:
        for piece in pieces(stream):
            if not writers:
                writers.append(path.open("wb"))
                writers[0].write(second[: len(second) // 2])
                writers[0].flush()
            yield piece

    monkeypatch.setattr(landing, "pieces", written_over)
    assert run(client, folder) == {name: Outcome(name, "left", error="It is still being written.")}
    monkeypatch.undo()
    with writers[0] as writer:
        writer.write(second[len(second) // 2 :])
    os.utime(path, (1e9, 1e9))
    assert run(client, folder) == {name: Outcome(name, "done", 20_000, 0)}


def test_a_file_that_is_written_over_while_it_goes_in_takes_nothing_from_a_copy_of_it(
    client: Client, folder: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is inserted under the id of some content is that content, or the next to bring it would lose lines."""
    monkeypatch.setattr(landing, "CHUNK_BYTES", 50_000)
    monkeypatch.setattr("warehouse.framing.BLOCK", 20_000)
    content = ndjson([event(n) for n in range(9000)])
    assert len(content) > landing.READ_BYTES
    import_id = put(folder, "a.ndjson", content)
    put(folder, "b.ndjson", content)
    path = Path(folder.landing_url, "a.ndjson")
    read_frames = landing.read_frames

    def written_over(place: LandingFolder, file: landing.LandingFile) -> Iterator[Frames]:
        for number, batch in enumerate(read_frames(place, file)):
            if number == 0 and file.path == "a.ndjson":
                path.write_bytes(ndjson([event(n) for n in range(9000)]))
            yield batch

    monkeypatch.setattr(landing, "read_frames", written_over)
    outcomes = run(client, folder)
    assert outcomes["a.ndjson"].state == "left"
    assert outcomes["b.ndjson"] == Outcome("b.ndjson", "done", 9000, 0)
    assert [row[0] for row in kept(client, folder, import_id)] == [
        json.loads(line)["event_id"] for line in content.splitlines()
    ]


def test_the_same_bytes_in_another_format_are_another_import(client: Client, folder: Settings) -> None:
    """An array, or an object with a comma, is a line of NDJSON that is no event; a document holds two events."""
    content = json.dumps([event(1), event(2)]).encode()
    put(folder, "a.ndjson", content)
    assert run(client, folder) == {"a.ndjson": Outcome("a.ndjson", "done", 1, 1)}
    Path(folder.landing_url, "a.ndjson").rename(Path(folder.landing_url, "a.json"))
    assert run(client, folder) == {"a.json": Outcome("a.json", "done", 2, 0)}
    content = b",\n".join(json.dumps(event(n)).encode() for n in range(2))
    put(folder, "b.ndjson", content)
    assert run(client, folder) == {"b.ndjson": Outcome("b.ndjson", "done", 2, 1)}
    put(folder, "b.json", content)
    assert run(client, folder) == {"b.json": Outcome("b.json", "done", 2, 0)}


def test_a_backfill_of_a_day_that_still_receives_events(client: Client, folder: Settings) -> None:
    """A file of old and new events of a day, while the new ones come over HTTP: each is there, none counts twice."""
    events = [event(n, event_time="2024-02-29 12:00:00") for n in range(2000)]
    put(folder, "backfill.ndjson", ndjson(events[:1500]))

    def send(number: int) -> None:
        batch = ndjson(events[1000 + number : 1010 + number])
        land(client, folder, content_id([batch]), "http", frames([batch]))

    with ThreadPoolExecutor(4) as pool:
        file = pool.submit(run, client, folder)
        list(pool.map(send, range(0, 1000, 10)))
    assert file.result() == {"backfill.ndjson": Outcome("backfill.ndjson", "done", 1500, 0)}
    counted = client.query(
        "select uniqExact(event_id, event_time), count() from {database:Identifier}.app_events "
        "where event_time = '2024-02-29 12:00:00' and event_id in {ids:Array(String)}",
        parameters={"database": folder.database, "ids": [e["event_id"] for e in events]},
    ).result_rows
    assert counted == [(2000, 2500)]


def test_a_file_that_may_not_be_read_is_tried_again(
    client: Client, folder: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_id = put(folder, "a.ndjson", ndjson([event(1)]))
    opened = LandingFolder.open

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")  # tests may run as root, whom nothing is refused

    monkeypatch.setattr(LandingFolder, "open", refuse)
    assert run(client, folder)["a.ndjson"].state == "left"
    monkeypatch.setattr(LandingFolder, "open", opened)
    assert run(client, folder)["a.ndjson"].state == "done"
    assert len(kept(client, folder, import_id)) == 1


def test_a_spooled_batch_is_ingested_by_its_id_and_deleted(client: Client, folder: Settings) -> None:
    content = json.dumps([event(n) for n in range(3)]).encode()
    for _ in range(2):
        path = spool(folder, "batch_1-" + content_id([content]), content, ".json")
        assert Path(folder.landing_url, path).read_bytes() == content
        assert [p.name for p in Path(folder.landing_url, "spool").iterdir()] == [Path(path).name]
        run(client, folder)
        assert list(Path(folder.landing_url, "spool").iterdir()) == []
    assert import_result(client, folder, "batch_1-" + content_id([content])).kept == 3
    for bad_id, extension in (("../x", ".json"), ("", ".json"), ("a.b", ".json"), ("a", ".sh")):
        with pytest.raises(ValueError, match="Cannot spool"):
            spool(folder, bad_id, b"", extension)


def test_other_files_in_the_folders_of_uploads_and_batches(client: Client, folder: Settings) -> None:
    """A user's own: they stay, one that has another's name but for an extension counts, and one being written waits."""
    names = ["uploads/day.1.ndjson", "uploads/day.2.ndjson", "spool/day.1.ndjson", "spool/day.2.ndjson", "spool/a.csv"]
    for name in names:
        put(folder, name, csv_text([event(1)]) if name.endswith("csv") else ndjson([event(1)]))
    for place in ("uploads/young.ndjson", "uploads/sub/young.ndjson"):
        path = Path(folder.landing_url, place)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"{")
    outcomes = run(client, folder)
    assert {(path, outcome.lines, outcome.quarantined) for path, outcome in outcomes.items()} == {
        (name, 1, 0) for name in names
    }
    assert all(Path(folder.landing_url, name).exists() for name in names)
    put(folder, names[0], ndjson([event(1), event(2)]))
    assert run(client, folder)[names[0]] == Outcome(names[0], "done", 2, 0)


@pytest.mark.parametrize("place", ["spool/{}.ndjson", "uploads/{}.ndjson", "{}.ndjson"])
def test_a_file_dealt_with_again_is_said_to_have_brought_what_it_brought(
    client: Client, folder: Settings, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """By a run that follows one that was killed before it removed the file, or one that listed it at the same time."""
    content = ndjson([event(1), event(2)]) + b"no event"
    import_id = content_id([content])
    put(folder, place.format(import_id), content)
    files = waiting_files(client, folder)
    monkeypatch.setattr(landing, "waiting_files", lambda *_: files)
    monkeypatch.setattr(LandingFolder, "remove", lambda *_: None)
    for lines in (3, 0):
        assert [outcome.lines for outcome in run(client, folder).values()] == [lines]
    monkeypatch.undo()
    assert run(client, folder).keys() == ({place.format(import_id)} if "/" in place else set())
    assert Path(folder.landing_url, place.format(import_id)).exists() == ("/" not in place)
    job = client.query(
        f"select status, lines, quarantined from {folder.database}.job_results(job_id = {{id:String}})",
        parameters={"id": import_id},
    ).result_rows
    assert job == [("done", 3, 1)]


def test_spooling_that_fails_leaves_nothing_behind(folder: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("warehouse.landing.os.fsync", full)
    Path(folder.landing_url, "spool").mkdir()
    with pytest.raises(OSError, match="No space left"):
        spool(folder, "a" * 32, b"{}", ".ndjson")
    assert list(Path(folder.landing_url, "spool").iterdir()) == []


def test_a_folder_that_is_no_local_path(client: Client, settings: Settings) -> None:
    """Any fsspec URL is a landing folder: here one in memory."""
    remote = replace(settings, landing_url=f"memory://bucket/{uuid.uuid4().hex}")
    place = LandingFolder(remote)
    content = ndjson([event(n) for n in range(4)])
    place.fs.pipe_file(place.full("day/a.ndjson.gz"), gzip.compress(content))
    place.fs.pipe_file(place.full("bad.parquet"), b"no")
    spool(remote, "s" + content_id([content]), ndjson([event(9)]), ".ndjson")
    states = {path: outcome.state for path, outcome in run(client, remote).items()}
    assert states == {
        f"spool/s{content_id([content])}.ndjson": "done",
        "day/a.ndjson.gz": "done",
        "set_aside/bad.parquet": "set aside",
    }
    assert len(kept(client, remote, content_id([content]))) == 4
    assert run(client, remote) == {}


INGEST = "from warehouse.landing import *; from warehouse.connection import connect\n"
INGEST += "s = Settings.from_env(); print([o.lines for o in ingest(connect(s), s)])"


def test_an_ingestion_killed_anywhere_is_repeated_safely(client: Client, folder: Settings, server) -> None:
    """kill -9 at several moments of a file of several chunks, then two runs at once: every line exactly once."""
    events = [event(n, user_id="x" * 400) for n in range(450_000)]
    content = ndjson(events)
    assert len(content) > 6 * landing.CHUNK_BYTES
    import_id = content_id([content])
    put(folder, "big.ndjson.gz", gzip.compress(content, 1))
    environ = server.environ | {"LANDING_URL": folder.landing_url}

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", INGEST], env=environ, cwd=PROJECT_DIR, stdout=subprocess.PIPE)

    def landed() -> int:
        sql = "select sum(lines) from {database:Identifier}.imports where import_id = {id:String}"
        return client.query(sql, parameters={"database": folder.database, "id": import_id}).result_rows[0][0]

    for _ in range(2):
        before = landed()
        process = start()
        while landed() == before and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        time.sleep(1)  # the server may still finish the chunks that it has whole
        assert before < landed() < len(events), "the kill came too late to prove anything"
    assert waiting_files(client, folder)
    for process in [start(), start()]:
        process.communicate()
        assert process.returncode == 0
    assert import_result(client, folder, import_id)[:3] == (450_000, 450_000, 0)
    rows = kept(client, folder, import_id)
    assert [(row[0], row[5]) for row in rows] == [(e["event_id"], n) for n, e in enumerate(events, 1)]
    assert waiting_files(client, folder) == []
    shutil.rmtree(folder.landing_url)


def test_a_clickhouse_killed_in_the_middle_of_a_file(tmp_path: Path) -> None:
    """kill -9 while chunks are inserted: the run fails, the file stays waiting, and the next run completes it."""
    own = EmbeddedServer(environment(tmp_path))
    own.start()
    try:
        apply_schema(own.settings)
        Path(own.settings.landing_url).mkdir()
        events = [event(n, user_id="x" * 400) for n in range(180_000)]
        import_id = put(own.settings, "big.ndjson", ndjson(events))
        process = subprocess.Popen([sys.executable, "-c", INGEST], env=own.environ, cwd=PROJECT_DIR)
        client = connect(own.settings)
        while not import_result(client, own.settings, import_id).lines and process.poll() is None:
            time.sleep(0.02)
        own.stop(signal.SIGKILL)
        assert process.wait(60) != 0, "the kill came too late to prove anything"
        own.start()
        client = connect(own.settings)
        assert import_result(client, own.settings, import_id).kept < len(events)
        assert run(client, own.settings)["big.ndjson"].state == "done"
        rows = kept(client, own.settings, import_id)
        assert [(row[0], row[5]) for row in rows] == [(e["event_id"], n) for n, e in enumerate(events, 1)]
        assert import_result(client, own.settings, import_id)[:3] == (len(events), len(events), 0)
    finally:
        own.stop()
