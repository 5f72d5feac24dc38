"""``make bench``: every benchmark, then the tables. ``python -m benchmarks serving`` runs one of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from benchmarks import endpoints, ingestion, kafka, memory, peers, serving, soak, spool
from benchmarks.report import machine

BENCHMARKS: dict[str, Callable[[], str]] = {
    "ingestion": ingestion.run,
    "kafka": kafka.run,
    "memory": memory.run,
    "spool": spool.run,
    "serving": serving.run,
    "endpoints": endpoints.run,
    "peers": peers.run,
    "soak": soak.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}; all by default")
    names = parser.parse_args().names or list(BENCHMARKS)
    if unknown := set(names) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    tables = [BENCHMARKS[name]() for name in names]
    print(f"{machine()}\n\n" + "\n".join(tables))


if __name__ == "__main__":
    main()
