"""ClickHouse or the disk fails while events arrive: 202 or 503, never a lie, and afterwards every event once."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client
from conftest import EmbeddedServer, own_server
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from serve import routes
from serve.app import create_app
from warehouse import landing
from warehouse.connection import admin_token, connect
from warehouse.landing import ingest
from warehouse.settings import Settings

# A query may take a second, a connection two; an insert and the question what it brought are two answers to wait for.
LIMITS = {"MAX_EXECUTION_TIME": 1}
# Far above what these limits add up to, and far below any default of a library.
BOUND_SECONDS = 20
TABLES = ("app_events", "app_events_quarantine", "imports")


class Sender:
    """A client of the API: sends batches of events that no other test sends."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.web: FlaskClient = create_app(settings, LIMITS).test_client()

    def send(self, name: str | bytes, events: int = 3, *, key: str | None = None) -> TestResponse:
        """A batch of events of one type, named like it, and a line that is none; or a body."""
        headers = {"Authorization": f"Bearer {admin_token(self.settings)}"}
        if key:
            headers["Idempotency-Key"] = key
        began = time.monotonic()
        body = name if isinstance(name, bytes) else batch(name, events)
        answer = self.web.post("/v0/events?name=app_events", data=body, headers=headers)
        assert time.monotonic() - began < BOUND_SECONDS
        return answer

    def spooled(self) -> list[Path]:
        return list(Path(self.settings.landing_url).glob("spool/*"))


def batch(name: str, events: int = 3) -> bytes:
    lines = [
        json.dumps({"event_id": f"{name}_{number}", "event_type": name, "event_time": "2025-05-11 22:01:58"})
        for number in range(events)
    ]
    return "\n".join([*lines, "{bad"]).encode()


def stored(client: Client, settings: Settings, name: str, import_id: str) -> tuple[int, int, int, int]:
    """Rows of a batch, distinct events of it, rows of its import in quarantine, and lines in its account."""
    return client.query(
        "select count(), uniqExact(event_id, event_time), "
        "(select count() from {database:Identifier}.app_events_quarantine where c__import_id = {id:String}), "
        "(select sum(lines) from {database:Identifier}.imports where import_id = {id:String}) "
        "from {database:Identifier}.app_events where event_type = {name:String}",
        parameters={"database": settings.database, "name": name, "id": import_id},
    ).result_rows[0]


def is_queryable(sender: Sender, client: Client, name: str, answer: TestResponse, events: int = 3) -> None:
    assert answer.json
    assert stored(client, sender.settings, name, answer.json["import_id"]) == (events, events, 1, events + 1)


def drain(sender: Sender, client: Client) -> list[str]:
    """Ingest what is spooled; the paths in their order."""
    outcomes = list(ingest(client, sender.settings))
    assert {outcome.state for outcome in outcomes} <= {"done"}
    assert sender.spooled() == []
    return [outcome.path for outcome in outcomes]


def recovered(sender: Sender) -> None:
    """The app finds ClickHouse again by itself."""
    deadline = time.monotonic() + 30
    while sender.web.get("/health").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Proxy:
    """Stands before ClickHouse and does to its connections what outages do.

    Attributes:
        fault: None, or a function that is given what a client has sent and its connection, and answers in ClickHouse's
            place.
        lose_answers: pass requests on and hang up when their answers come.
    """

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.fault: Callable[[bytes, socket.socket], object] | None = None
        self.lose_answers = False
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection(("127.0.0.1", self.upstream)) as server:
            threading.Thread(target=self._answer, args=(server, client), daemon=True).start()
            while request := client.recv(1 << 20):
                if self.fault:
                    self.fault(request, client)
                else:
                    server.sendall(request)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while answer := server.recv(1 << 20):
                if self.lose_answers:
                    break
                client.sendall(answer)
            client.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxied(settings: Settings, tmp_path: Path) -> Iterator[tuple[Sender, Proxy]]:
    proxy = Proxy(settings.clickhouse_port)
    yield Sender(replace(settings, clickhouse_port=proxy.port, landing_url=str(tmp_path / "landing"))), proxy
    proxy.listener.close()


def hang(_: bytes, client: socket.socket) -> None:
    pass


def hang_up(_: bytes, client: socket.socket) -> None:
    client.close()


def answer_with(content: bytes) -> Callable[[bytes, socket.socket], None]:
    return lambda _, client: client.sendall(content)


def drip(first: bytes, piece: bytes) -> Callable[[bytes, socket.socket], None]:
    """An answer that comes too fast for a read to time out, and never ends: of a disk that hangs, for one."""

    def fault(_: bytes, client: socket.socket) -> None:
        client.sendall(first)
        while True:
            time.sleep(0.4)
            client.sendall(piece)

    return fault


FAULTS = {
    "hangs": hang,
    "hangs_up": hang_up,
    "garbage": answer_with(os.urandom(3000)),
    "error": answer_with(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n\r\noops"),
    "gateway": answer_with(b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>"),
    "says_ok_to_everything": answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    "answers_with_text": answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n"),
    "breaks_off": answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: 600\r\n\r\n\x03\x01"),
    "drips_headers": drip(b"HTTP/1.1 200 OK\r\n", b"X-ClickHouse-Progress: {}\r\n"),
    "drips_its_answer": drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n1\r\n"),
    "sends_headers_for_ever": answer_with(b"HTTP/1.1 200 OK\r\n" + b"X-ClickHouse-Progress: {}\r\n" * 3000),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("fault", "connected"),
    [(fault, True) for fault in FAULTS] + [(fault, False) for fault in ("hangs", "hangs_up", "garbage")],
)
def test_whatever_answers_in_its_place(
    proxied: tuple[Sender, Proxy], client: Client, fault: str, connected: bool
) -> None:
    sender, proxy = proxied
    name = uuid.uuid4().hex
    if connected:
        is_queryable(sender, client, f"{name}_before", sender.send(f"{name}_before"))
    proxy.fault = FAULTS[fault]
    answers = {f"{name}_{number}": sender.send(f"{name}_{number}") for number in range(3)}
    assert {answer.status_code for answer in answers.values()} == {202}
    proxy.fault = None
    ids = [answer.json["import_id"] for answer in answers.values() if answer.json]
    assert drain(sender, client) == [f"spool/{import_id}.ndjson" for import_id in ids], "in the order of their arrival"
    for batch_name, answer in answers.items():
        is_queryable(sender, client, batch_name, answer)
    recovered(sender)
    assert sender.send(f"{name}_0").status_code == 200, "sent again, it changes nothing"
    is_queryable(sender, client, f"{name}_0", answers[f"{name}_0"])


def test_an_insert_whose_answer_was_lost_is_not_counted_again(proxied: tuple[Sender, Proxy], client: Client) -> None:
    sender, proxy = proxied
    name = uuid.uuid4().hex
    assert sender.send(f"{name}_before").status_code == 200
    proxy.lose_answers = True
    answer = sender.send(name)
    proxy.lose_answers = False
    assert answer.status_code == 202
    is_queryable(sender, client, name, answer)  # it had succeeded
    assert len(drain(sender, client)) == 1
    is_queryable(sender, client, name, answer)


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A ClickHouse that is stopped, slowed down and killed."""
    with own_server(tmp_path_factory.mktemp("outages")) as server:
        yield server


@pytest.fixture
def victims_sender(victim: EmbeddedServer, tmp_path: Path) -> Sender:
    sender = Sender(replace(victim.settings, landing_url=str(tmp_path / "landing")))
    recovered(sender)
    return sender


def wait_for_an_insert(client: Client) -> None:
    deadline = time.monotonic() + 20
    while not client.query("select count() from system.processes where query_kind = 'Insert'").result_rows[0][0]:
        assert time.monotonic() < deadline


@pytest.mark.timeout(120)
def test_killed_while_it_inserts(victim: EmbeddedServer, victims_sender: Sender) -> None:
    observer = connect(victim.settings)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(victims_sender.send, "killed", 60_000)
        wait_for_an_insert(observer)
        victim.stop(signal.SIGKILL)
        assert answer.result().status_code == 202
    assert victims_sender.send("while_it_is_away").status_code == 202
    victim.start()
    client = connect(victim.settings)
    assert len(drain(victims_sender, client)) == 2
    is_queryable(victims_sender, client, "killed", answer.result(), 60_000)


@pytest.mark.timeout(120)
def test_frozen_while_it_inserts(victim: EmbeddedServer, victims_sender: Sender) -> None:
    """SIGSTOP: connections are still taken, and what was sent is worked off when it goes on."""
    assert victim.process
    observer = connect(victim.settings)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(victims_sender.send, "frozen", 60_000)
        wait_for_an_insert(observer)
        victim.process.send_signal(signal.SIGSTOP)
        try:
            assert answer.result().status_code == 202
            assert victims_sender.send("while_it_is_frozen").status_code == 202
        finally:
            victim.process.send_signal(signal.SIGCONT)
    client = connect(victim.settings)
    assert len(drain(victims_sender, client)) == 2
    is_queryable(victims_sender, client, "frozen", answer.result(), 60_000)
    assert stored(client, victim.settings, "while_it_is_frozen", "")[:2] == (3, 3)


@pytest.mark.timeout(120)
def test_slower_than_a_request_may_take(victim: EmbeddedServer, victims_sender: Sender) -> None:
    client, database = connect(victim.settings), victim.settings.database
    client.command(
        f"create materialized view {database}.slow engine = Null "
        f"as select sleepEachRow(1) as slept, event_id from {database}.app_events"
    )
    try:
        answer = victims_sender.send("slow", 3)
        assert answer.status_code == 202
    finally:
        client.command(f"drop view {database}.slow")
    drain(victims_sender, client)
    is_queryable(victims_sender, client, "slow", answer)


@pytest.mark.parametrize("table", TABLES)
def test_its_disk_is_full(victim: EmbeddedServer, victims_sender: Sender, table: str) -> None:
    """One table refuses with ClickHouse's own "not enough space" while the others may have taken their rows."""
    client, name = connect(victim.settings), f"{victim.settings.database}.{table}"
    recovered(victims_sender)
    client.command(f"alter table {name} modify setting min_free_disk_bytes_to_perform_insert = {1 << 60}")
    try:
        answer = victims_sender.send(f"full_{table}")
        assert answer.status_code == 202
        with pytest.raises(Exception, match="NOT_ENOUGH_SPACE"):
            list(ingest(client, victims_sender.settings))
        assert len(victims_sender.spooled()) == 1
    finally:
        client.command(f"alter table {name} reset setting min_free_disk_bytes_to_perform_insert")
    drain(victims_sender, client)
    is_queryable(victims_sender, client, f"full_{table}", answer)


# --- the landing folder while ClickHouse is away ------------------------------------------------------------------


@pytest.fixture
def away(settings: Settings, tmp_path: Path) -> Sender:
    """An API whose ClickHouse listens nowhere."""
    return Sender(replace(settings, clickhouse_port=1, landing_url=str(tmp_path / "landing")))


def test_an_idempotency_key_keeps_the_batch_that_was_acknowledged_first(away: Sender, client: Client) -> None:
    name = uuid.uuid4().hex
    first = away.send(name, key=name)
    second = away.send(f"{name}_second", key=name)
    assert (first.status_code, second.status_code) == (202, 202)
    assert [path.read_bytes() for path in away.spooled()] == [batch(name)]
    drain(away, client)
    is_queryable(away, client, name, first)


def of_another_month(name: str) -> bytes:
    return batch(name).replace(b"2025-05-11", b"2025-06-11") + b"\n{worse"


def test_another_content_of_a_key_changes_nothing(
    settings: Settings, away: Sender, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where the first content has no rows (its month, the quarantine), nor by way of the spool."""
    there = Sender(replace(settings, landing_url=away.settings.landing_url))
    name = uuid.uuid4().hex
    first = there.send(name, key=name)
    again = there.send(of_another_month(f"{name}_again"), key=name)
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json == again.json
    assert away.send(of_another_month(f"{name}_again"), key=name).status_code == 503, "nobody can tell"
    assert away.send(name, key=name).status_code == 202
    drain(there, client)
    is_queryable(there, client, name, first)

    spooled = away.send(f"{name}_spooled", key=f"{name}_spooled")
    again = there.send(of_another_month(f"{name}_again"), key=f"{name}_spooled")
    assert (spooled.status_code, again.status_code) == (202, 202)
    assert spooled.json == again.json
    drain(there, client)
    is_queryable(there, client, f"{name}_spooled", spooled)
    assert stored(client, settings, f"{name}_again", "")[0] == 0

    # Of one that was never kept nobody was told, so that another one can come in its place, once it is surely gone.

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(routes, "spool", full)
    assert away.send(f"{name}_lost", key=f"{name}_lost").status_code == 503
    assert there.send(f"{name}_instead", key=f"{name}_lost").status_code == 503
    monkeypatch.setattr(routes, "KEY_PATIENCE", 0)
    instead = there.send(f"{name}_instead", key=f"{name}_lost")
    assert instead.status_code == 200
    is_queryable(there, client, f"{name}_instead", instead)


def test_two_contents_of_a_key_at_the_same_time(settings: Settings, tmp_path: Path, client: Client) -> None:
    sender = Sender(replace(settings, landing_url=str(tmp_path / "landing")))
    for _ in range(5):
        name = uuid.uuid4().hex
        bodies = [batch(name), of_another_month(name)]
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda body, key=name: sender.send(body, key=key), bodies))
        assert {answer.status_code for answer in answers} in ({200}, {200, 503})
        [import_id] = {answer.json["import_id"] for answer in answers if answer.json and answer.status_code == 200}
        events, _, quarantined, lines = stored(client, settings, name, import_id)
        assert events == 3
        assert events + quarantined == lines


def test_a_batch_is_on_disk_before_it_is_acknowledged(away: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file before it has its name, then the directory that names it, and the one that names the directory."""
    steps: list[str] = []
    fsync, link = os.fsync, os.link

    def watched_fsync(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        steps.append("file" if path.is_file() else path.name)

    def watched_link(*names: str) -> None:
        link(*names)
        steps.append("named")

    monkeypatch.setattr(landing.os, "fsync", watched_fsync)
    monkeypatch.setattr(landing.os, "link", watched_link)
    assert away.send(uuid.uuid4().hex).status_code == 202
    assert steps == ["landing", "file", "named", "spool"]


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_batch_that_cannot_be_synced_is_refused(away: Sender, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    """Of the folder, of the file, of the spool's directory: whichever fails."""
    calls = 0

    def full(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(landing.os, "fsync", full)
    refused(away)
    assert not [path for path in away.spooled() if path.name.startswith(".")], "no draft is left"


def test_a_full_disk_is_told(away: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full takes the place of the file: every write to it fails as on a full disk."""

    def open_full(_: str, mode: str) -> object:
        return open("/dev/full", mode.replace("x", "w"), buffering=0)

    monkeypatch.setattr(landing, "open", open_full, raising=False)
    refused(away)
    assert away.spooled() == []


def test_a_folder_that_is_none_is_told(away: Sender) -> None:
    Path(away.settings.landing_url).mkdir(exist_ok=True)
    Path(away.settings.landing_url, "spool").write_text("a file where the folder should be")
    refused(away)


def refused(sender: Sender) -> None:
    answer = sender.send(uuid.uuid4().hex)
    assert answer.json
    assert (answer.status_code, answer.json["code"]) == (503, "unavailable")
    assert int(answer.headers["Retry-After"]) > 0
