"""Kafka's consumers: red when one reports an error, or more than ``KAFKA_LAG_MAX`` messages wait."""

import dagster as dg
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from orchestration import checks
from warehouse.settings import Settings

ASSET = "app_events"
CHECK = "kafka_lag"
# A consumer that is in trouble tries again, and reports it again, within seconds.
ERROR_SECONDS = 120


def evaluate(client: Client, settings: Settings) -> dg.AssetCheckEvaluation:
    """The messages that wait by partition, and the errors that no commit has followed."""
    rows = list(
        client.query(
            "select topic, partition, next_offset, lag, toString(last_commit_at) as last_commit_at, last_error, "
            f"last_error_at > greatest(kafka_lag.last_commit_at, now() - interval {ERROR_SECONDS} second) as fails "
            f"from {settings.database}.kafka_lag"
        ).named_results()
    )
    lag = sum(row["lag"] or 0 for row in rows)
    errors = sorted({row["last_error"] for row in rows if row.pop("fails")})
    found = f"{lag:,} messages wait; {settings.kafka_lag_max:,} are accepted."
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(ASSET),
        check_name=CHECK,
        passed=not errors and lag <= settings.kafka_lag_max,
        severity=dg.AssetCheckSeverity.ERROR,
        description=" ".join([found, *errors]),
        metadata={
            "lag": dg.MetadataValue.int(lag),
            "partitions": dg.MetadataValue.table(
                [dg.TableRecord(row) for row in rows],
                schema=dg.TableSchema(
                    [
                        dg.TableColumn("topic", "string", description="Empty for a consumer without a partition"),
                        dg.TableColumn("partition", "int"),
                        dg.TableColumn("next_offset", "int"),
                        dg.TableColumn("lag", "int", description="Messages that wait"),
                        dg.TableColumn("last_commit_at", "string"),
                        dg.TableColumn("last_error", "string"),
                    ]
                ),
            ),
        },
    )


@dg.asset_check(
    name=CHECK,
    asset=ASSET,
    description="No consumer of Kafka reports an error, and no more than KAFKA_LAG_MAX messages wait.",
)
def kafka_lag() -> dg.AssetCheckResult:
    return checks.result(checks.evaluated(evaluate))


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Looks at Kafka's consumers every minute; tells when they turn red, while they are, and green again.",
)
def kafka_watch(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    try:
        found = checks.evaluated(evaluate)
    except ClickHouseError as error:
        return dg.SkipReason(f"ClickHouse does not answer: {error}")
    if found.passed and context.cursor == "green":
        return dg.SkipReason(found.description)
    return dg.SensorResult(asset_events=[found], cursor="green" if found.passed else "red")


@dg.definitions
def defs() -> dg.Definitions:
    """Nothing where Kafka is no source."""
    if not Settings.from_env().kafka_brokers:
        return dg.Definitions()
    return dg.Definitions(asset_checks=[kafka_lag], sensors=[kafka_watch])
