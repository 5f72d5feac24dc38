"""The share of lines that are no valid events: red when it is above ``QUARANTINE_SHARE_MAX``."""

import json

import dagster as dg
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from orchestration import checks
from warehouse.settings import Settings

ASSET = "app_events_quarantine"
CHECK = "quarantine_share"
HOURS = 24
# What is said of a value is the same fault for every value.
FAULT = r"replaceRegexpOne(fault.2, '^\'.*\' is', 'a value is')"


def evaluate(client: Client, settings: Settings) -> dg.AssetCheckEvaluation:
    """The share of lines still quarantined among those of the last 24 hours; the top reasons when it is too much."""
    lines, quarantined = client.query(
        f"select sum(lines), sum(quarantined) from {settings.database}.import_totals "
        f"where finished_at >= now() - interval {HOURS} hour"
    ).result_rows[0]
    share = quarantined / lines if lines else 0.0
    passed = share <= settings.quarantine_share_max
    metadata: dict[str, dg.MetadataValue] = {
        "share": dg.MetadataValue.float(share),
        "lines": dg.MetadataValue.int(int(lines)),
        "quarantined": dg.MetadataValue.int(int(quarantined)),
    }
    if not passed:
        reasons = client.query(
            f"select fault.1, {FAULT} as reason, count(), groupUniqArray(3)(c__import_id) "
            f"from {settings.database}.app_events_quarantine "
            "array join arrayZip(c__error_column, c__error) as fault "
            f"where insertion_date >= now() - interval {HOURS} hour "
            "group by fault.1, reason order by count() desc, fault.1, reason limit 5"
        ).result_rows
        metadata["top_reasons"] = dg.MetadataValue.table(
            [
                dg.TableRecord(
                    {"column": column, "reason": reason, "lines": count, "imports": ", ".join(sorted(import_ids))}
                )
                for column, reason, count, import_ids in reasons
            ],
            schema=dg.TableSchema(
                [
                    dg.TableColumn("column", "string"),
                    dg.TableColumn("reason", "string"),
                    dg.TableColumn("lines", "int"),
                    dg.TableColumn("imports", "string", description="Up to three of the imports that brought them"),
                ]
            ),
        )
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(ASSET),
        check_name=CHECK,
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{share:.1%} of the lines of {HOURS} hours; {settings.quarantine_share_max:.1%} are accepted.",
        metadata=metadata,
    )


@dg.asset_check(
    name=CHECK,
    asset=ASSET,
    description=f"No more than QUARANTINE_SHARE_MAX of the lines of the last {HOURS} hours are quarantined.",
)
def quarantine_share() -> dg.AssetCheckResult:
    return checks.result(checks.evaluated(evaluate))


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Evaluates the share of quarantined lines every minute; events that come over HTTP start no run.",
)
def quarantine_watch(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    try:
        found = checks.evaluated(evaluate)
    except ClickHouseError as error:
        return dg.SkipReason(f"ClickHouse does not answer: {error}")
    state = json.dumps([found.passed, found.metadata["lines"].value, found.metadata["quarantined"].value])
    if state == context.cursor:
        return dg.SkipReason("No lines came or left since the last look.")
    return dg.SensorResult(asset_events=[found], cursor=state)
