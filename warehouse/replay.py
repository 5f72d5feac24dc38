"""Send quarantined lines through the check of landing again: ``python -m warehouse.replay``.

For after a fix: of the check (``warehouse/schema/5_landing_check.sql``), or of the rows, by
``alter table app_events_quarantine update country = 'FR' where …``. Lines that pass now become rows of ``app_events``
with the import and line number that they came by, and leave the quarantine; the others stay as they are.
"""

from __future__ import annotations

import argparse
from typing import Any

from clickhouse_connect.driver.client import Client

from warehouse.conditions import COLUMNS, QUARANTINE_COLUMNS, Condition, ConditionError
from warehouse.erase import ONCE, delete_quarantined
from warehouse.jobs import Job, JobError, command, cutoff, to_the_end
from warehouse.quarantine import quarantined_lines
from warehouse.schema import checked, kept
from warehouse.settings import Settings

EVERYTHING = "true"


def lines_that_pass(client: Client, settings: Settings, condition: Condition) -> tuple[int, int]:
    """How many quarantined rows the condition is about, and how many of them are valid events by now."""
    lines = checked(settings, quarantined_lines(settings, condition.sql))
    rows, passing = client.query(f"select count(), countIf(is_valid) from ({lines})").result_rows[0]
    return rows, passing


def replay(client: Client, settings: Settings, job: Job) -> dict[str, Any]:
    """Move the quarantined rows that ``condition`` is about and that pass the check to ``app_events``: what it did.

    Raises:
        JobError: no condition that can be used.
    """
    text = str(job.arguments.get("condition", EVERYTHING))
    try:
        condition = Condition(client, text, QUARANTINE_COLUMNS)
    except ConditionError as error:
        raise JobError(str(error)) from error
    until = cutoff(client, settings, job)
    if job.cutoff:
        with to_the_end():
            delete_quarantined(client, settings, job, "replayed")
            _leave_quarantine(client, settings, job, until)
    # Not evaluated for what came later: it may fail for that.
    lines = checked(settings, quarantined_lines(settings, f"if(insertion_date <= {until}, {condition.sql}, false)"))
    # A condition that fails for some row fails here, while nothing has been moved yet.
    client.query(f"select count() from ({lines})")
    columns = ", ".join(COLUMNS)
    with to_the_end():
        client.command(
            f"""
            insert into {settings.database}.app_events ({columns}, import_id, line_number)
            select {columns}, import_id, line_number
            from ({kept(settings, f"({lines})")})
            """,
            # They may be of hundreds of months; equal lines are no repetition.
            settings=ONCE | {"max_partitions_per_insert_block": 0},
        )
        _leave_quarantine(client, settings, job, until)
    replayed = _replayed(client, settings, job)
    return {
        "rows_affected": replayed,
        "replayed": replayed,
        "still_quarantined": client.query(f"select count() from ({lines})").result_rows[0][0],
    }


def _leave_quarantine(client: Client, settings: Settings, job: Job, until: str) -> None:
    """Write down which lines the job has moved so far, and delete them from the quarantine.

    They are those that have come to ``app_events`` since it began, whatever somebody has made of their rows meanwhile.
    Only where several rows are of one line, which of them it is has to be told by their columns.
    """
    database = settings.database
    moved = f"""
        {database}.app_events
        where inserted_at >= {until} + 1
        and import_id in (select c__import_id from {database}.app_events_quarantine)
    """
    not_written_down = f"""
        select import_id, line_number
        from
        (
            select import_id, line_number, 1 as rows_moved from {moved}
            union all
            select import_id, line_number, -toInt64(rows)
            from {database}.import_changes final
            where job_id = {{job_id:String}} and change = 'replayed'
        )
        group by import_id, line_number
        having sum(rows_moved) > 0
    """
    shared = f"""
        select c__import_id, line_number
        from {database}.app_events_quarantine
        group by c__import_id, line_number
        having count() > 1
    """
    lines = quarantined_lines(
        settings, f"insertion_date <= {until} and (c__import_id, line_number) in ({not_written_down})"
    )
    values = ", ".join("event_time_utc" if name == "event_time" else f"event.{name}" for name in COLUMNS)
    client.command(
        f"""
        insert into {database}.import_changes (import_id, job_id, change, line_number, raw_hash, rows)
        select import_id, {{job_id:String}}, 'replayed', line_number, cityHash64(raw), count()
        from ({checked(settings, lines)})
        where (import_id, line_number) not in ({shared})
        or (import_id, line_number, {values}) in (select import_id, line_number, {", ".join(COLUMNS)} from {moved})
        group by import_id, line_number, raw
        """,
        parameters={"job_id": job.job_id},
        settings=ONCE,
    )
    delete_quarantined(client, settings, job, "replayed")


def _replayed(client: Client, settings: Settings, job: Job) -> int:
    return client.query(
        f"select sum(rows) from {settings.database}.import_changes final where job_id = {{job_id:String}}",
        parameters={"job_id": job.job_id},
    ).result_rows[0][0]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m warehouse.replay",
        description="Move quarantined lines that are valid events by now to app_events.",
    )
    parser.add_argument(
        "--where",
        default=EVERYTHING,
        metavar="CONDITION",
        help="only these: SQL over the columns of app_events_quarantine, like \"has(c__error_column, 'country')\"",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say how many would pass")
    arguments = parser.parse_args()

    def dry_run(client: Client, settings: Settings) -> dict[str, Any]:
        rows, passing = lines_that_pass(client, settings, Condition(client, arguments.where, QUARANTINE_COLUMNS))
        return {"quarantined": rows, "would_pass": passing}

    command("replay", {"condition": arguments.where}, dry_run if arguments.dry_run else None)


if __name__ == "__main__":
    main()
