"""Which content an Idempotency-Key names: the first that came with it, for as long as ClickHouse knows its inserts.

ClickHouse drops what is inserted again under one token by table and by month. That makes the same batch harmless, and
lets another one of the same key in where the first had no rows: events of another month, or lines that are no events.
So another content is not sent there at all. SQLite, not ClickHouse: events are taken in while ClickHouse is away.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

# As many as the tables' non_replicated_deduplication_window: of older ones ClickHouse knows nothing either.
KEPT = 100_000
_LOCKED_SECONDS = 5
_SCHEMA = """
create table if not exists keys (
    number integer primary key,
    import_id text not null unique,
    content_id text not null,
    named_at real not null
) strict
"""


class Keys:
    """The file of keys, shared by the workers; made when first needed.

    Its methods raise ``sqlite3.Error`` or ``OSError`` when it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None

    def names(self, import_id: str, content_id: str) -> bool:
        """Whether the key of this import names this content, which it does from now on where it named none."""
        with self._lock, self._open() as database:
            database.execute(
                "insert into keys (import_id, content_id, named_at) values (?, ?, ?) on conflict (import_id) "
                "do update set named_at = excluded.named_at where content_id = excluded.content_id",
                (import_id, content_id, time.time()),
            )
            database.execute("delete from keys where number <= (select max(number) from keys) - ?", (KEPT,))
            [named] = database.execute("select content_id from keys where import_id = ?", (import_id,)).fetchone()
            return bool(named == content_id)

    def rename(self, import_id: str, content_id: str, seconds: float) -> bool:
        """Let the key name this content instead, if nobody has sent the one that it names for some seconds."""
        now = time.time()
        with self._lock, self._open() as database:
            return bool(
                database.execute(
                    "update keys set content_id = ?, named_at = ? where import_id = ? and named_at < ?",
                    (content_id, now, import_id, now - seconds),
                ).rowcount
            )

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            self._path.touch(mode=0o600)
            database = sqlite3.connect(self._path, timeout=_LOCKED_SECONDS, check_same_thread=False)
            # No sync for each key: what a power cut takes are the last ones, whose senders have not changed their mind.
            database.executescript(f"pragma journal_mode = wal; pragma synchronous = normal; {_SCHEMA}")
            self._database = database
        return self._database
