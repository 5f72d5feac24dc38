"""Replay: quarantined lines that are valid by now move to app_events, once, and the account still adds up."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.httpclient import HttpClient
from conftest import EmbeddedServer
from erasure import account, command, event, killed, put

from warehouse.conditions import QUARANTINE_COLUMNS, Condition
from warehouse.framing import frames
from warehouse.jobs import Job, do_jobs, do_now
from warehouse.landing import ingest, land
from warehouse.replay import lines_that_pass
from warehouse.settings import Settings


def edit(client: Client, settings: Settings, import_id: str, change: str, where: str = "true") -> None:
    client.command(
        f"alter table {settings.database}.app_events_quarantine update {change} "
        f"where c__import_id = {{id:String}} and {where}",
        parameters={"id": import_id},
        settings={"mutations_sync": 2},
    )


def replayed(client: Client, settings: Settings, import_id: str) -> Job:
    job = do_now(client, settings, "replay", {"condition": f"c__import_id = '{import_id}'"})
    assert job.status == "done", job.error
    return job


def rows(client: Client, settings: Settings, import_id: str) -> list[tuple]:
    return client.query(
        f"select line_number, event_id, toString(event_time), country, properties from {settings.database}.app_events "
        "where import_id = {id:String} order by line_number",
        parameters={"id": import_id},
    ).result_rows


def test_rows_that_were_corrected_move_and_keep_where_they_came_from(client: Client, settings: Settings) -> None:
    import_id = uuid.uuid4().hex
    good, late, nested, hopeless = (event("u") for _ in range(4))
    late |= {"event_time": "yesterday", "properties": {"k": [1]}}
    nested |= {"country": {"code": "FR"}}
    content = "\n".join([json.dumps(good), json.dumps(late), json.dumps(nested), json.dumps(hopeless)[:-9], "{}"])
    land(client, settings, import_id, "http", frames([content.encode()]))
    assert replayed(client, settings, import_id).statistics["replayed"] == 0, "nothing was corrected"
    before = account(client, settings, import_id)
    assert (before["kept"], before["quarantined"]) == (1, 4)

    edit(client, settings, import_id, "event_time = '2025-05-12 01:02:03'", "line_number = 2")
    edit(client, settings, import_id, "country = 'FR'", "line_number = 3")
    condition = Condition(client, f"c__import_id = '{import_id}'", QUARANTINE_COLUMNS)
    assert lines_that_pass(client, settings, condition) == (4, 2)
    assert replayed(client, settings, import_id).statistics == {
        "rows_affected": 2,
        "replayed": 2,
        "still_quarantined": 2,
    }
    assert rows(client, settings, import_id) == [
        (1, good["event_id"], "2025-05-11 22:01:58", "", ""),
        (2, late["event_id"], "2025-05-12 01:02:03", "", '{"k":[1]}'),
        (3, nested["event_id"], "2025-05-11 22:01:58", "FR", ""),
    ]
    after = account(client, settings, import_id)
    assert (after["lines"], after["kept"], after["quarantined"]) == (5, 3, 2)
    assert replayed(client, settings, import_id).statistics["replayed"] == 0
    # The same request again is still the same import.
    land(client, settings, import_id, "http", frames([content.encode()]))
    assert account(client, settings, import_id) == after


def test_events_that_become_equal_on_one_line_all_move(client: Client, settings: Settings) -> None:
    import_id = uuid.uuid4().hex
    good = event("u")
    line = "".join(json.dumps(good | {"event_time": time}) for time in (good["event_time"], "noon", "night"))
    land(client, settings, import_id, "http", frames([line.encode()]))
    for time in ("noon", "night"):
        edit(client, settings, import_id, f"event_time = '{good['event_time']}'", f"event_time = '{time}'")
        assert replayed(client, settings, import_id).statistics["replayed"] == 1
    after = account(client, settings, import_id)
    assert (after["lines"], after["kept"], after["quarantined"]) == (3, 3, 0)


def test_csv_rows_are_replayed_by_their_columns(client: Client, settings: Settings, tmp_path: Path) -> None:
    """Their raw line has no names; a row that still fails stays once."""
    folder = replace(settings, landing_url=str(tmp_path))
    names = [uuid.uuid4().hex for _ in range(3)]
    rows_sent = [f'{names[0]},open,noon,"a, b",FR', f"{names[1]},,2025-05-11,x,FR", f"{names[2]},short"]
    put(folder, "a.csv", "\n".join(["event_id,event_type,event_time,properties,country", *rows_sent]).encode())
    assert [outcome.quarantined for outcome in ingest(client, folder)] == [3]
    import_id = client.query(
        f"select c__import_id from {folder.database}.app_events_quarantine where event_id = {{id:String}}",
        parameters={"id": names[0]},
    ).result_rows[0][0]
    edit(client, folder, import_id, "event_time = '2025-05-11 12:00:00'", "event_time = 'noon'")
    assert replayed(client, folder, import_id).statistics == {
        "rows_affected": 1,
        "replayed": 1,
        "still_quarantined": 2,
    }
    assert rows(client, folder, import_id) == [(2, names[0], "2025-05-11 12:00:00", "FR", "a, b")]
    assert account(client, folder, import_id)["quarantined"] == 2


@pytest.mark.parametrize("statements", [0, 1, 2])
@pytest.mark.parametrize("change", ["", "country = '2', user_id = 'v'", "event_time = 'night'"])
def test_a_replay_that_is_killed_is_finished_by_whoever_comes_next(
    server: EmbeddedServer, client: Client, settings: Settings, statements: int, change: str
) -> None:
    """Killed before the rows are inserted, before that is written down, before they leave the quarantine.

    Rows that were edited since have been moved nevertheless.
    """
    import_id = uuid.uuid4().hex
    lines = [json.dumps(event("u", event_time="noon", country=str(n))) for n in range(3)]
    land(client, settings, import_id, "http", frames(["\n".join([*lines, lines[0]]).encode()]))
    edit(client, settings, import_id, "event_time = '2025-05-11 12:00:00'", "country != '1'")
    condition = f"c__import_id = '{import_id}'"
    killed(server, settings, statements, "replay", "condition", condition)
    if change:
        edit(client, settings, import_id, change, "country = '2'")
    [job] = [job for job in do_jobs(client, settings) if job.arguments.get("condition") == condition]
    is_moved = statements > 0 or "night" not in change
    assert (job.status, job.rows_affected) == ("done", 2 + is_moved)
    after = account(client, settings, import_id)
    assert (after["lines"], after["kept"], after["quarantined"]) == (4, 2 + is_moved, 2 - is_moved)


def test_rows_that_are_edited_during_a_replay_move_once(
    client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_id = uuid.uuid4().hex
    land(client, settings, import_id, "http", frames([json.dumps(event("u", event_time="noon")).encode()]))
    edit(client, settings, import_id, "event_time = '2025-05-11 12:00:00'")
    command = HttpClient.command

    def and_edited(self: HttpClient, sql: str, *arguments: object, **options: object) -> object:
        answer = command(self, sql, *arguments, **options)
        if "insert into" in sql:
            monkeypatch.undo()
            edit(client, settings, import_id, "country = 'FR'")
        return answer

    monkeypatch.setattr(HttpClient, "command", and_edited)
    for replayed_now in (1, 0):
        assert replayed(client, settings, import_id).statistics["replayed"] == replayed_now
    assert account(client, settings, import_id)["kept"] == 1


def test_the_command(server: EmbeddedServer, client: Client, settings: Settings) -> None:
    """What docs/quarantine-and-erasure.md shows; a choice that cannot be used is one sentence."""
    import_id = uuid.uuid4().hex
    lines = [json.dumps(event("u", event_time="noon", country=country)) for country in ("FR", "US")]
    land(client, settings, import_id, "http", frames(["\n".join(lines).encode()]))
    edit(client, settings, import_id, "event_time = '2025-05-11 12:00:00'", "country = 'FR'")
    where = ["--where", f"c__import_id = '{import_id}'"]

    def replay(*arguments: str) -> dict:
        ended = command(server.environ, settings, "warehouse.replay", *arguments)
        assert (ended.returncode, ended.stderr) == (0, "")
        return json.loads(ended.stdout)

    assert replay(*where, "--dry-run") == {"quarantined": 2, "would_pass": 1}
    everything = replay("--dry-run")
    assert everything["quarantined"] >= 2
    assert everything["would_pass"] >= 1
    assert replay(*where) == {"rows_affected": 1, "replayed": 1, "still_quarantined": 1}
    assert replay(*where) == {"rows_affected": 0, "replayed": 0, "still_quarantined": 1}
    assert [row[3] for row in rows(client, settings, import_id)] == ["FR"]
    for refused, reason in {"nothing = 1": "names nothing", "": "empty", "country = 'FR": "breaks off"}.items():
        for dry_run in ([], ["--dry-run"]):
            ended = command(server.environ, settings, "warehouse.replay", "--where", refused, *dry_run)
            assert (ended.returncode, ended.stdout) == (1, "")
            assert len(ended.stderr.splitlines()) == 1, ended.stderr
            assert reason in ended.stderr
