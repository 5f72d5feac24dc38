"""Files of the landing folder become rows of ``app_events`` and ``app_events_quarantine``."""

import hashlib
import json
import time
from collections.abc import Iterator

import dagster as dg
from clickhouse_connect.driver.exceptions import ClickHouseError

from orchestration.runs import concurrency_tag, is_active
from warehouse.connection import connect
from warehouse.landing import EXTENSIONS, SET_ASIDE, SPOOL, LandingFolder, ingest, waiting_files
from warehouse.settings import Settings

JOB = "ingestion"
# Files that a run has left (it failed, or one may not be read) are tried again after this time.
RETRY_SECONDS = 30

landing_folder = dg.AssetSpec(
    "landing_folder",
    description=f"Files to ingest: {', '.join(EXTENSIONS)}, plain, gzip or zstd; and batches that HTTP has spooled.",
    kinds={"file"},
    group_name="landing",
)


@dg.multi_asset(
    name="ingest_files",
    specs=[
        dg.AssetSpec(
            "app_events",
            deps=[landing_folder],
            description="One row per event received, copies included.",
            kinds={"clickhouse"},
            group_name="landing",
        ),
        dg.AssetSpec(
            "app_events_quarantine",
            deps=[landing_folder],
            description="Every line that is not a valid event, with the reason.",
            kinds={"clickhouse"},
            group_name="landing",
        ),
    ],
    check_specs=[
        dg.AssetCheckSpec(
            "files_are_readable", asset="app_events", description="No file had to be set aside or left where it is."
        )
    ],
)
def ingest_files(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
    settings = Settings.from_env()
    began = time.monotonic()
    done = {}
    trouble = {}
    for outcome in ingest(connect(settings), settings):
        if outcome.state == "done":
            done[outcome.path] = outcome
            if not outcome.path.startswith(f"{SPOOL}/"):  # a line in Dagster's log costs as much as a small batch
                context.log.info(f"{outcome.path}: {outcome.lines} lines, {outcome.quarantined} quarantined")
        else:
            trouble[outcome.path] = outcome
            context.log.warning(f"{outcome.path} was {outcome.state}: {outcome.error}")
    batches = [outcome for path, outcome in done.items() if path.startswith(f"{SPOOL}/")]
    if batches:
        context.log.info(f"{len(batches)} batches from the spool: {sum(batch.lines for batch in batches)} lines")
    seconds = time.monotonic() - began
    lines = sum(outcome.lines for outcome in done.values())
    quarantined = sum(outcome.quarantined for outcome in done.values())
    reasons = {path: f"{outcome.state}: {outcome.error}" for path, outcome in trouble.items()}
    yield dg.MaterializeResult(
        asset_key="app_events",
        metadata={
            "files": len(done),
            "rows": lines - quarantined,
            "quarantined": quarantined,
            "rows_per_second": round(lines / seconds) if lines else 0,
            "seconds": round(seconds, 3),
            "set_aside": len(trouble),
            "set_aside_reasons": dg.MetadataValue.json(reasons),
        },
        check_results=[
            dg.AssetCheckResult(
                check_name="files_are_readable",
                passed=not trouble,
                severity=dg.AssetCheckSeverity.WARN,
                description=f"{len(trouble)} files; those that cannot be read lie in {SET_ASIDE}/" if trouble else None,
                metadata={"files": dg.MetadataValue.json(reasons)},
            )
        ],
    )
    yield dg.MaterializeResult(asset_key="app_events_quarantine", metadata={"rows": quarantined})


ingestion_job = dg.define_asset_job(
    JOB,
    selection=dg.AssetSelection.assets("app_events", "app_events_quarantine"),
    description="Ingest every new file of the landing folder.",
    executor_def=dg.in_process_executor,
    tags=concurrency_tag(JOB),
)


@dg.sensor(
    job=ingestion_job,
    minimum_interval_seconds=2,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Starts an ingestion when there are new files in the landing folder.",
)
def new_files(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    settings = Settings.from_env()
    if not LandingFolder(settings).files():
        return dg.SkipReason("The landing folder is empty.")
    if is_active(context.instance, JOB):
        return dg.SkipReason("An ingestion is going on.")
    try:
        client = connect(settings)
        files = waiting_files(client, settings)
        client.close()
    except ClickHouseError as error:
        return dg.SkipReason(f"ClickHouse does not answer: {error}")
    if not files:
        return dg.SkipReason("No new files in the landing folder.")
    key = hashlib.sha256(repr(files).encode()).hexdigest()
    last_key, last_time = json.loads(context.cursor) if context.cursor else ("", 0)
    if key == last_key and time.time() - last_time < RETRY_SECONDS:
        return dg.SkipReason(f"The same files were tried less than {RETRY_SECONDS} s ago.")
    return dg.SensorResult(
        run_requests=[dg.RunRequest(tags={"files": str(len(files))})], cursor=json.dumps([key, time.time()])
    )
