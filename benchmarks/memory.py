"""Memory of the process that ingests a file, by the file's size: what a run of Dagster takes, whole.

``BENCH_FILE_MB`` sets the sizes in megabytes, separated by commas; 100, 1,000 and 10,000 by default.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from clickhouse_connect.driver.client import Client

from benchmarks.report import table
from benchmarks.sandbox import sandbox
from warehouse.landing import QUIET_SECONDS
from warehouse.sample import write_sample
from warehouse.settings import PROJECT_DIR, Settings

EVENTS = 250_000
# Its own peak, in KiB, comes last: a parent cannot tell several children apart.
MATERIALIZE = """
import resource
import dagster as dg
from orchestration.defs.ingestion import ingest_files
result = dg.materialize([ingest_files])
[event] = result.asset_materializations_for_node("ingest_files")[:1]
print(event.metadata["rows"].value + event.metadata["quarantined"].value)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def run() -> str:
    """A table of one file after the other."""
    sizes = [int(size) for size in os.environ.get("BENCH_FILE_MB", "100,1000,10000").split(",")]
    with sandbox() as (settings, client):
        rows = [_ingest(settings, client, megabytes) for megabytes in sizes]
    return table("Memory of the process that ingests one .ndjson file", ["file, MB", "lines", "s", "peak, MB"], rows)


def _ingest(settings: Settings, client: Client, megabytes: int) -> tuple[str, str, str, str]:
    path = Path(settings.landing_url, f"{megabytes}.ndjson")
    lines = _write(client, path, megabytes * 1_000_000)
    time.sleep(QUIET_SECONDS)
    began = time.perf_counter()
    printed = subprocess.run(
        [sys.executable, "-c", MATERIALIZE], cwd=PROJECT_DIR, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        check=True, text=True,
    ).stdout.split()  # fmt: skip
    seconds = time.perf_counter() - began
    path.unlink()
    if int(printed[-2]) != lines:
        raise RuntimeError(f"{printed[-2]} lines of {lines} arrived")
    return f"{megabytes:,}", f"{lines:,}", f"{seconds:,.0f}", f"{int(printed[-1]) * 1024 / 1e6:,.0f}"


def _write(client: Client, path: Path, size: int) -> int:
    """Write the same events over and over, each time with identifiers of their own; the number of lines."""
    path.parent.mkdir(exist_ok=True)
    sample = path.with_suffix(".part")
    with sample.open("wb") as output:
        write_sample(client, output, events=EVENTS, days=90, until=datetime(2026, 11, 1, tzinfo=UTC), seed=1)
    events = sample.read_bytes()
    sample.unlink()
    repetitions = max(1, round(size / len(events)))
    with path.open("wb") as output:
        for number in range(repetitions):
            output.write(events.replace(b'"event_id":"', b'"event_id":"%d_' % number))
    return repetitions * EVENTS
