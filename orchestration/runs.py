"""What the sensor and the schedule know of runs."""

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter

UNFINISHED = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]


def concurrency_tag(key: str) -> dict[str, str]:
    """The tag by which the instance runs one at a time of the runs with the same key."""
    return {"dagster/concurrency_key": key}


def is_active(instance: DagsterInstance, job_name: str) -> bool:
    """True while a run of the job waits or goes on."""
    return bool(instance.get_runs(RunsFilter(job_name=job_name, statuses=UNFINISHED), limit=1))


def last_success(instance: DagsterInstance, job_name: str) -> DagsterRun | None:
    """The latest run of the job that succeeded."""
    runs = instance.get_runs(RunsFilter(job_name=job_name, statuses=[DagsterRunStatus.SUCCESS]), limit=1)
    return runs[0] if runs else None
