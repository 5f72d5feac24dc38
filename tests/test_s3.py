"""The landing folder in S3-compatible storage: moto's server speaks the real protocol on a free port."""

from __future__ import annotations

import gzip
import json
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from conftest import EmbeddedServer, environment, refusal
from erasure import command
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem
from test_landing import csv_text, event, kept, ndjson, parquet, run

from warehouse import landing
from warehouse.connection import connect
from warehouse.landing import LandingFolder, Outcome, content_id, import_result, read_frames, spool, waiting_files
from warehouse.settings import Settings

AWS = {
    "AWS_ACCESS_KEY_ID": "an-access-key",
    "AWS_SECRET_ACCESS_KEY": "a-secret-access-key",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadedMotoServer]:
    """An S3 server; address and credentials stand in the environment, where s3fs finds them by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_CONFIG_FILE", str(tmp_path_factory.mktemp("aws") / "none"))
        for name, value in AWS.items():
            patch.setenv(name, value)
        server = s3_server()
        patch.setenv("AWS_ENDPOINT_URL", address(server))
        yield server
    server.stop()


def s3_server() -> ThreadedMotoServer:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    return server


def address(server: ThreadedMotoServer) -> str:
    host, port = server.get_host_and_port()
    return f"http://{host}:{port}"


@pytest.fixture
def bucket(s3: ThreadedMotoServer, settings: Settings) -> Settings:
    """Settings with a landing folder in a bucket of the test's own."""
    name = f"bucket-{uuid.uuid4().hex}"
    remote = replace(settings, landing_url=f"s3://{name}/some events")
    LandingFolder(remote).fs.mkdir(name)
    return remote


def put(settings: Settings, name: str, content: bytes) -> str:
    """Put an object by a client of its own, as another program would; the content's id."""
    folder = LandingFolder(settings)
    folder.fs.__class__(skip_instance_cache=True, use_listings_cache=False).pipe_file(folder.full(name), content)
    return content_id([content])


def test_objects_of_every_format_are_ingested_once(client: Client, bucket: Settings) -> None:
    writers = {
        "a.ndjson": ndjson,
        "day=1/b.json.gz": lambda events: gzip.compress(json.dumps(events).encode()),
        "day=1/c.csv.zst": lambda events: zstandard.compress(csv_text(events)),
        "day=2/d.parquet": parquet,
    }
    sent = {}
    for name, write in writers.items():
        sent[name] = [event(number) for number in range(50)]
        put(bucket, name, write(sent[name]))
    for marker in ("day=1/", "empty/"):
        put(bucket, marker, b"")  # what consoles make for a folder
    for unfinished in (".hidden.ndjson", "x.ndjson.tmp", "y.part"):
        put(bucket, unfinished, b"x")
    assert run(client, bucket) == {name: Outcome(name, "done", 50, 0) for name in writers}
    found = client.query(
        "select event_id, count() from {database:Identifier}.app_events where event_id in {ids:Array(String)} "
        "group by event_id",
        parameters={"database": bucket.database, "ids": [e["event_id"] for events in sent.values() for e in events]},
    ).result_rows
    assert len(found) == 200
    assert {count for _, count in found} == {1}
    assert run(client, bucket) == {}


def test_the_same_object_again_and_another_under_its_name(client: Client, bucket: Settings) -> None:
    """Known by its ETag: an object that is overwritten within a second keeps its time and size."""
    first, second = ndjson([event(1)]), ndjson([event(1)])
    assert len(first) == len(second)
    first_id = put(bucket, "a.ndjson", first)
    assert run(client, bucket) == {"a.ndjson": Outcome("a.ndjson", "done", 1, 0)}
    put(bucket, "a.ndjson", first)
    assert waiting_files(client, bucket) == []
    put(bucket, "copy/b.ndjson", first)
    assert run(client, bucket) == {"copy/b.ndjson": Outcome("copy/b.ndjson", "done", 0, 0)}
    second_id = put(bucket, "a.ndjson", second)
    assert run(client, bucket) == {"a.ndjson": Outcome("a.ndjson", "done", 1, 0)}
    for import_id in (first_id, second_id):
        assert import_result(client, bucket, import_id)[:3] == (1, 1, 0)


def test_an_object_replaced_while_it_is_read_is_left_for_the_next_run(
    client: Client, bucket: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, "a.ndjson", ndjson([event(1)]))
    content = ndjson([event(2), event(3)])
    prove = landing._prove_readable

    def replaced(*arguments: object) -> str:
        proven = prove(*arguments)
        put(bucket, "a.ndjson", content)
        return proven

    monkeypatch.setattr(landing, "_prove_readable", replaced)
    assert run(client, bucket)["a.ndjson"].state == "left"
    monkeypatch.undo()
    assert run(client, bucket) == {"a.ndjson": Outcome("a.ndjson", "done", 2, 0)}
    assert len(kept(client, bucket, content_id([content]))) == 2


def test_unreadable_objects_are_set_aside(client: Client, bucket: Settings) -> None:
    content = ndjson([event(number) for number in range(3000)])
    put(bucket, "a/cut.ndjson.gz", gzip.compress(content)[:-100])
    put(bucket, "a/none.parquet", b"no")
    import_id = put(bucket, "z.ndjson", content)
    outcomes = run(client, bucket)
    assert outcomes.pop("z.ndjson") == Outcome("z.ndjson", "done", 3000, 0)
    assert outcomes.keys() == {"set_aside/a/cut.ndjson.gz", "set_aside/a/none.parquet"}
    folder = LandingFolder(bucket)
    assert folder.fs.cat(folder.full("set_aside/a/none.parquet")) == b"no"
    assert [file.path for file in folder.files()] == ["z.ndjson"]
    assert len(kept(client, bucket, import_id)) == 3000


def test_an_object_with_a_slash_too_many(client: Client, bucket: Settings) -> None:
    """What a program makes that joins a prefix with its last slash and a name with its first."""
    for name in ("/a.ndjson", "//b.ndjson", "c//d.ndjson"):
        put(bucket, name, ndjson([event(1)]))
    put(bucket, "/none.parquet", b"none")
    outcomes = run(client, bucket)
    assert outcomes.pop("set_aside//none.parquet").state == "set aside"
    assert {path: outcome.lines for path, outcome in outcomes.items()} == {
        "/a.ndjson": 1,
        "//b.ndjson": 1,
        "c//d.ndjson": 1,
    }
    assert waiting_files(client, bucket) == []


def test_a_name_is_no_pattern(client: Client, bucket: Settings) -> None:
    """What is set aside is the object of that name, not what its name would match."""
    bad = ["*.csv.gz", "sub/[1].csv.gz", "sub/?.csv.gz"]
    for name in bad:
        put(bucket, name, b"no")
    for name in ("good.csv.gz", "sub/1.csv.gz"):
        put(bucket, name, gzip.compress(csv_text([event(1)])))
    outcomes = run(client, bucket)
    assert {path for path, outcome in outcomes.items() if outcome.state == "set aside"} == {
        f"set_aside/{name}" for name in bad
    }
    assert {path for path, outcome in outcomes.items() if outcome.lines == 1} == {"good.csv.gz", "sub/1.csv.gz"}
    assert [file.path for file in LandingFolder(bucket).files()] == ["good.csv.gz", "sub/1.csv.gz"]


def test_erasing_rewrites_objects(server: EmbeddedServer, client: Client, bucket: Settings) -> None:
    """Every format, those set aside and those that wait: what remains is no new import."""
    user = f"u{uuid.uuid4().hex}"
    events = [event(number) | {"user_id": user if number % 2 else "someone"} for number in range(10)]
    folder = LandingFolder(bucket)
    writers = {
        "a.ndjson": ndjson,
        "day=1/b.json.gz": lambda events: gzip.compress(json.dumps(events).encode()),
        "day=1/c.csv.zst": lambda events: zstandard.compress(csv_text(events)),
        "day=2/d.parquet": parquet,
    }
    for name, write in writers.items():
        put(bucket, name, write(events))
    run(client, bucket)
    put(bucket, "set_aside/e.ndjson", ndjson(events))
    put(bucket, "none.ndjson", ndjson([event(1)]))
    path = spool(bucket, uuid.uuid4().hex, ndjson(events), ".ndjson")
    condition = f"user_id = '{user}'"
    environ = server.environ | {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    counted = command(environ, bucket, "warehouse.erase", condition, "--dry-run")
    assert json.loads(counted.stdout)["landing_folder"] == 30, counted.stderr
    ended = command(environ, bucket, "warehouse.erase", condition)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == {
        "rows_affected": 25,
        "app_events": 25,
        "app_events_quarantine": 0,
        "landing_folder": 25,
        "files_rewritten": 5,
        "files_unreadable": [],
    }
    for name in [*writers, "set_aside/e.ndjson"]:
        lines = [json.loads(line) for batch in read_frames(folder, folder.file(name)) for line in batch.lines]
        assert [line["event_id"] for line in lines] == [e["event_id"] for e in events if e["user_id"] == "someone"]
    assert not folder.fs.exists(folder.full(path))
    assert [outcome.lines for outcome in run(client, bucket).values()] == []
    left = client.query(
        "select event_id, count() from {database:Identifier}.app_events where event_id in {ids:Array(String)} "
        "group by event_id",
        parameters={"database": bucket.database, "ids": [e["event_id"] for e in events]},
    ).result_rows
    assert {event_id for event_id, _ in left} == {e["event_id"] for e in events if e["user_id"] == "someone"}
    assert {copies for _, copies in left} == {5}


def test_what_is_written_appears_whole_or_not_at_all(bucket: Settings) -> None:
    folder = LandingFolder(bucket)
    part = b"x" * (6 << 20)
    with folder.write("whole.ndjson") as file:
        for _ in range(10):  # more than one part of an upload
            file.write(part)
        assert folder.files() == []
    with suppress(RuntimeError), folder.write("half.ndjson") as file:
        file.write(part)
        raise RuntimeError
    assert [(file.path, file.size) for file in folder.files()] == [("whole.ndjson", 10 * len(part))]


@pytest.mark.timeout(60)
def test_a_batch_spooled_while_clickhouse_is_away_is_in_once_it_is_back(bucket: Settings, tmp_path: Path) -> None:
    from warehouse.schema import apply_schema

    server = EmbeddedServer(environment(tmp_path))
    remote = replace(server.settings, landing_url=bucket.landing_url)
    content = ndjson([event(number) for number in range(3)])
    path = spool(remote, content_id([content]), content, ".ndjson")
    with pytest.raises(ClickHouseError):
        run(connect(remote), remote)
    server.start()
    try:
        apply_schema(remote)
        client = connect(remote)
        assert run(client, remote) == {path: Outcome(path, "done", 3, 0)}
        assert LandingFolder(remote).files() == []
        assert import_result(client, remote, content_id([content]))[:3] == (3, 3, 0)
    finally:
        server.stop()


@pytest.mark.timeout(120)
def test_storage_that_fails_is_not_the_fault_of_a_file(
    client: Client, bucket: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An S3 that goes away in the middle of a run: nothing is set aside, and spooling there fails in bounded time."""
    short_lived = s3_server()  # moto's servers of one process share their buckets
    monkeypatch.setenv("AWS_ENDPOINT_URL", address(short_lived))
    S3FileSystem.clear_instance_cache()
    put(bucket, "a.ndjson.gz", gzip.compress(ndjson([event(1)])))
    ingest_file = landing._ingest_file

    def without_storage(*arguments: object) -> tuple[Outcome, str]:
        short_lived.stop()
        return ingest_file(*arguments)

    monkeypatch.setattr(landing, "_ingest_file", without_storage)
    assert run(client, bucket)["a.ndjson.gz"].state == "left"
    with pytest.raises(OSError, match="Could not connect"):
        spool(bucket, "a" * 32, b"{}", ".ndjson")
    S3FileSystem.clear_instance_cache()


def test_a_bucket_that_is_not_there_is_named(s3: ThreadedMotoServer, settings: Settings) -> None:
    with pytest.raises(OSError, match="bucket does not exist"):
        LandingFolder(replace(settings, landing_url="s3://no-such-bucket/events")).files()


def test_make_run_names_a_landing_folder_that_it_cannot_list(s3: ThreadedMotoServer, tmp_path: Path) -> None:
    environ = environment(tmp_path)
    for url, reason in {
        "s3://no-such-bucket/events": "bucket",
        "gs://bucket/events": "gcsfs",
        "nowhere://bucket": "nowhere",
    }.items():
        message = refusal("warehouse.run", environ | {"LANDING_URL": url})
        assert "LANDING_URL" in message
        assert reason in message
        assert AWS["AWS_SECRET_ACCESS_KEY"] not in message
