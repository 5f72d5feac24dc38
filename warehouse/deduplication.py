"""What an embedded ClickHouse remembers of its inserts, made to agree with what it stores.

An insert's token is written to the table's deduplication log just before its part is renamed into place. A server that
is killed between the two remembers an insert whose rows it does not have: sent again, they would be dropped as a
repetition, and be lost. So before the server starts, such records are taken out of the logs.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

# One record a line: 1 (added) or 2 (dropped), the part, the token's hash.
ADDED = "1"
PART = re.compile(r"([^_]+)_(\d+)_(\d+)_\d+(?:_\d+)?")


def forget_lost_inserts(store: Path) -> int:
    """Remove the records of inserts whose part is not there; the number of records removed.

    Args:
        store: the data folder of an engine that is not running.
    """
    removed = 0
    # store/<three characters>/<uuid of the table>/deduplication_logs/deduplication_log_<n>.txt
    for folder in store.glob("store/*/*/deduplication_logs"):
        stored = _blocks_stored(entry.name for entry in os.scandir(folder.parent) if entry.is_dir())
        for log in folder.glob("deduplication_log_*.txt"):
            records = log.read_text().splitlines(keepends=True)
            kept = [record for record in records if not _is_lost(record, stored)]
            if len(kept) < len(records):
                draft = store / "deduplication_log.draft"  # the engine reads every file of the log's own folder
                draft.write_text("".join(kept))
                draft.replace(log)
                removed += len(records) - len(kept)
    return removed


def _blocks_stored(names: Iterable[str]) -> dict[str, list[tuple[int, int]]]:
    """By partition, the first and last block of each of its parts, the widest first: merged parts hold many blocks."""
    blocks = defaultdict(list)
    for name in names:
        if part := PART.fullmatch(name):  # not tmp_insert_…, detached and the like
            blocks[part[1]].append((int(part[2]), int(part[3])))
    return {partition: sorted(found, key=lambda block: block[0] - block[1]) for partition, found in blocks.items()}


def _is_lost(record: str, stored: dict[str, list[tuple[int, int]]]) -> bool:
    kind, _, rest = record.partition("\t")
    part = PART.fullmatch(rest.partition("\t")[0])
    if kind != ADDED or not part:
        return False
    block = int(part[2])
    return not any(first <= block <= last for first, last in stored.get(part[1], ()))
