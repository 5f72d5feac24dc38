"""The way in, for HTTP and files alike: lines into ``landing``, and the landing folder with its ledger."""

from __future__ import annotations

import csv
import datetime
import errno
import fcntl
import hashlib
import io
import json
import logging
import math
import os
import posixpath
import re
import secrets
import shutil
import signal
import tempfile
import time
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import accumulate, chain, repeat
from pathlib import Path
from typing import IO, Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from clickhouse_connect.driver.client import Client
from fsspec.implementations.local import LocalFileSystem

from warehouse.conditions import COLUMNS
from warehouse.framing import MAX_FRAME, Frames, frames
from warehouse.settings import Settings

log = logging.getLogger(__name__)

# A request of 10 MB is one chunk, so its rows become visible together. A chunk of a file is one block of its framing;
# a run holds a few of them at once, and chunks of 32 MB would take it 170 MB more.
CHUNK_BYTES = 12 * 1024 * 1024
# Two in flight: one is framed and sent while the other is parsed. More gain nothing on two cores.
CHUNKS_IN_FLIGHT = 2
READ_BYTES = 1024 * 1024
ROWS_A_BATCH = 8192

SPOOL = "spool"
# Files that came over HTTP, under the id that their import has.
UPLOADS = "uploads"
# Spooled batches on their way together: each is an insert of its own, most of whose time is ClickHouse's planning.
BATCHES_IN_FLIGHT = 4
# Spooled batches that are entered into the ledger, and then deleted, together.
BATCHES_A_GROUP = 64
SPOOLED_ID = re.compile(r"[0-9A-Za-z_-]{1,128}")
# What `spool` and `warehouse.uploads.keep` write; anything else in their folders is a file like any other.
KEPT_NAME = re.compile(
    rf"{SPOOL}/({SPOOLED_ID.pattern})\.(?:ndjson|jsonl|json)|{UPLOADS}/([0-9a-f]{{32}})(?:\.[a-z]+){{1,2}}"
)
SET_ASIDE = "set_aside"
# A file of the local file system that changed within this many seconds may still be written.
QUIET_SECONDS = 1.0
# What ``LandingFolder.write`` names a file that is not there whole yet.
DRAFT = re.compile(r"\..+\.[0-9a-f]{16}")
# The API writes without the folder's lock: a draft of its own that it no longer has open is about to get its name, or
# was left by a process that was killed.
DRAFT_SECONDS = 60.0
# What is asked of S3 gives up on a dead address after 5 attempts (s3fs makes them) of 2 s; keys and address are its own
# to find (AWS_* or FSSPEC_S3_*). A listing that is kept would hide new objects.
S3_OPTIONS = {
    "use_listings_cache": False,
    "config_kwargs": {"connect_timeout": 2, "read_timeout": 20, "retries": {"total_max_attempts": 1}},
}

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
TEXT_EXTENSIONS = (".ndjson", ".jsonl", ".json")
EXTENSIONS = (*TEXT_EXTENSIONS, ".csv", ".parquet")

INSERT_SETTINGS = {
    # Real history spans hundreds of monthly partitions.
    "max_partitions_per_insert_block": 0,
    # One chunk is one block: its token then names the same rows each time it is sent.
    "max_insert_block_size": 1 << 30,
    "min_insert_block_size_rows": 0,
    "min_insert_block_size_bytes": 0,
    "input_format_parallel_parsing": 0,
    "insert_deduplicate": 1,
    # The plans of the views are as simple as they get; looking for better ones takes a sixth of a small insert.
    "query_plan_enable_optimizations": 0,
    "async_insert": 0,
}


class Unreadable(Exception):
    """A file that cannot be read to its end; the message says why in one sentence."""


class Unfinished(Exception):
    """A file that is not complete yet, or no longer what was listed."""


class ImportResult(NamedTuple):
    """What an import brought: lines = kept + quarantined.

    Attributes:
        rejects: the first ten faults: line, column, error.
    """

    lines: int
    kept: int
    quarantined: int
    rejects: list[tuple[int, str, str]]


def content_id(chunks: Iterable[bytes], extension: str = ".ndjson") -> str:
    """The import id of some content: 32 hexadecimal characters made from its decompressed bytes and how they are read.

    Args:
        extension: of its format. The same bytes are other lines in another format: an array, or objects with commas
            between them, are lines that are no events in NDJSON, and events of a JSON document.
    """
    digest = hashlib.blake2b(digest_size=16)
    for chunk in chunks:
        digest.update(chunk)
    if extension == ".json":
        digest.update(b"array")
    elif extension not in TEXT_EXTENSIONS:
        digest.update(extension.encode())
    return digest.hexdigest()


def land(
    client: Client,
    settings: Settings,
    import_id: str,
    source: str,
    batches: Iterable[Frames],
    insert_settings: Mapping[str, Any] | None = None,
) -> int:
    """Insert frames into ``landing`` in chunks and return their number; the same import again changes nothing.

    Args:
        source: ``http``, or the path of the file.
        batches: what ``frames`` or ``read_frames`` yields; the same content gives the same chunks.
        insert_settings: settings of ClickHouse on top of ``INSERT_SETTINGS``.

    Raises:
        clickhouse_connect.driver.exceptions.ClickHouseError: an insert failed; send the whole import again.
    """
    table = f"{settings.database}.landing"
    lines = 0

    def insert(number: int, content: memoryview) -> None:
        own: dict[str, Any] = {**INSERT_SETTINGS, **(insert_settings or {})}
        own["insert_deduplication_token"] = f"{import_id}:{number}"
        if number and "query_id" in own:  # several run at once, and ClickHouse takes an id once at a time
            own["query_id"] = f"{own['query_id']}-{number}"
        client.raw_insert(table, insert_block=content, fmt="ArrowStream", settings=own)

    chunks = _chunks(batches)
    chunk, number = next(chunks, None), 0
    in_flight: deque[Future[None]] = deque()
    with ThreadPoolExecutor(CHUNKS_IN_FLIGHT) as pool:
        while chunk is not None:
            lines += sum(len(batch.lines) for batch in chunk)
            content = _arrow_stream(chunk, import_id, source)
            chunk = next(chunks, None)
            if chunk is None and number == 0:
                insert(number, content)  # a request needs no thread of its own
            else:
                if len(in_flight) == CHUNKS_IN_FLIGHT:
                    in_flight.popleft().result()
                in_flight.append(pool.submit(insert, number, content))
            number += 1
        for insertion in in_flight:
            insertion.result()
    return lines


def import_result(client: Client, settings: Settings, import_id: str) -> ImportResult:
    """What an import has brought so far; all zero when nothing came by that id."""
    parameters = {"id": import_id}
    [(lines, kept, quarantined)] = client.query(
        f"select lines, kept, quarantined from {settings.database}.import_results(import_id = {{id:String}})",
        parameters=parameters,
    ).result_rows
    rejects: list[tuple[int, str, str]] = []
    if quarantined:
        found = client.query(
            "select line_number, fault_column, error "
            f"from {settings.database}.import_rejects(import_id = {{id:String}})",
            parameters=parameters,
        ).result_rows
        rejects = [(line, column, error) for line, column, error in found]
    return ImportResult(lines, kept, quarantined, rejects)


def _chunks(batches: Iterable[Frames]) -> Iterator[list[Frames]]:
    chunk: list[Frames] = []
    size = 0
    for batch in batches:
        chunk.append(batch)
        size += sum(map(len, batch.lines))
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _arrow_stream(chunk: Sequence[Frames], import_id: str, source: str) -> memoryview:
    columns: dict[str, pa.Array] = {
        "line": _binary_array(chain.from_iterable(batch.lines for batch in chunk)),
        "line_number": _array(pa.uint64(), "Q", chain.from_iterable(batch.numbers for batch in chunk)),
    }
    rows = len(columns["line"])
    if any(batch.raws for batch in chunk):
        columns["raw"] = _binary_array(
            chain.from_iterable(batch.raws or repeat(b"", len(batch.lines)) for batch in chunk)
        )
    # A dictionary of one value: the same text is not sent with every line.
    indices = pa.repeat(pa.scalar(0, pa.int8()), rows)
    for name, value in (("import_id", import_id), ("source", source)):
        columns[name] = pa.DictionaryArray.from_arrays(indices, pa.array([value]))
    batch = pa.RecordBatch.from_pydict(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return memoryview(sink.getvalue())  # bytes would be copied, and once more by the client


def _array(kind: pa.DataType, code: str, values: Iterable[int]) -> pa.Array:
    content = array(code, values)
    return pa.Array.from_buffers(kind, len(content), [None, pa.py_buffer(content)])


def _binary_array(values: Iterable[bytes]) -> pa.Array:
    """The same as ``pa.array(values)``, three times as fast."""
    texts = list(values)
    offsets = array("q", accumulate(map(len, texts), initial=0))
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(texts))]
    return pa.Array.from_buffers(pa.large_binary(), len(texts), buffers)


# --- the landing folder -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LandingFile:
    """A file of the landing folder.

    Attributes:
        path: relative to the folder.
        size: in bytes, as it lies there.
        modified: what its file system tells its versions apart by: when it and its inode were changed, or its ETag.
    """

    path: str
    size: int
    modified: str

    @property
    def name(self) -> str:
        """The path as it is stored and shown."""
        return _text(self.path)

    @property
    def import_id(self) -> str:
        """The id that a spooled batch or an upload carries in its name; empty for any other file."""
        found = KEPT_NAME.fullmatch(self.path)
        return (found[1] or found[2]) if found else ""

    @property
    def is_batch(self) -> bool:
        """True for the body of a request: plain text of one chunk at most."""
        return self.is_spooled and self.size <= CHUNK_BYTES

    @property
    def is_spooled(self) -> bool:
        """True for what ``spool`` wrote."""
        return bool(self.import_id) and posixpath.dirname(self.path) == SPOOL

    @property
    def compression(self) -> str:
        """The extension of its compression, or an empty string."""
        extension = posixpath.splitext(self.path)[1].lower()
        return extension if extension in COMPRESSIONS else ""

    @property
    def extension(self) -> str:
        """The extension of its format, in lower case, without that of its compression."""
        return posixpath.splitext(self.path[: len(self.path) - len(self.compression)])[1].lower()


@dataclass(frozen=True)
class Outcome:
    """What became of a file.

    Attributes:
        state: ``done``, ``set aside`` (it cannot be read) or ``left`` (it is tried again in the next run).
        lines: lines that this file brought; 0 when its content had come before.
        error: why it was set aside or left, one sentence.
    """

    path: str
    state: str
    lines: int = 0
    quarantined: int = 0
    error: str = ""


def landing_filesystem(settings: Settings) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of ``LANDING_URL``, and the folder's path on it.

    Raises:
        ImportError: the package for this kind of URL is not installed; the message names it.
        ValueError: a URL of no known kind.
    """
    url = settings.landing_url
    options = S3_OPTIONS if url.startswith(("s3://", "s3a://")) else {}
    filesystem, root = fsspec.core.url_to_fs(url, **options)
    return filesystem, root.rstrip("/")


class LandingFolder:
    """The landing folder: a local path or any fsspec URL.

    Whatever its storage refuses is an ``OSError`` with an ``errno``; one without is the fault of a file's content.
    """

    def __init__(self, settings: Settings) -> None:
        self.fs, self.root = landing_filesystem(settings)
        self.local = isinstance(self.fs, LocalFileSystem)
        if self.local:
            self.fs.makedirs(self.root, exist_ok=True)

    def full(self, path: str) -> str:
        return f"{self.root}/{path}"

    def files(self, *, set_aside: bool = False, young: bool = False) -> list[LandingFile]:
        """Every complete file, spooled batches first and as they came, the others by path.

        Not the hidden and unfinished ones.

        Args:
            set_aside: those that were set aside instead of the others.
            young: also those that changed so lately that they may still be written.
        """
        now = time.time()
        with _storage():
            self.fs.invalidate_cache()
            listed = dict(self._find()) if self.local else self.fs.find(self.root, detail=True)
        found: list[tuple[bool, float, str, LandingFile]] = []
        for full, info in listed.items():
            path = full[len(self.root) :].removeprefix("/")  # an object's name may itself begin with a slash
            parts = path.split("/")
            # Consoles of object stores make empty objects that stand for folders.
            if info.get("type") == "directory" or not parts[-1]:
                continue
            if (parts[0] == SET_ASIDE) != set_aside or any(part.startswith(".") for part in parts):
                continue
            if path.endswith((".tmp", ".part")):
                continue
            file = LandingFile(path, info.get("size") or 0, _version(info))
            # A time to come is another clock's, or was copied with the file.
            may_be_written = self.local and not file.import_id
            if not young and may_be_written and abs(now - info["mtime"]) < QUIET_SECONDS:
                continue
            found.append((not file.import_id, _changed_at(info) if file.import_id else 0, path, file))
        return [file for *_, file in sorted(found)]

    def _find(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """What fsspec's own listing gives, but no folder is passed over that cannot be listed; links are followed."""
        for folder, _, names in os.walk(self.root, onerror=_unlisted):
            for name in names:
                full = f"{folder}/{name}"
                try:
                    yield full, self.fs.info(full)
                except OSError as error:
                    if not os.path.islink(full):
                        _unlisted(error)

    def file(self, path: str) -> LandingFile:
        """What lies there under a path now."""
        with _storage():
            self.fs.invalidate_cache()
            info = self.fs.info(self.full(path))
        return LandingFile(path, info.get("size") or 0, _version(info))

    def is_complete(self, file: LandingFile) -> bool:
        """True when the file is still what was listed and no program is known to write to it."""
        if file.import_id:
            return True
        return self.file(file.path) == file and not self.is_being_written(file)

    def is_being_written(self, file: LandingFile) -> bool:
        """True when a program of this machine has the local file open for writing."""
        return self.local and not file.import_id and _is_open_for_writing(self.full(file.path))

    def require_complete(self, file: LandingFile) -> None:
        if not self.is_complete(file):
            raise Unfinished("It is still being written.")

    @contextmanager
    def open(self, file: LandingFile) -> Iterator[IO[bytes]]:
        """The file's content, decompressed.

        Raises:
            Unfinished: it is not what was listed, or still being written; also while it is read.
            OSError: without an ``errno``, compressed data that is damaged; with one, a failure of the storage.
        """
        with _storage():
            stored = self.fs.open(self.full(file.path), "rb")
        with stored:
            # What is open now stays what it is when its name is given to another file; written over, it is noticed.
            source = io.BufferedReader(_Stored(stored, self.local), READ_BYTES)
            self.require_complete(file)
            if not file.compression:
                yield source
            else:
                with pa.CompressedInputStream(pa.PythonFile(source, "r"), COMPRESSIONS[file.compression]) as stream:
                    yield stream

    @contextmanager
    def write(self, path: str, *, keep: bool = False, instead_of: LandingFile | None = None) -> Iterator[IO[bytes]]:
        """Write a file that is there whole, durable and under its name when the block ends, or not at all.

        Args:
            keep: a file that lies there already stays, and the new one is dropped.
            instead_of: what has to lie there still.

        Raises:
            OSError: it could not be written.
            Unfinished: something else lies there.
        """
        target = self.full(path)
        if not self.local:
            with tempfile.NamedTemporaryFile() as copy:
                yield copy
                copy.flush()
                if instead_of:
                    self.require_complete(instead_of)
                with _storage():
                    self.fs.invalidate_cache()
                    if not (keep and self.fs.exists(target)):
                        self.fs.put_file(copy.name, target)  # an object appears when its upload is complete
            return
        target = os.path.realpath(target)  # of a link, what it leads to is written
        directory, name = os.path.split(target)
        os.makedirs(directory, exist_ok=True)
        _sync_directory(self.root)  # also when it is another thread that has just made the directory
        draft = f"{directory}/.{name}.{secrets.token_hex(8)}"
        try:
            with open(draft, "xb") as file:
                yield file
                file.flush()
                now = time.time_ns()  # the kernel's own stamp is the same for all files of a tick of some ms
                os.utime(file.fileno(), ns=(now, now))
                os.fsync(file.fileno())
            if keep:
                with suppress(FileExistsError):
                    os.link(draft, target)
            else:
                if instead_of:
                    self.require_complete(instead_of)
                os.rename(draft, target)
        finally:
            with suppress(OSError):
                os.unlink(draft)
        _sync_directory(directory)

    def remove_drafts(self) -> None:
        """Remove what writers that were killed have left; the lock is held exclusively."""
        if not self.local:
            return
        for directory, _, names in os.walk(self.root):
            is_of_the_api = os.path.relpath(directory, self.root) in (SPOOL, UPLOADS)
            for draft in (f"{directory}/{name}" for name in names if DRAFT.fullmatch(name)):
                with _storage(), suppress(FileNotFoundError):
                    age = time.time() - os.stat(draft).st_mtime
                    if not _is_open_for_writing(draft) and not (is_of_the_api and age < DRAFT_SECONDS):
                        os.unlink(draft)

    def set_aside(self, file: LandingFile) -> str:
        """Move a file to ``set_aside/`` and return its new path; one that lies there already is kept."""
        target = f"{SET_ASIDE}/{file.path}"
        with _storage():
            if self.fs.exists(self.full(target)):
                target = f"{target}.{secrets.token_hex(4)}"
            self.fs.makedirs(posixpath.dirname(self.full(target)), exist_ok=True)
            if self.local:
                self.fs.mv(self.full(file.path), self.full(target))
            else:  # which would take the name for a pattern, and move whatever it matches
                self.fs.cp_file(self.full(file.path), self.full(target))
                self.fs.rm_file(self.full(file.path))
        return target

    def remove(self, file: LandingFile) -> None:
        with _storage(), suppress(FileNotFoundError):
            self.fs.rm_file(self.full(file.path))


@contextmanager
def _storage() -> Iterator[None]:
    """Turn whatever the client of some storage raises into an ``OSError`` with an ``errno``."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and (error.errno is not None or isinstance(error, FileNotFoundError)):
            raise
        raise OSError(errno.EIO, str(error)) from error


class _Stored(io.RawIOBase):
    """A file whose storage's failures are told from those of its content, and of which one version is read."""

    def __init__(self, stored: IO[bytes], local: bool) -> None:
        self._stored = stored
        self._local = local
        self._version = self._written()

    def _written(self) -> tuple[int, int]:
        if not self._local:  # an object never changes
            return 0, 0
        status = os.fstat(self._stored.fileno())
        return status.st_size, status.st_mtime_ns

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _storage():
            piece = self._stored.read(len(buffer))
            written = self._written()
        if written != self._version:
            raise Unfinished("It is still being written.")
        buffer[: len(piece)] = piece
        return len(piece)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stored.seek(offset, whence)

    def tell(self) -> int:
        return self._stored.tell()


def _unlisted(error: OSError) -> None:
    """Pass over what has just gone, and a folder that may not be listed (lost+found); nothing else."""
    if not isinstance(error, FileNotFoundError | PermissionError):
        raise error


def _version(info: Mapping[str, Any]) -> str:
    # A copy that keeps times (rsync, tar) can have the size and time of what it replaces. The time at which an inode
    # was changed nobody can set.
    if "mtime" in info and "ino" in info:
        return f"{info['mtime']} {info['created']}"
    # An object that is overwritten within a second keeps its time and, perhaps, its size.
    for name in ("mtime", "ETag", "etag", "LastModified", "last_modified", "updated", "modified", "created"):
        if (value := info.get(name)) is not None:
            # A file system may list a number and describe the same file by a datetime.
            return str(value.timestamp() if isinstance(value, datetime.datetime) else value)
    return ""


def _text(path: str) -> str:
    """A path as text: the bytes of a local name that are no UTF-8, which Python keeps as surrogates, are escaped."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _changed_at(info: Mapping[str, Any]) -> float:
    """When a file was last changed, in Unix seconds; 0 where its file system does not tell."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "modified", "created"):
        if (value := info.get(name)) is not None:
            if isinstance(value, str):
                value = datetime.datetime.fromisoformat(value)
            return value.timestamp() if isinstance(value, datetime.datetime) else float(value)
    return 0.0


def _is_open_for_writing(path: str) -> bool:
    """True when a program of this machine has the file open for writing; False where the system does not tell."""
    if not hasattr(fcntl, "F_SETLEASE"):  # Linux only
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False  # whoever reads it next says why
    try:
        # Should a writer come right now, the kernel would send SIGIO, which kills; nothing listens to this one.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN  # otherwise not our file, or a file system without leases
    finally:
        os.close(descriptor)
    return False


def spool(settings: Settings, import_id: str, body: bytes, extension: str) -> str:
    """Keep a batch in the landing folder until ClickHouse is back; durable when this returns.

    One that lies there under the same id stays: it was acknowledged, and an id stands for one batch.

    Args:
        import_id: the id under which it will be ingested: letters, digits, ``_`` and ``-``.
        extension: ``.ndjson`` or ``.json``.

    Returns:
        The path of the file in the landing folder.

    Raises:
        OSError: it could not be written.
        ValueError: an id or extension that cannot be part of a file's name.
    """
    if not SPOOLED_ID.fullmatch(import_id) or extension not in TEXT_EXTENSIONS:
        raise ValueError(f"Cannot spool a batch as {import_id!r} with extension {extension!r}.")
    path = f"{SPOOL}/{import_id}{extension}"
    with LandingFolder(settings).write(path, keep=True) as file:
        file.write(body)
    return path


def spooled_lines(settings: Settings, import_id: str) -> int | None:
    """The lines of the batch that waits in the spool under an id; None when there is none.

    Raises:
        OSError: the storage does not answer.
    """
    folder = LandingFolder(settings)
    for extension in TEXT_EXTENSIONS:
        with suppress(FileNotFoundError):
            file = folder.file(f"{SPOOL}/{import_id}{extension}")
            return sum(len(run.lines) for run in read_frames(folder, file))
    return None


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_held: set[Path] = set()


@contextmanager
def folder_lock(settings: Settings, *, exclusive: bool) -> Iterator[None]:
    """Hold the landing folder: shared while a file goes in, exclusively while a job is done.

    It reaches as far as ``DATA_DIR`` does; whoever holds it exclusively may take it again.
    """
    path = settings.data_dir / "landing.lock"
    if path in _held:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        if exclusive:
            _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)


def dealt_with(client: Client, settings: Settings, files: Iterable[LandingFile]) -> list[LandingFile]:
    """Those of the files that the ledger holds, as they are now."""
    kept = [file for file in files if not file.import_id]  # spooled batches are deleted once they are in
    if not kept:
        return []
    known = set(
        client.query(
            "select path, size, modified from {database:Identifier}.landing_files",
            parameters={"database": settings.database},
        ).result_rows
    )
    return [file for file in kept if (file.name, file.size, file.modified) in known]


def waiting_files(client: Client, settings: Settings) -> list[LandingFile]:
    """The complete files of the landing folder that were not dealt with yet."""
    folder = LandingFolder(settings)
    files = folder.files()
    known = set(dealt_with(client, settings, files))
    return [file for file in files if file not in known and not folder.is_being_written(file)]


def ingest(client: Client, settings: Settings) -> Iterator[Outcome]:
    """Ingest what waits, spooled batches first; repeated after an interruption it gives the same rows.

    Raises:
        clickhouse_connect.driver.exceptions.ClickHouseError: ClickHouse is away or refuses; run it again.
    """
    folder = LandingFolder(settings)
    files = waiting_files(client, settings)
    batches = [file for file in files if file.is_batch]
    with ThreadPoolExecutor(BATCHES_IN_FLIGHT) as pool:
        for first in range(0, len(batches), BATCHES_A_GROUP):
            with folder_lock(settings, exclusive=False):
                outcomes = _ingest_group(client, settings, folder, batches[first : first + BATCHES_A_GROUP], pool)
            yield from outcomes
    for file in files:
        if file.is_batch:
            continue
        with folder_lock(settings, exclusive=False):
            outcome = _deal_with(client, settings, folder, file)
        if outcome:
            yield outcome


def _deal_with(client: Client, settings: Settings, folder: LandingFolder, file: LandingFile) -> Outcome | None:
    """What became of a file; None when another run was faster."""
    started = _now()
    try:
        outcome, import_id = _ingest_file(client, settings, folder, file)
    except FileNotFoundError:
        return None
    except (Unreadable, Unfinished, OSError) as error:
        if isinstance(error, Unfinished) or (isinstance(error, OSError) and error.errno is not None):
            # A writer, the disk, the network or a permission: not the fault of the file's content.
            log.warning("%s was left where it is: %s", file.name, error)
            return Outcome(file.name, "left", error=_text(str(error)))
        reason = str(error) if isinstance(error, Unreadable) else f"It cannot be read to its end: {error}."
        path = file.name
        try:
            folder.require_complete(file)  # another one may lie there by now
            path = _text(folder.set_aside(file))
        except FileNotFoundError:
            return None
        except Unfinished as changed:
            log.warning("%s was left where it is: %s", file.name, changed)
            return Outcome(file.name, "left", error=str(changed))
        except OSError as failure:
            log.warning("%s could not be moved to %s/: %s", file.name, SET_ASIDE, failure)
        log.warning("%s was set aside: %s", file.name, reason)
        outcome, import_id = Outcome(path, "set aside", error=reason), file.import_id
    if outcome.lines or not _is_recorded(client, settings, file):  # or a run ended before it was removed, or was faster
        record(client, settings, file, outcome, import_id, started)
    if file.import_id:
        folder.remove(file)
    return outcome


def _ingest_group(
    client: Client, settings: Settings, folder: LandingFolder, files: Sequence[LandingFile], pool: ThreadPoolExecutor
) -> list[Outcome]:
    """What became of spooled batches: inserts of their own, some at once; the ledger is asked and written for all."""
    started = _now()
    group = {file.import_id: file for file in files}
    known = _done(client, settings, list(group))
    new = [file for import_id, file in group.items() if import_id not in known]
    landed = pool.map(lambda file: _ingest_batch(client, settings, folder, file), new)
    outcomes = {import_id: Outcome(group[import_id].name, "done") for import_id in group if import_id in known}
    outcomes |= {file.import_id: outcome for file, outcome in zip(new, landed, strict=True) if outcome}
    for import_id, quarantined in _quarantined(client, settings, list(outcomes)).items():
        if outcomes[import_id].lines:
            outcomes[import_id] = replace(outcomes[import_id], quarantined=quarantined)
    done = [(group[id_], outcome, id_) for id_, outcome in outcomes.items() if outcome.state == "done"]
    # What the ledger says of those that it knows stays: a run ended before they were removed, or was faster.
    _record_all(client, settings, [entry for entry in done if entry[2] not in known], started)
    for file, _, _ in done:
        folder.remove(file)
    return list(outcomes.values())


def _ingest_batch(client: Client, settings: Settings, folder: LandingFolder, file: LandingFile) -> Outcome | None:
    """What became of a spooled batch; None when another run was faster."""
    try:
        return Outcome(file.name, "done", land(client, settings, file.import_id, "http", read_frames(folder, file)))
    except FileNotFoundError:
        return None
    except OSError as error:  # of the storage: a batch is text, and no text is at fault
        log.warning("%s was left where it is: %s", file.name, error)
        return Outcome(file.name, "left", error=_text(str(error)))


def _ingest_file(client: Client, settings: Settings, folder: LandingFolder, file: LandingFile) -> tuple[Outcome, str]:
    if file.extension not in EXTENSIONS:
        raise Unreadable(
            f"Its extension is {file.extension or 'missing'!r}; the landing folder takes {', '.join(EXTENSIONS)}, "
            f"each also with {' or '.join(COMPRESSIONS)}."
        )
    import_id = file.import_id or _prove_readable(folder, file)
    if _done(client, settings, [import_id]):
        return Outcome(file.name, "done"), import_id
    source = "http" if file.is_spooled else file.name
    lines = land(client, settings, import_id, source, read_frames(folder, file))
    folder.require_complete(file)
    return Outcome(file.name, "done", lines, import_result(client, settings, import_id).quarantined), import_id


def _prove_readable(folder: LandingFolder, file: LandingFile) -> str:
    """Read the file to its end, before anything of it is inserted, and return its content's id."""
    with folder.open(file) as stream:
        found = content_id(pieces(stream), file.extension)
    if file.extension not in TEXT_EXTENSIONS:  # framing takes any text
        for _ in read_frames(folder, file):
            pass
    return found


def record(
    client: Client, settings: Settings, file: LandingFile, outcome: Outcome, import_id: str, started: datetime.datetime
) -> None:
    """Write a file's row of the ledger."""
    _record_all(client, settings, [(file, outcome, import_id)], started)


def _done(client: Client, settings: Settings, import_ids: Sequence[str]) -> set[str]:
    """Those of the imports of which every line went in from some file."""
    rows = client.query(
        "select distinct content_id from {database:Identifier}.landing_files "
        "where content_id in {ids:Array(String)} and state = 'done'",
        parameters={"database": settings.database, "ids": import_ids},
    ).result_rows
    return {import_id for (import_id,) in rows}


def _is_recorded(client: Client, settings: Settings, file: LandingFile) -> bool:
    """Whether the ledger holds the file as it is now."""
    rows = client.query(
        "select 1 from {database:Identifier}.landing_files "
        "where path = {path:String} and size = {size:UInt64} and modified = {modified:String} limit 1",
        parameters={
            "database": settings.database,
            "path": file.name,
            "size": file.size,
            "modified": file.modified,
        },
    ).result_rows
    return bool(rows)


def _quarantined(client: Client, settings: Settings, import_ids: Sequence[str]) -> dict[str, int]:
    """By import, how many of its lines are no valid events."""
    rows = client.query(
        "select import_id, sum(quarantined) from {database:Identifier}.imports "
        "where import_id in {ids:Array(String)} group by import_id",
        parameters={"database": settings.database, "ids": import_ids},
    ).result_rows
    return {row[0]: row[1] for row in rows}


def _record_all(
    client: Client,
    settings: Settings,
    entries: Sequence[tuple[LandingFile, Outcome, str]],
    started: datetime.datetime,
) -> None:
    """Write the rows of the ledger for files, each with what became of it and the id of its import."""
    rows = [
        {
            "content_id": import_id,
            "path": outcome.path,
            "size": file.size,
            "modified": file.modified,
            "state": outcome.state,
            "lines": outcome.lines,
            "quarantined": outcome.quarantined,
            "error": outcome.error,
            "started_at": started,
            "finished_at": _now(),
        }
        for file, outcome, import_id in entries
    ]
    if rows:
        client.insert(
            f"{settings.database}.landing_files",
            [list(row.values()) for row in rows],
            column_names=list(rows[0]),
            settings={"async_insert": 0},
        )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


# --- readers ------------------------------------------------------------------------------------------------------


def read_frames(folder: LandingFolder, file: LandingFile) -> Iterator[Frames]:
    """The lines of a file of any format, in batches; the same content gives the same batches.

    Raises:
        Unreadable: a CSV or Parquet file that is none.
        Unfinished, OSError: as ``LandingFolder.open``.
    """
    with folder.open(file) as stream:
        if file.extension == ".csv":
            yield from _csv_frames(stream)
        elif file.extension == ".parquet":
            yield from _parquet_frames(stream, compressed=bool(file.compression))
        else:
            yield from frames(pieces(stream), document=file.extension == ".json")


def pieces(stream: IO[bytes]) -> Iterator[bytes]:
    while piece := stream.read(READ_BYTES):
        yield piece


def _csv_frames(stream: IO[bytes]) -> Iterator[Frames]:
    # Bytes that are not UTF-8 pass through unchanged.
    text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
    taken: list[str] = []  # the physical lines of the row that is being read

    def physical_lines() -> Iterator[str]:
        while line := text.readline(MAX_FRAME):
            if len(line) == MAX_FRAME:
                raise Unreadable(f"Line {rows.line_num + 1} is longer than {MAX_FRAME} characters.")
            taken.append(line)
            yield line
        if taken:  # the reader asks for more only within quotes
            raise Unreadable(f"A quote that opens on line {rows.line_num - len(taken) + 1} or after it is not closed.")

    csv.field_size_limit(MAX_FRAME)
    rows = csv.reader(physical_lines())
    header: list[str] | None = None
    lines: list[bytes] = []
    raws: list[bytes] = []
    numbers: list[int] = []
    size = 0
    try:
        for row in rows:
            raw = "".join(taken).rstrip("\r\n")
            number = rows.line_num - len(taken) + 1
            taken.clear()
            if not row:
                continue
            if header is None:
                # Without one, the columns are those of the table, in order.
                header = row if set(row) & set(COLUMNS) else list(COLUMNS)
                if header is row:
                    continue
            raw_bytes = raw.encode("utf-8", "surrogateescape")
            if len(row) == len(header):
                event = json.dumps(dict(zip(header, row, strict=True)), ensure_ascii=False)
                lines.append(event.encode("utf-8", "surrogateescape"))
            else:
                lines.append(raw_bytes)  # no event: quarantined as it came
            raws.append(raw_bytes)
            numbers.append(number)
            size += len(raw_bytes)
            if len(lines) == ROWS_A_BATCH or size >= MAX_FRAME:
                yield Frames(lines, numbers, raws)
                lines, numbers, raws, size = [], [], [], 0
    except csv.Error as error:
        raise Unreadable(f"It is no CSV that can be read: line {rows.line_num}: {error}.") from error
    finally:
        text.detach()
    if lines:
        yield Frames(lines, numbers, raws)


def _parquet_frames(stream: IO[bytes], *, compressed: bool) -> Iterator[Frames]:
    with tempfile.TemporaryFile() as copy:
        if compressed:  # Parquet is read from its end
            shutil.copyfileobj(stream, copy, READ_BYTES)
            copy.seek(0)
        number = 1
        try:
            with pq.ParquetFile(copy if compressed else stream, pre_buffer=False) as table:
                for batch in table.iter_batches(ROWS_A_BATCH):
                    rows = _json_columns(batch).to_pylist(maps_as_pydicts="lossy")
                    lines = [_json_object(row) for row in rows]
                    yield Frames(lines, range(number, number + len(lines)))
                    number += len(lines)
        # What Python has no value for (a year 10000, a text that is no UTF-8, an unknown zone) is refused in many ways.
        except (pa.ArrowException, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise Unreadable(f"It is no Parquet file that can be read: {error}.") from error


def _json_columns(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with times in microseconds: Python's have no nanoseconds."""
    fields = [
        pa.field(column.name, pa.timestamp("us", column.type.tz))
        if pa.types.is_timestamp(column.type) and column.type.unit == "ns"
        else column
        for column in batch.schema
    ]
    return batch.cast(pa.schema(fields), safe=False)


def _json_object(row: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False, default=_json_value)
    except ValueError:  # JSON has no NaN and no infinity
        text = json.dumps(_finite(row), ensure_ascii=False, default=_json_value)
    return text.encode("utf-8", "surrogateescape")


def _json_value(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
