"""Dagster: the graph is whole, a run ingests, sensor and schedule start runs when there is something to do."""

from __future__ import annotations

import ast
import gzip
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from clickhouse_connect.driver.client import Client

from warehouse.settings import PROJECT_DIR, Settings

if TYPE_CHECKING:
    import dagster as dg

LANDING = {"landing_folder", "app_events", "app_events_quarantine"}
MODELS = {
    "stg_app_events",
    "events_by_type_periods",
    "event_properties_periods",
    "sessions_periods",
}
ENDPOINTS = {"api/events_by_type", "api/event_properties", "api/user_sessions"}


@pytest.fixture(scope="module")
def environ(server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """This process and those it starts use the session's server, and a landing folder of this module's own."""
    own = tmp_path_factory.mktemp("ingestion")
    environ = server.environ | {
        "LANDING_URL": str(own / "landing"),
        "DBT_TARGET_PATH": str(own / "dbt"),
        "DBT_LOG_PATH": str(own / "logs"),
        "DAGSTER_HOME": str(own / "dagster"),
    }
    (own / "landing").mkdir()
    (own / "dagster").mkdir()
    (own / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with pytest.MonkeyPatch.context() as patch:
        for name in set(os.environ) - set(environ):
            patch.delenv(name)
        for name, value in environ.items():
            patch.setenv(name, value)
        yield environ


@pytest.fixture(scope="module")
def repository(environ: dict[str, str]) -> dg.RepositoryDefinition:
    """What Dagster loads; parses the dbt project, since this target folder is new."""
    from orchestration.definitions import defs

    return defs().get_repository_def()


def put(environ: dict[str, str], name: str, content: bytes) -> None:
    path = Path(environ["LANDING_URL"], name)
    path.write_bytes(content)
    past = time.time() - 10
    os.utime(path, (past, past))


def ndjson(count: int) -> bytes:
    return b"".join(
        json.dumps(
            {"event_id": uuid.uuid4().hex, "event_type": "app_open", "event_time": "2025-05-11 22:01:58"}
        ).encode()
        + b"\n"
        for _ in range(count)
    )


def test_every_asset_is_in_the_graph(repository: dg.RepositoryDefinition) -> None:
    import dagster as dg

    graph = repository.asset_graph
    keys = {key.to_user_string() for key in graph.get_all_asset_keys()}
    assert keys >= LANDING | MODELS | ENDPOINTS

    def ancestors(name: str) -> set[str]:
        found: set[str] = set()
        waiting = [name]
        while waiting:
            key = dg.AssetKey.from_user_string(waiting.pop())
            parents = {parent.to_user_string() for parent in graph.get(key).parent_keys} - found
            found |= parents
            waiting += parents
        return found

    for endpoint in ENDPOINTS:
        assert {"landing_folder", "app_events"} <= ancestors(endpoint), endpoint
    assert ancestors("app_events") == ancestors("app_events_quarantine") == {"landing_folder"}


def test_dbt_tests_are_asset_checks(repository: dg.RepositoryDefinition) -> None:
    checks = {(key.asset_key.to_user_string(), key.name) for key in repository.asset_graph.asset_check_keys}
    assert ("app_events", "files_are_readable") in checks
    assert ("stg_app_events", "not_null_stg_app_events_event_id") in checks
    assert {asset for asset, _ in checks} >= {"app_events", *MODELS}


def test_jobs_sensor_and_schedule_run_by_themselves(repository: dg.RepositoryDefinition) -> None:
    import dagster as dg

    assert {job.name for job in repository.get_all_jobs()} >= {"ingestion", "build"}
    assert repository.get_sensor_def("new_files").default_status is dg.DefaultSensorStatus.RUNNING
    assert repository.get_schedule_def("every_minute").default_status is dg.DefaultScheduleStatus.RUNNING
    for job in ("ingestion", "build"):
        assert repository.get_job(job).tags["dagster/concurrency_key"] == job


def test_a_run_ingests_and_reports(repository: dg.RepositoryDefinition, environ: dict[str, str]) -> None:
    import dagster as dg

    def readable(result: dg.ExecuteInProcessResult) -> list[dg.AssetCheckEvaluation]:
        return [found for found in result.get_asset_check_evaluations() if found.check_name == "files_are_readable"]

    put(environ, "good.ndjson.gz", gzip.compress(ndjson(50) + b'{"event_id": ""}\n'))
    put(environ, "bad.gz", b"no")
    job = repository.get_job("ingestion")
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(instance=instance)
        assert result.success
        metadata = {
            event.asset_key.to_user_string(): {
                name: value.value for name, value in event.materialization.metadata.items()
            }
            for event in result.get_asset_materialization_events()
            if event.asset_key
        }
        assert metadata["app_events"]["files"] == 1
        assert metadata["app_events"]["rows"] == 50
        assert metadata["app_events"]["quarantined"] == metadata["app_events_quarantine"]["rows"] == 1
        assert metadata["app_events"]["rows_per_second"] > 0
        assert list(metadata["app_events"]["set_aside_reasons"]) == ["set_aside/bad.gz"]
        (check,) = readable(result)
        assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
        again = job.execute_in_process(instance=instance)
        assert [evaluation.passed for evaluation in readable(again)] == [True]


def test_the_sensor_starts_one_run_for_new_files(repository: dg.RepositoryDefinition, environ: dict[str, str]) -> None:
    import dagster as dg

    sensor = repository.get_sensor_def("new_files")
    with dg.DagsterInstance.ephemeral() as instance:

        def evaluate(cursor: str | None = None) -> dg.SensorExecutionData:
            context = dg.build_sensor_context(instance, cursor=cursor, repository_def=repository)
            return sensor.evaluate_tick(context)

        assert evaluate().skip_message == "No new files in the landing folder."
        put(environ, "new.ndjson", ndjson(3))
        tick = evaluate()
        assert len(tick.run_requests or []) == 1
        assert "less than" in (evaluate(tick.cursor).skip_message or "")
        retry = json.loads(tick.cursor or "")
        assert evaluate(json.dumps([retry[0], retry[1] - 31])).run_requests
        put(environ, "newer.ndjson", ndjson(3))
        assert evaluate(tick.cursor).run_requests

        job = repository.get_job("ingestion")
        run = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
        assert evaluate().skip_message == "An ingestion is going on."
        instance.report_run_failed(run)
        assert evaluate().run_requests
        assert job.execute_in_process(instance=instance).success
        assert evaluate().skip_message == "No new files in the landing folder."


def test_sensor_and_schedule_wait_while_clickhouse_is_away(
    repository: dg.RepositoryDefinition, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import dagster as dg

    put(environ, "away.ndjson", ndjson(1))
    monkeypatch.setenv("CLICKHOUSE_PORT", "1")
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        context = dg.build_sensor_context(instance, repository_def=repository)
        tick = repository.get_sensor_def("new_files").evaluate_tick(context)
        assert "ClickHouse does not answer" in (tick.skip_message or "")
        tock = repository.get_schedule_def("every_minute").evaluate_tick(
            dg.build_schedule_context(instance, repository_def=repository)
        )
        assert "ClickHouse does not answer" in (tock.skip_message or "")


def test_the_schedule_builds_when_events_came_and_no_build_goes_on(
    repository: dg.RepositoryDefinition, environ: dict[str, str], client: Client, tmp_path: Path
) -> None:
    import dagster as dg

    from warehouse.framing import frames
    from warehouse.landing import land

    schedule = repository.get_schedule_def("every_minute")
    job = repository.get_job("build")
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:

        def evaluate() -> dg.ScheduleExecutionData:
            return schedule.evaluate_tick(dg.build_schedule_context(instance, repository_def=repository))

        (request,) = evaluate().run_requests or []
        run = instance.create_run_for_job(job, tags=request.tags, status=dg.DagsterRunStatus.STARTED)
        assert evaluate().skip_message == "The build before is still going on."
        instance.report_run_failed(run)
        assert evaluate().run_requests, "a failed build is repeated"
        (request,) = evaluate().run_requests or []
        instance.create_run_for_job(job, tags=request.tags, status=dg.DagsterRunStatus.SUCCESS)
        deadline = time.monotonic() + 30
        while evaluate().run_requests and time.monotonic() < deadline:  # merges of earlier tests' rows come to an end
            (request,) = evaluate().run_requests or []
            instance.create_run_for_job(job, tags=request.tags, status=dg.DagsterRunStatus.SUCCESS)
            time.sleep(1)
        assert "have changed since" in (evaluate().skip_message or "")
        land(client, Settings.from_env(), uuid.uuid4().hex, "http", frames([ndjson(1)]))
        assert evaluate().run_requests


def test_a_build_through_dagster(repository: dg.RepositoryDefinition, client: Client, environ: dict[str, str]) -> None:
    """The whole build on real events: every model materialised, every check evaluated, one target folder."""
    import dagster as dg

    settings = Settings.from_env()
    with dg.DagsterInstance.ephemeral() as instance:
        everything = repository.get_job("build_everything").execute_in_process(instance=instance)
        result = repository.get_job("build").execute_in_process(instance=instance)
    assert everything.success
    assert result.success

    def built(job: dg.ExecuteInProcessResult) -> set[str]:
        return {event.asset_key.to_user_string() for event in job.get_asset_materialization_events() if event.asset_key}

    # What reads every event is left to the nightly job.
    assert built(everything) - built(result) == {"stg_app_events"}
    assert built(everything) >= MODELS | ENDPOINTS
    for job in (everything, result):
        assert all(evaluation.passed for evaluation in job.get_asset_check_evaluations())
    nightly = {evaluation.check_name for evaluation in everything.get_asset_check_evaluations()}
    assert "unique_stg_app_events__event_id_event_time_" in nightly
    periods_built = {
        materialization.asset_key.to_user_string(): materialization.metadata["periods_built"].value
        for event in result.get_asset_materialization_events()
        if "periods_built" in (materialization := event.materialization).metadata
    }
    assert periods_built.keys() == MODELS - {"stg_app_events"}
    assert set(periods_built.values()) == {0}, "the second build found nothing to do"
    views = client.query(
        "select name from system.tables where database = {database:String}",
        parameters={"database": settings.api_database},
    ).result_rows
    assert {f"api/{name}" for (name,) in views} >= ENDPOINTS
    folders = [path.name for path in Path(environ["DBT_TARGET_PATH"]).iterdir() if path.is_dir()]
    assert len(folders) < 4, f"every build leaves a folder: {folders}"


def test_orchestration_and_serving_do_not_know_each_other() -> None:
    code = (
        "import sys, orchestration.definitions as d; d.defs(); print([m for m in sys.modules if m.startswith('serve')])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_DIR, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip().endswith("[]"), loaded.stdout
    for package, other in (("orchestration", "serve"), ("serve", "orchestration")):
        for path in (PROJECT_DIR / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not any(name.split(".")[0] == other for name in names), path
