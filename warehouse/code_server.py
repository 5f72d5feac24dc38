"""Dagster's code server, shared by its web UI and its daemon: ``python -m warehouse.code_server PORT``.

One process that serves the definitions of ``orchestration`` and starts the runs. Before it serves, it brings
``DAGSTER_HOME`` in order; nothing else of Dagster may start earlier: two processes that create the same SQLite files at
once leave them unusable.
"""

from __future__ import annotations

import runpy
import sys


def prepare_instance() -> None:
    """Create or migrate Dagster's storage and fail the runs that ended together with the code server before."""
    from dagster import DagsterInstance, DagsterRunStatus, RunsFilter

    with DagsterInstance.get() as instance:
        instance.upgrade()
        unfinished = RunsFilter(
            statuses=[DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
        )
        for run in instance.get_runs(unfinished):
            # Only the code server that started a run notices its end; without it the run would hold its place for ever.
            instance.report_run_failed(run, "The process of this run ended together with the code server.")


if __name__ == "__main__":
    prepare_instance()
    sys.argv = ["dagster", "api", "grpc", "--host", "127.0.0.1", "--port", sys.argv[1]]
    sys.argv += ["--module-name", "orchestration.definitions", "--location-name", "orchestration"]
    runpy.run_module("dagster", run_name="__main__")
