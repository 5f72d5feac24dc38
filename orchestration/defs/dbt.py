"""The dbt project: rollups and endpoints built on ``app_events``, dbt's tests as asset checks."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import dagster as dg
from clickhouse_connect.driver.exceptions import ClickHouseError
from dagster_dbt import (
    DagsterDbtTranslator,
    DagsterDbtTranslatorSettings,
    DbtCliResource,
    DbtProject,
    dbt_assets,
)
from dagster_dbt.dbt_project import DagsterDbtProjectPreparer

from orchestration.runs import concurrency_tag, is_active, last_success
from warehouse.connection import connect
from warehouse.settings import PROJECT_DIR, Settings

JOB = "build"
EVERYTHING_JOB = "build_everything"
INPUT_TAG = "input"
# Unit tests try the SQL on rows of their own: `make test` runs them, events do not change their result.
BUILD = ["build", "--exclude-resource-type", "unit_test"]
# Costs what the whole history costs, so it has a job of its own.
READS_EVERY_EVENT = "tag:reads_every_event"

dbt_project = DbtProject(project_dir=PROJECT_DIR, target_path=os.environ.get("DBT_TARGET_PATH", "target"))


def manifest_is_stale() -> bool:
    """True when the manifest is missing or older than a file of the dbt project."""
    folders = [PROJECT_DIR / name for name in ("models", "macros", "seeds", "tests/data")]
    files = [file for folder in folders for file in folder.rglob("*")]  # folders too: a file may have been deleted
    manifest = dbt_project.manifest_path
    newest = max(path.stat().st_mtime for path in [PROJECT_DIR / "dbt_project.yml", *folders, *files] if path.exists())
    return not manifest.exists() or manifest.stat().st_mtime < newest


# Every run loads this anew: a model that was added a moment ago is part of the next build.
if manifest_is_stale():
    DagsterDbtProjectPreparer().prepare(dbt_project)  # `dbt parse`: needs no server
# Rows of these have a built_at, and their period is an hour or a day.
ROLLUPS = frozenset(
    node["name"]
    for node in json.loads(dbt_project.manifest_path.read_text())["nodes"].values()
    if node["resource_type"] == "model" and node["config"]["materialized"] == "incremental"
)
MANIFEST_ID = hashlib.sha256(dbt_project.manifest_path.read_bytes()).hexdigest()[:16]


class Translator(DagsterDbtTranslator):
    """Assets grouped by the folder of their model."""

    def get_group_name(self, dbt_resource_props: Mapping[str, Any]) -> str | None:
        folders = dbt_resource_props["fqn"][1:-1]
        return folders[0] if folders else f"{dbt_resource_props['resource_type']}s"


@dbt_assets(
    manifest=dbt_project.manifest_path,
    project=dbt_project,
    name="models",
    dagster_dbt_translator=Translator(DagsterDbtTranslatorSettings(enable_source_tests_as_checks=True)),
)
def models(context: dg.AssetExecutionContext, dbt: DbtCliResource) -> Iterator[Any]:
    settings = Settings.from_env()
    # One folder for every build: there is one at a time, and a folder each would fill the disk minute by minute.
    exclude = [] if context.run.job_name == EVERYTHING_JOB else ["--exclude", READS_EVERY_EVENT]
    with closing(connect(settings)) as client:
        began = client.query("select now64(3, 'UTC')").result_rows[0][0]
        invocation = dbt.cli(
            [*BUILD, *exclude], context=context, target_path=PROJECT_DIR / dbt_project.target_path / "build"
        )
        for event in invocation.stream():
            if isinstance(event, dg.Output) and event.output_name in ROLLUPS:
                built = client.query(
                    "select count() from {database:Identifier}.{rollup:Identifier} final "
                    "where built_at >= {began:DateTime64(3)}",
                    parameters={"database": settings.database, "rollup": event.output_name, "began": began},
                ).result_rows[0][0]
                yield event.with_metadata({**event.metadata, "periods_built": built})
            else:
                yield event


build_job = dg.define_asset_job(
    JOB,
    selection=dg.AssetSelection.assets(models),
    description="Build the rollups and endpoints, and test them.",
    executor_def=dg.in_process_executor,
    tags=concurrency_tag(JOB),
)


everything_job = dg.define_asset_job(
    EVERYTHING_JOB,
    selection=dg.AssetSelection.assets(models),
    description="Build everything, and run the tests that read every event too.",
    executor_def=dg.in_process_executor,
    tags=concurrency_tag(JOB),
)

every_night = dg.ScheduleDefinition(
    name="every_night",
    job=everything_job,
    cron_schedule="30 3 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Builds everything and runs every test once a day.",
)


def input_version(settings: Settings) -> str:
    """Differs whenever ``app_events`` or the models do; also after a merge, which costs one build for nothing."""
    client = connect(settings)
    try:
        parts = client.query(
            "select count(), sum(rows), max(modification_time), sum(cityHash64(name)) from system.parts "
            "where database = {database:String} and table = 'app_events' and active",
            parameters={"database": settings.database},
        ).result_rows[0]
    finally:
        client.close()
    return hashlib.sha256(f"{MANIFEST_ID} {parts}".encode()).hexdigest()[:16]


@dg.schedule(
    job=build_job,
    cron_schedule="* * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Builds the models every minute in which events came, unless the build before is still going on.",
)
def every_minute(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    if is_active(context.instance, JOB):
        return dg.SkipReason("The build before is still going on.")
    try:
        version = input_version(Settings.from_env())
    except ClickHouseError as error:
        return dg.SkipReason(f"ClickHouse does not answer: {error}")
    last = last_success(context.instance, JOB)
    if last and last.tags.get(INPUT_TAG) == version:
        return dg.SkipReason("Neither the events nor the models have changed since the last build.")
    return dg.RunRequest(tags={INPUT_TAG: version})
