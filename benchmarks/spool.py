"""How fast the spool drains: from "ClickHouse is back" to "spool empty", beside bare INSERTs of the same batches."""

from __future__ import annotations

import time
from pathlib import Path

import dagster as dg

from benchmarks.ingestion import bare_insert, bare_table, sample, settle
from benchmarks.report import table
from benchmarks.sandbox import sandbox
from warehouse.landing import content_id, spool

BATCHES = (100, 1_000, 10_000)
# Small batches are so many that a tenth of them tells as much.
FEWEST_EVENTS = 100_000


def run(events: int = 1_000_000) -> str:
    """A table: `events` spooled in batches of several sizes, ingested by one run of the asset."""
    rows = []
    with sandbox() as (settings, client):
        from orchestration.defs.ingestion import ingest_files  # reads the environment that the sandbox has set

        bare_table(client, settings)
        for size in BATCHES:
            count = max(FEWEST_EVENTS, events) if size >= 1_000 else FEWEST_EVENTS
            lines = sample(client, count, seed=size).splitlines(keepends=True)
            batches = [b"".join(lines[first : first + size]) for first in range(0, count, size)]
            settle(client)
            bare = sum(bare_insert(client, batch) for batch in batches)
            for batch in batches:
                spool(settings, content_id([batch]), batch, ".ndjson")
            settle(client)
            began = time.perf_counter()
            result = dg.materialize([ingest_files])
            seconds = time.perf_counter() - began
            [event] = result.asset_materializations_for_node("ingest_files")[:1]
            left = list((Path(settings.landing_url) / "spool").iterdir())
            if left or event.metadata["rows"].value != count:
                raise RuntimeError(f"{event.metadata['rows'].value} rows of {count} were kept, {len(left)} files left")
            rows.append(
                (
                    f"{count:,}",
                    f"{size:,}",
                    f"{len(batches):,}",
                    f"{seconds:.1f}",
                    f"{count / seconds:,.0f}",
                    f"{count / bare:,.0f}",
                    f"{bare / seconds:.2f}",
                )
            )
    return table(
        "From ClickHouse is back to spool empty",
        ["events", "batch", "batches", "seconds", "rows/s", "bare INSERT, rows/s", "ratio"],
        rows,
    )
