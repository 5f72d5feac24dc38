"""An insert sent again after ClickHouse was killed or restarted: every row once, none lost."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client
from conftest import EmbeddedServer, own_server

from warehouse.connection import connect
from warehouse.deduplication import forget_lost_inserts
from warehouse.framing import frames
from warehouse.landing import land
from warehouse.schema import apply_schema


@pytest.fixture(scope="module")
def first_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """Of this module's own, since its first life matters."""
    with own_server(tmp_path_factory.mktemp("deduplication")) as server:
        yield server


def send(server: EmbeddedServer, import_id: str) -> None:
    event = {"event_id": import_id, "event_type": "app_open", "event_time": "2025-05-11 22:01:58"}
    land(connect(server.settings), server.settings, import_id, "http", frames([json.dumps(event).encode() + b"\n{bad"]))


def stored(server: EmbeddedServer, import_id: str) -> tuple[int, int, int]:
    """Rows of an import in app_events and in quarantine, and its lines in the account."""
    client: Client = connect(server.settings)
    sql = (
        "select (select count() from app_events where import_id = {id:String}), "
        "(select count() from app_events_quarantine where c__import_id = {id:String}), "
        "(select sum(lines) from imports where import_id = {id:String})"
    )
    client.database = server.settings.database
    return client.query(sql, parameters={"id": import_id}).result_rows[0]


def test_what_was_sent_before_a_restart_is_recognised_after_it(first_server: EmbeddedServer) -> None:
    """In the life in which the tables were made, after a restart, and after the schema was applied again."""
    send(first_server, "first_life")
    first_server.stop(signal.SIGTERM)
    first_server.start()
    send(first_server, "first_life")
    send(first_server, "second_life")
    apply_schema(first_server.settings)
    send(first_server, "second_life")
    first_server.stop(signal.SIGKILL)
    first_server.start()
    for import_id in ("first_life", "second_life"):
        send(first_server, import_id)
        assert stored(first_server, import_id) == (1, 1, 2)


def test_an_insert_that_was_killed_before_its_rows_were_stored_can_be_sent_again(first_server: EmbeddedServer) -> None:
    """What a kill between the record of the token and the part leaves on disk: the record, and no part."""
    tables = ("app_events", "app_events_quarantine", "imports")
    imports = [f"torn_{table}" for table in tables]
    client = connect(first_server.settings)
    parts = []
    for table, import_id in zip(tables, imports, strict=True):
        client.command("system stop merges")  # the newest part is then the last insert's
        send(first_server, import_id)
        parts += client.query(
            "select path from system.parts where database = {database:String} and table = {table:String} "
            "and active order by max_block_number desc limit 1",
            parameters={"database": first_server.settings.database, "table": table},
        ).result_rows
    first_server.stop(signal.SIGKILL)
    for (path,) in parts:
        shutil.rmtree(path)
    first_server.start()
    for import_id in imports:
        assert stored(first_server, import_id) != (1, 1, 2), "the part removed was another insert's"
    for import_id in [*imports, *imports]:
        send(first_server, import_id)
        assert stored(first_server, import_id) == (1, 1, 2)


def test_only_records_without_a_part_are_forgotten(tmp_path: Path) -> None:
    table = tmp_path / "store" / "abc" / "abcdef"
    for part in ("202505_1_4_1", "202505_6_6_0_9", "all_2_2_1", "tmp_insert_202505_5_5_0", "detached/202505_8_8_0"):
        (table / part).mkdir(parents=True)
    log = table / "deduplication_logs" / "deduplication_log_1.txt"
    log.parent.mkdir()
    stays = ["1\t202505_3_3_0\ta", "2\t202505_5_5_0\tb", "1\t202505_6_6_0\tc", "1\tall_2_2_1\td"]
    lost = ["1\t202505_5_5_0\te", "1\t202505_8_8_0\tf", "1\t202506_3_3_0\tg", "1\tall_1_1_1\th"]
    log.write_text("".join(f"{record}\n" for pair in zip(stays, lost, strict=True) for record in pair))
    assert forget_lost_inserts(tmp_path) == 4
    assert log.read_text() == "".join(f"{record}\n" for record in stays)
    assert forget_lost_inserts(tmp_path) == 0
    assert [path.name for path in log.parent.iterdir()] == [log.name]
