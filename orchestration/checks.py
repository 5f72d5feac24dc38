"""What the asset checks share: each is evaluated by a run and, every minute, by a sensor."""

from collections.abc import Callable
from contextlib import closing

import dagster as dg
from clickhouse_connect.driver.client import Client

from warehouse.connection import connect
from warehouse.settings import Settings

Evaluate = Callable[[Client, Settings], dg.AssetCheckEvaluation]


def evaluated(evaluate: Evaluate) -> dg.AssetCheckEvaluation:
    """What a check finds now, as a sensor tells it.

    Raises:
        clickhouse_connect.driver.exceptions.ClickHouseError: ClickHouse does not answer.
    """
    settings = Settings.from_env()
    with closing(connect(settings)) as client:
        return evaluate(client, settings)


def result(found: dg.AssetCheckEvaluation) -> dg.AssetCheckResult:
    """The same as a run tells it."""
    return dg.AssetCheckResult(
        passed=found.passed, severity=found.severity, description=found.description, metadata=found.metadata
    )
