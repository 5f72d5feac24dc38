"""The same requests from one or several clients, timed one by one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import urllib3


@dataclass(frozen=True)
class Load:
    """What a load took: seconds each request, and seconds altogether."""

    latencies: list[float]
    seconds: float

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.seconds

    @property
    def p50_ms(self) -> float:
        return 1000 * statistics.median(self.latencies)

    @property
    def p99_ms(self) -> float:
        return 1000 * sorted(self.latencies)[int(0.99 * (len(self.latencies) - 1))]


def load(request: Callable[[urllib3.PoolManager, int], None], *, requests: int, clients: int) -> Load:
    """Send `requests` requests from `clients` threads with a kept-alive connection each."""

    def client(number: int) -> list[float]:
        latencies = []
        with urllib3.PoolManager(maxsize=1, retries=False) as pool:
            for index in range(number, requests, clients):
                began = time.perf_counter()
                request(pool, index)
                latencies.append(time.perf_counter() - began)
        return latencies

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        latencies = [latency for found in threads.map(client, range(clients)) for latency in found]
    return Load(latencies, time.perf_counter() - began)


def expect_200(answer: urllib3.BaseHTTPResponse) -> None:
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {answer.data[:500]!r}")
