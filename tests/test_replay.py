"""Replay: quarantined lines that are valid by now move to app_events, once, and the account still adds up."""

from __future__ import annotations

import json
import uuid

from clickhouse_connect.driver.client import Client

from tests.test_erase import account, event
from warehouse.conditions import QUARANTINE_COLUMNS, Condition
from warehouse.framing import frames
from warehouse.jobs import Job, do_now
from warehouse.landing import land
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
