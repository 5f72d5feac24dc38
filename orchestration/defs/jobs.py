"""Work on what is already in: deletes and replays that were asked for over HTTP, and a replay that a person starts."""

from contextlib import closing

import dagster as dg
from clickhouse_connect.driver.exceptions import ClickHouseError

from orchestration.runs import concurrency_tag, is_active
from warehouse.connection import connect
from warehouse.jobs import Job, do_jobs, do_now, unfinished_jobs
from warehouse.settings import Settings

JOB = "jobs"
REPLAY_JOB = "replay_quarantine"


@dg.op(description="Every job that waits or was interrupted, one after the other.")
def do_waiting_jobs(context: dg.OpExecutionContext) -> None:
    settings = Settings.from_env()
    with closing(connect(settings)) as client:
        for job in do_jobs(client, settings):
            _report(context, job)


@dg.job(
    name=JOB,
    description="Do what was asked for over HTTP: deletes, truncates and replays.",
    executor_def=dg.in_process_executor,
    tags=concurrency_tag(JOB),
)
def jobs() -> None:
    do_waiting_jobs()


class Replay(dg.Config):
    """Which rows of the quarantine to replay: SQL over its columns; all of them by default."""

    condition: str = "true"


@dg.op(description="Quarantined lines that are valid events by now become rows of app_events.")
def replay(context: dg.OpExecutionContext, config: Replay) -> None:
    settings = Settings.from_env()
    with closing(connect(settings)) as client:
        job = do_now(client, settings, "replay", {"condition": config.condition})
    _report(context, job)
    if job.error:
        raise dg.Failure(job.error, allow_retries=False)


@dg.job(
    name=REPLAY_JOB,
    description="Replay quarantined lines after a fix of the check or of the rows.",
    executor_def=dg.in_process_executor,
    tags=concurrency_tag(JOB),
)
def replay_quarantine() -> None:
    replay()


def _report(context: dg.OpExecutionContext, job: Job) -> None:
    # Not its arguments: a condition names the person to forget, and logs stay.
    if job.error:
        context.log.error(f"{job.kind} {job.job_id}: {job.error}")
    else:
        context.log.info(f"{job.kind} {job.job_id}: {job.statistics}")


@dg.sensor(
    job=jobs,
    minimum_interval_seconds=2,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Starts a run when jobs wait or were interrupted.",
)
def asked_jobs(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    if is_active(context.instance, JOB) or is_active(context.instance, REPLAY_JOB):
        return dg.SkipReason("Jobs are being done.")
    settings = Settings.from_env()
    try:
        with closing(connect(settings)) as client:
            waiting = unfinished_jobs(client, settings)
    except ClickHouseError as error:
        return dg.SkipReason(f"ClickHouse does not answer: {error}")
    if not waiting:
        return dg.SkipReason("No jobs wait.")
    return dg.RunRequest(tags={"jobs": str(len(waiting))})
