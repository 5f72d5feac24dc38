"""Erase events from everywhere they are kept: ``python -m warehouse.erase "user_id = 'u1'"``.

The order makes it safe to do again from any point on, and lets nothing slip through: files that wait are ingested,
files that are kept are rewritten, and only then, of rows that can no longer become more, the numbers are written to
``import_changes`` and the rows deleted.
"""

from __future__ import annotations

import argparse
import time
from typing import Any
from uuid import UUID

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from warehouse.conditions import Condition, ConditionError
from warehouse.jobs import Job, JobError, command, cutoff, settle, to_the_end
from warehouse.landing import QUIET_SECONDS, LandingFolder, Unfinished, dealt_with, ingest
from warehouse.quarantine import quarantined_lines
from warehouse.rewriting import erase_lines
from warehouse.settings import Settings

# A mutation rewrites the parts that hold such rows, and is over when this returns.
MUTATION = {"mutations_sync": 2}
ONCE = {"insert_deduplicate": 0}


def rows_to_be_deleted(client: Client, settings: Settings, condition: Condition) -> dict[str, int]:
    """How many rows of ``app_events`` and ``app_events_quarantine`` the condition is about, by table.

    Raises:
        clickhouse_connect.driver.exceptions.DatabaseError: the condition cannot be evaluated for some row.
    """
    events = f"select count() from {settings.database}.app_events where {condition.sql}"
    quarantined = f"""
        select count()
        from {settings.database}.app_events_quarantine
        where (c__import_id, line_number, raw) in ({condition.lines(settings, quarantined_lines(settings))})
    """
    return {
        "app_events": client.query(events).result_rows[0][0],
        "app_events_quarantine": client.query(quarantined).result_rows[0][0],
    }


def delete_data(client: Client, settings: Settings, job: Job) -> dict[str, Any]:
    """Erase the events that ``delete_condition`` is about: what it did, by place.

    Raises:
        JobError: no condition that can be used, or a file that cannot be read now.
    """
    try:
        condition = Condition(client, str(job.arguments.get("delete_condition", "")))
    except ConditionError as error:
        raise JobError(str(error)) from error
    files = {} if job.cutoff else _erase_in_landing_folder(client, settings, condition)
    until = cutoff(client, settings, job)
    # Not evaluated for what came later: it may fail for that.
    events = f"if(inserted_at < {until} + 1, {condition.sql}, false)"
    chosen = condition.lines(settings, quarantined_lines(settings, f"insertion_date <= {until}"))
    # A condition that fails for some row fails here, while nothing is written down yet.
    client.query(f"select count() from {settings.database}.app_events where {events}")
    client.query(f"select count() from ({chosen})")
    with to_the_end():
        _count_events(client, settings, job, events)
        client.command(
            f"""
            insert into {settings.database}.import_changes (import_id, job_id, change, line_number, raw_hash, rows)
            select c__import_id, {{job_id:String}}, 'quarantined erased', line_number, cityHash64(raw), count()
            from {settings.database}.app_events_quarantine
            where (c__import_id, line_number, raw) in ({chosen})
            group by c__import_id, line_number, raw
            """,
            parameters={"job_id": job.job_id},
            settings=ONCE,
        )
        _delete(client, settings, "app_events", events)
        delete_quarantined(client, settings, job, "quarantined erased")
        purge_rollups(client, settings)
    return _erased(client, settings, job) | files


def _erase_in_landing_folder(client: Client, settings: Settings, condition: Condition) -> dict[str, Any]:
    """Ingest what waits there, then rewrite what is kept there."""
    folder = LandingFolder(settings)
    there = {file.path for file in folder.files(young=True)}
    if len(there) > len(folder.files()):
        time.sleep(QUIET_SECONDS)  # what came just before would otherwise be ingested just after
    for _ in ingest(client, settings):
        pass
    now = folder.files(young=True)
    known = set(dealt_with(client, settings, now))
    # Also one that goes on changing.
    if waiting := [file.name for file in now if file.path in there and file not in known]:
        raise JobError(f"{waiting[0]} cannot be ingested now, so nothing was erased; see why, and ask again.")
    try:
        rewritten = erase_lines(client, settings, condition)
    except Unfinished as error:
        raise JobError("A file of the landing folder is being written over; ask again when it is there.") from error
    return {
        "landing_folder": rewritten.lines,
        "files_rewritten": rewritten.files,
        "files_unreadable": rewritten.unreadable,
    }


def truncate(client: Client, settings: Settings, job: Job) -> dict[str, Any]:
    """Erase every row of ``app_events`` and its quarantine, or of the quarantine alone: what it did, by place.

    Raises:
        JobError: ``datasource`` is neither of them.
    """
    datasource = job.arguments.get("datasource", "app_events")
    if datasource not in ("app_events", "app_events_quarantine"):
        raise JobError("The datasource to truncate is app_events or app_events_quarantine.")
    until = cutoff(client, settings, job)
    with to_the_end():
        client.command(
            f"""
            insert into {settings.database}.import_changes (import_id, job_id, change, line_number, raw_hash, rows)
            select c__import_id, {{job_id:String}}, 'quarantined erased', 0, 0, count()
            from {settings.database}.app_events_quarantine
            where insertion_date <= {until}
            group by c__import_id
            """,
            parameters={"job_id": job.job_id},
            settings=ONCE,
        )
        _delete(client, settings, "app_events_quarantine", f"insertion_date <= {until}")
        if datasource == "app_events":
            _count_events(client, settings, job, f"inserted_at < {until} + 1")
            _delete(client, settings, "app_events", f"inserted_at < {until} + 1")
            purge_rollups(client, settings)
    return _erased(client, settings, job)


def _count_events(client: Client, settings: Settings, job: Job, where: str) -> None:
    client.command(
        f"""
        insert into {settings.database}.import_changes (import_id, job_id, change, line_number, raw_hash, rows)
        select import_id, {{job_id:String}}, 'kept erased', 0, 0, count()
        from {settings.database}.app_events
        where {where}
        group by import_id
        """,
        parameters={"job_id": job.job_id},
        settings=ONCE,
    )


def _delete(client: Client, settings: Settings, table: str, where: str) -> None:
    client.command(f"alter table {settings.database}.{table} delete where {where}", settings=MUTATION)


def delete_quarantined(client: Client, settings: Settings, job: Job, change: str) -> None:
    """Delete the quarantined rows that the job has written to ``import_changes`` line by line."""
    changes = f"""
        select import_id, line_number, raw_hash
        from {settings.database}.import_changes
        where job_id = {{job_id:String}} and change = '{change}'
    """
    client.command(
        f"alter table {settings.database}.app_events_quarantine "
        f"delete where (c__import_id, line_number, cityHash64(raw)) in ({changes})",
        parameters={"job_id": job.job_id},
        settings=MUTATION,
    )


def purge_rollups(client: Client, settings: Settings) -> None:
    """Delete the rows of rollups that were not built from what ``app_events`` holds now.

    The next build makes them anew; until then their periods are answered from raw events, so every answer stays right.

    Raises:
        JobError: a build does not end.
    """
    # Every hour, day and month with what it holds, named as macros/periods.sql names them: rollups have rows of each.
    content = f"""
        select period, sum(rows), sum(fingerprint)
        from
        (
            select toStartOfHour(event_time) as hour, count() as rows, sum(content_hash) as fingerprint
            from {settings.database}.app_events
            group by hour
        )
        array join [hour, toStartOfDay(hour) + 1, toDateTime(toStartOfMonth(hour), 'UTC') + 2] as period
        group by period
    """
    # Twice: a build of longer periods that was reading shorter ones could bring back what they held.
    for _ in range(2):
        settle(client, settings)
        rollups = client.query(
            "select tables.uuid, max(columns.name = 'period') "
            "from system.tables as tables inner join system.columns as columns "
            "on columns.database = tables.database and columns.table = tables.name "
            "where tables.database = {database:String} and tables.engine like '%MergeTree' "
            "group by tables.uuid having max(columns.name = 'input_fingerprint')",
            parameters={"database": settings.database},
        ).result_rows
        for uuid, has_period in rollups:
            # One of another layout is emptied: the next build makes it anew.
            stale = f"(period, input_rows, input_fingerprint) not in ({content})" if has_period else "true"
            _delete_in_rollup(client, settings, uuid, stale)


def _delete_in_rollup(client: Client, settings: Settings, uuid: UUID, where: str) -> None:
    """Delete rows of a table that a build with ``--full-refresh`` may rename, exchange or drop meanwhile."""

    def name() -> str:
        found = client.query(
            "select name from system.tables where database = {database:String} and uuid = {uuid:UUID}",
            parameters={"database": settings.database, "uuid": uuid},
        ).result_rows
        return found[0][0] if found else ""

    while table := name():
        try:
            _delete(client, settings, table, where)
        except ClickHouseError:
            if name() == table:
                raise
        if name() == table:
            return


def _erased(client: Client, settings: Settings, job: Job) -> dict[str, Any]:
    events, quarantined = client.query(
        "select sumIf(rows, change = 'kept erased'), sumIf(rows, change = 'quarantined erased') "
        f"from {settings.database}.import_changes final where job_id = {{job_id:String}}",
        parameters={"job_id": job.job_id},
    ).result_rows[0]
    return {"rows_affected": events + quarantined, "app_events": events, "app_events_quarantine": quarantined}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m warehouse.erase",
        description="Erase events from app_events, its quarantine, the rollups and the landing folder, for good.",
    )
    parser.add_argument("condition", help="SQL over the columns of an event, for example \"user_id = 'u1'\"")
    parser.add_argument("--dry-run", action="store_true", help="only say how much it would be")
    arguments = parser.parse_args()

    def dry_run(client: Client, settings: Settings) -> dict[str, Any]:
        condition = Condition(client, arguments.condition)
        places = rows_to_be_deleted(client, settings, condition)
        lines = erase_lines(client, settings, condition, dry_run=True).lines
        return {"rows_to_be_deleted": sum(places.values()), **places, "landing_folder": lines}

    command("delete_data", {"delete_condition": arguments.condition}, dry_run if arguments.dry_run else None)


if __name__ == "__main__":
    main()
