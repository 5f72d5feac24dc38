"""Work on what is already in: asked for over HTTP or by a command, done one at a time, finished after any interruption.

A job is a row of ``jobs``. Whoever does jobs, a command or Dagster, holds the landing folder's lock meanwhile; a job
that is ``working`` while nobody holds it was interrupted, and is done again by whoever comes next. So each kind of work
has to give the same result when it is done again from any point on.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from warehouse.connection import refusal
from warehouse.landing import folder_lock
from warehouse.settings import Settings

# The longest that an insert may go on before a job gives up waiting for its end: a first build reads every event.
SETTLE_SECONDS = 900
POLL_SECONDS = 0.05


class JobError(Exception):
    """A job that cannot be done; the message says why in one sentence."""


class Interrupted(Exception):
    """A job past the point of no return that ClickHouse did not finish; it stays ``working`` and is done again."""


@dataclass(frozen=True)
class Job:
    """One row of ``jobs``, its latest state.

    Attributes:
        arguments: by the kind; the README's page on quarantine and erasure lists them.
        cutoff: rows that came after this second are not touched; None until it is known.
        statistics: what it did, by place.
    """

    job_id: str
    kind: str
    arguments: dict[str, Any]
    status: str
    created_at: datetime.datetime
    started_at: datetime.datetime | None = None
    cutoff: datetime.datetime | None = None
    rows_affected: int = 0
    statistics: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: str = ""


def unfinished_jobs(client: Client, settings: Settings) -> list[Job]:
    """The jobs to do, in their order: interrupted ones first, then by when they were asked for."""
    columns = [field.name for field in dataclasses.fields(Job)]
    rows = client.query(
        f"select {', '.join(columns)} from {settings.database}.jobs final "
        "where status in ('waiting', 'working') order by status = 'waiting', created_at, job_id"
    ).result_rows
    return [_job(dict(zip(columns, row, strict=True))) for row in rows]


def _job(row: dict[str, Any]) -> Job:
    for name, value in row.items():
        if isinstance(value, datetime.datetime):
            row[name] = value.replace(tzinfo=datetime.UTC)
    for name in ("arguments", "statistics"):
        try:
            row[name] = json.loads(row[name])
        except ValueError:
            row[name] = {}
    return Job(**row)


@contextmanager
def to_the_end() -> Iterator[None]:
    """What has to be finished because the account tells of it already."""
    try:
        yield
    except ClickHouseError as error:
        raise Interrupted(f"ClickHouse did not finish it; it is done again: {refusal(error)}.") from error


def do_jobs(client: Client, settings: Settings) -> Iterator[Job]:
    """Do every job that waits or was interrupted, one after the other, and yield each as it ended.

    Raises:
        clickhouse_connect.driver.exceptions.ClickHouseError, Interrupted: ClickHouse is away; run it again.
    """
    with folder_lock(settings, exclusive=True):
        for job in unfinished_jobs(client, settings):
            yield _do(client, settings, job)


def do_now(client: Client, settings: Settings, kind: str, arguments: dict[str, Any]) -> Job:
    """Do one job at once, after those that were interrupted, and return it as it ended.

    Raises:
        clickhouse_connect.driver.exceptions.ClickHouseError, Interrupted: Dagster goes on with it later.
    """
    with folder_lock(settings, exclusive=True):
        for job in unfinished_jobs(client, settings):
            if job.status == "working":
                _do(client, settings, job)
        return _do(client, settings, Job(uuid.uuid4().hex, kind, arguments, "working", _now(client)))


def _do(client: Client, settings: Settings, job: Job) -> Job:
    from warehouse import erase, replay  # they are what is done, and know what a job is

    kinds = {"delete_data": erase.delete_data, "truncate": erase.truncate, "replay": replay.replay}
    job = _write(client, settings, replace(job, status="working", started_at=job.started_at or _now(client)))
    try:
        statistics = kinds[job.kind](client, settings, job)
    except JobError as error:
        done = replace(job, status="error", error=str(error))
    except OSError as error:
        done = replace(job, status="error", error=f"The landing folder cannot be read or written: {error.strerror}.")
    except ClickHouseError as error:
        if getattr(error, "code", None) is None:
            raise  # it is away: the job goes on when it is back
        done = replace(job, status="error", error=f"ClickHouse refused: {refusal(error)}.")
    except Interrupted:
        raise
    except Exception:
        # Left as it is, it would be tried again and again, and the jobs behind it never.
        _write(client, settings, replace(job, status="error", error="It failed; the log of the run says why."))
        raise
    else:
        done = replace(job, status="done", rows_affected=statistics["rows_affected"], statistics=statistics)
    return _write(client, settings, done)


def cutoff(client: Client, settings: Settings, job: Job) -> str:
    """The last second whose rows are the job's, in SQL; when this returns, no more rows of it or earlier will come.

    Raises:
        JobError: an insert does not end.
    """
    second = job.cutoff
    if second is None:
        second = _now(client).replace(microsecond=0)
        while _now(client).replace(microsecond=0) == second:
            time.sleep(POLL_SECONDS)
        settle(client, settings)
        _write(client, settings, replace(job, cutoff=second))
    return f"toDateTime({int(second.timestamp())}, 'UTC')"


def settle(client: Client, settings: Settings) -> None:
    """Wait until every insert into the project's tables that goes on now has ended.

    Raises:
        JobError: one does not.
    """

    def running() -> set[str]:
        found = client.query(
            "select query_id from system.processes where query_kind = 'Insert' "
            "and (current_database = {database:String} or position(query, {database:String}) > 0)",
            parameters={"database": settings.database},
        )
        return {query_id for (query_id,) in found.result_rows}

    pending = running()
    deadline = time.monotonic() + SETTLE_SECONDS
    while pending:
        if time.monotonic() > deadline:
            raise JobError(f"An insert has been going on for more than {SETTLE_SECONDS} s; end it and ask again.")
        time.sleep(POLL_SECONDS)
        pending &= running()


def _write(client: Client, settings: Settings, job: Job) -> Job:
    row = dataclasses.asdict(job)
    row["arguments"] = json.dumps(job.arguments)
    row["statistics"] = json.dumps(job.statistics) if job.statistics else ""
    row["updated_at"] = _now(client)
    client.insert(
        f"{settings.database}.jobs",
        [list(row.values())],
        column_names=list(row),
        settings={"async_insert": 0, "insert_deduplicate": 0},
    )
    return job


def _now(client: Client) -> datetime.datetime:
    # ClickHouse's clock, as in the row that the request wrote: the latest state wins.
    return client.query("select now64(6, 'UTC')").result_rows[0][0].replace(tzinfo=datetime.UTC)
