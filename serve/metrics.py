"""What Prometheus reads at ``GET /metrics``: counted in this process, from its start on."""

from __future__ import annotations

import tomllib
from typing import Any

from flask import Blueprint, Response, current_app
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from serve.auth import authorize
from warehouse.landing import SPOOL, LandingFolder
from warehouse.settings import PROJECT_DIR, Settings
from warehouse.tokens import ADMIN

disable_created_metrics()  # a second series beside each, which nothing here needs
metrics = Blueprint("metrics", __name__)

VERSION: str = tomllib.loads((PROJECT_DIR / "pyproject.toml").read_text())["project"]["version"]
# Any word can be sent as a method; each would be a time series of its own.
METHODS = frozenset(("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"))
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)  # seconds; a query's limit is the last one


class Metrics:
    """The counters of one app.

    Attributes:
        events: by what became of them: ``accepted``, ``quarantined`` or ``spooled``, as the senders were told.
    """

    def __init__(self, settings: Settings) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self._requests = Counter("api_requests", "Requests answered", ["endpoint", "method", "status"], **own)
        self._seconds = Histogram(
            "api_request_duration_seconds",
            "From a whole request to the first byte of its answer",
            ["endpoint"],
            buckets=BUCKETS,
            **own,
        )
        self._rows_read = Counter("api_query_rows_read", "Rows that queries read", ["endpoint"], **own)
        self._bytes_read = Counter("api_query_bytes_read", "Bytes that queries read", ["endpoint"], **own)
        self.events = Counter(
            "api_events", "Events taken in over HTTP; a batch sent again counts again", ["outcome"], **own
        )
        Gauge("api_build_info", "Always 1", ["version"], **own).labels(VERSION).set(1)
        waiting = Gauge("api_spooled_batches", "Batches that wait in the landing folder for ClickHouse", **own)
        waiting.set_function(lambda: _spooled_batches(settings))
        ProcessCollector(**own)

    def observe(self, method: str, status: int, seconds: float, facts: dict[str, Any]) -> None:
        """Count one answer; `facts` are those of its line in the log."""
        endpoint = facts["endpoint"]
        self._requests.labels(endpoint, method if method in METHODS else "other", status).inc()
        self._seconds.labels(endpoint).observe(seconds)
        self._rows_read.labels(endpoint).inc(facts.get("rows_read", 0))
        self._bytes_read.labels(endpoint).inc(facts.get("bytes_read", 0))


def _spooled_batches(settings: Settings) -> float:
    try:
        folder = LandingFolder(settings)
        return len(folder.fs.ls(folder.full(SPOOL), detail=False, refresh=True))
    except FileNotFoundError:  # nothing was ever spooled
        return 0
    except Exception:  # the other figures are needed most when the folder is away
        return float("nan")


@metrics.get("/metrics")
def show_metrics() -> Response:
    """The counters in Prometheus' text format."""
    authorize(ADMIN)
    return Response(generate_latest(current_app.extensions["metrics"].registry), content_type=CONTENT_TYPE_LATEST)
