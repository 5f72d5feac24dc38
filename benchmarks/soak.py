"""A mix of endpoints and events from 64 connections for a minute: errors, the spread of latencies, memory.

The load comes from wrk, which has to be installed; ``BENCH_SOAK_SECONDS`` sets how long, 60 by default.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from benchmarks.data import insert_sample
from benchmarks.report import table
from benchmarks.sandbox import dbt, sandbox
from warehouse.connection import admin_token

CONNECTIONS = 64
SCRIPT = Path(__file__).with_name("mix.lua")


def run(events: int = 1_000_000) -> str:
    """One row: what a minute of load took and left behind."""
    if not shutil.which("wrk"):
        raise SystemExit("wrk is not installed; install it with your system's package manager (apt-get install wrk).")
    seconds = os.environ.get("BENCH_SOAK_SECONDS", "60")
    with sandbox(api=True) as (settings, client):
        insert_sample(client, settings, events)
        dbt("run", "--select", "rollups")
        url = f"http://127.0.0.1:{settings.api_port}"

        def load(duration: str) -> dict[str, float]:
            done = subprocess.run(
                ["wrk", "-t2", f"-c{CONNECTIONS}", f"-d{duration}s", "--timeout", "30s", "-s", SCRIPT, url],  # noqa: S607 wherever it is installed
                env=os.environ | {"BENCH_TOKEN": admin_token(settings)},
                capture_output=True,
                text=True,
                check=True,
            )
            found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
            return found

        # Threads and caches come with the first load; memory is compared from there on.
        load("10")
        before = _memory_mib(settings.api_port)
        result = load(seconds)
        after = _memory_mib(settings.api_port)
    row = [
        f"{result['requests']:,}",
        f"{result['requests'] / result['seconds']:.0f}",
        f"{result['p50_ms']:.0f}",
        f"{result['p99_ms']:.0f}",
        f"{result['p99_ms'] / result['p50_ms']:.1f}",
        f"{sum(result[name] for name in ('refused', 'connect', 'read', 'write', 'timeout')):.0f}",
        f"{before:.0f} → {after:.0f}",
    ]
    return table(
        f"{CONNECTIONS} connections for {seconds} s: seven calls of endpoints for three of events, {events:,} events",
        ["requests", "req/s", "p50 ms", "p99 ms", "p99 / p50", "errors", "memory of the API, MiB"],
        [row],
    )


def _memory_mib(port: int) -> float:
    """Resident memory of the processes of the API that listens on `port`, in MiB."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environ = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes().split(b"\0")
            if f"API_PORT={port}".encode() in environ and b"serve" in command:
                total += int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue
    return total / 2**20
