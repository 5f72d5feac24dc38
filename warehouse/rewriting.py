"""Files of the landing folder without some of their lines."""

from __future__ import annotations

import datetime
import gzip
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import groupby
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.external import ExternalData

from warehouse.conditions import Condition
from warehouse.framing import Frames
from warehouse.landing import (
    EXTENSIONS,
    READ_BYTES,
    ROWS_A_BATCH,
    LandingFile,
    LandingFolder,
    Outcome,
    Unfinished,
    Unreadable,
    content_id,
    dealt_with,
    pieces,
    read_frames,
    record,
)
from warehouse.settings import Settings

BLANK_OR_MARK = b" \t\r\n\xef\xbb\xbf"
# What ends a line of a CSV file; a line of any other text ends with a line feed alone.
CSV_LINE_END = re.compile(rb"\r\n|\r|\n")
# Where Parquet and the writer call a codec by different names.
CODECS = {"UNCOMPRESSED": "NONE"}
# For each frame of a batch: true when it has to go.
Marks = list[bool]


class Rewritten(NamedTuple):
    """What became of the files.

    Attributes:
        files: how many lost lines.
        lines: how many lines they lost.
        unreadable: paths of set-aside files of which nobody can tell what they hold.
    """

    files: int
    lines: int
    unreadable: list[str]


def erase_lines(client: Client, settings: Settings, condition: Condition, *, dry_run: bool = False) -> Rewritten:
    """Rewrite the files that hold lines which the condition is about; what remains keeps its line numbers.

    The ledger learns of a file's new content before the file is replaced, so it is never ingested as a new one. A file
    that the ledger does not hold is left out, unless it is a dry run: rewritten, it would never be ingested.

    Raises:
        OSError: a file cannot be read or written now.
        Unfinished: a file is being written.
    """
    folder = LandingFolder(settings)
    kept = folder.files(young=True)  # the erasure before this one may have written them
    if not dry_run:
        kept = dealt_with(client, settings, kept)
        if any(map(folder.is_being_written, folder.files())):
            raise Unfinished("It is still being written.")
        folder.remove_drafts()
    files = lines = 0
    unreadable = []
    for file in kept + folder.files(set_aside=True, young=True):
        try:
            if file.extension not in EXTENSIONS:
                raise Unreadable("It is of no known format.")
            found = sum(sum(marks) for _, marks in _marked(client, settings, condition, folder, file))
            if found and not dry_run:
                _rewrite(client, settings, condition, folder, file, is_known=file in kept)
        except (Unfinished, FileNotFoundError):
            if not dry_run:
                raise
            continue  # a file that has just come or gone is no reason to say nothing of the others
        except (Unreadable, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            unreadable.append(file.name)
            continue
        files += found > 0
        lines += found
    return Rewritten(files, lines, unreadable)


def _marked(
    client: Client, settings: Settings, condition: Condition, folder: LandingFolder, file: LandingFile
) -> Iterator[tuple[Frames, Marks]]:
    query = condition.lines(
        settings, "(select line, raw, line_number, '' as import_id, '' as source from frames_of_a_file)"
    )
    for batch in read_frames(folder, file):
        table = pa.table(
            {
                "line": pa.array(batch.lines, pa.large_binary()),
                "raw": pa.array(batch.raws or [b""] * len(batch.lines), pa.large_binary()),
                "line_number": pa.array(range(len(batch.lines)), pa.uint64()),
            }
        )
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        frames_of_a_file = ExternalData(
            data=sink.getvalue().to_pybytes(),
            file_name="frames_of_a_file",
            fmt="ArrowStream",
            structure="line String, raw String, line_number UInt64",
        )
        found = client.query(f"select distinct line_number from ({query})", external_data=frames_of_a_file).result_rows
        marks = [False] * len(batch.lines)
        for (index,) in found:
            marks[index] = True
        yield batch, marks


def _rewrite(
    client: Client,
    settings: Settings,
    condition: Condition,
    folder: LandingFolder,
    file: LandingFile,
    *,
    is_known: bool,
) -> None:
    started = datetime.datetime.now(datetime.UTC)
    marked = _marked(client, settings, condition, folder, file)
    with folder.write(file.path, instead_of=file) as stored, folder.open(file) as original:
        if folder.local:
            os.fchmod(stored.fileno(), os.stat(folder.full(file.path)).st_mode & 0o777)
        if file.extension == ".parquet":
            rewritten = _without_rows(original, marked, compressed=bool(file.compression))
        else:
            rewritten = _without_lines(original, marked, file)
        with _compressed(stored, file) as output:
            new_id = content_id(_written(rewritten, output), file.extension)
        done = Outcome(file.name, "done")
        if is_known:
            record(client, settings, LandingFile(file.path, 0, ""), done, new_id, started)
    if is_known:
        # Whatever else has been put there meanwhile waits to be ingested.
        with suppress(Unfinished, FileNotFoundError):
            now = folder.file(file.path)
            with folder.open(now) as content:
                is_rewritten = content_id(pieces(content), file.extension) == new_id
            if is_rewritten:
                record(client, settings, now, done, new_id, started)


def _compressed(stored: IO[bytes], file: LandingFile) -> AbstractContextManager[Any]:
    """Where to write the content; ``stored`` stays open behind it."""
    if file.compression == ".gz":
        return gzip.GzipFile(filename="", fileobj=stored, mode="wb")
    if file.compression == ".zst":
        return zstandard.ZstdCompressor().stream_writer(stored, closefd=False)
    return nullcontext(stored)


def _written(content: Iterable[bytes], output: IO[bytes]) -> Iterator[bytes]:
    for piece in content:
        output.write(piece)
        yield piece


def _without_lines(original: IO[bytes], marked: Iterable[tuple[Frames, Marks]], file: LandingFile) -> Iterator[bytes]:
    """A text without its marked frames, their line breaks kept.

    Between frames there is nothing but white space, and the brackets and commas of a document's array; before the first
    one of a CSV file stands its header.
    """
    source = _Text(original)
    is_array = file.extension == ".json" and source.is_array()
    between = b""  # since the last frame that stays
    any_stays = any_gone = header_done = False
    for batch, marks in marked:
        output = []
        for text, number, is_marked in zip(batch.raws or batch.lines, batch.numbers, marks, strict=True):
            if file.extension == ".csv" and not header_done:
                output.append(source.lines(number - 1))
                header_done = True
            between += source.before(text)
            if is_marked:
                is_csv = file.extension == ".csv"
                between += b"".join(CSV_LINE_END.findall(text)) if is_csv else b"\n" * text.count(b"\n")
                any_gone = True
                continue
            if is_array and any_gone:
                between = _commas(between, 1 if any_stays else 0)
            output += [between, text]
            between, any_stays, any_gone = b"", True, False
        yield b"".join(output)
    for piece in source.rest():
        between += piece
    yield _commas(between, 0) if is_array and any_gone else between


def _commas(between: bytes, number: int) -> bytes:
    """The text between two elements of an array with only its first commas left."""
    first, *others = between.split(b",")
    if not others or not number:
        return b"".join([first, *others])
    return first + b"," + b"".join(others)


class _Text:
    """The content of a file, read from frame to frame."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._ahead = b""
        self._position = 0

    def _read(self) -> bool:
        piece = self._stream.read(READ_BYTES)
        self._ahead = self._ahead[self._position :] + piece
        self._position = 0
        return bool(piece)

    def is_array(self) -> bool:
        """True when the first character that is not blank opens an array."""
        while not (start := self._ahead.lstrip(BLANK_OR_MARK)) and self._read():
            pass
        return start.startswith(b"[")

    def lines(self, number: int) -> bytes:
        """The next lines of a CSV file, with their line breaks."""
        found = []
        while number:
            end = CSV_LINE_END.search(self._ahead, self._position)
            line = self._ahead[self._position : end.end()] if end else b""
            # A carriage return that was read last may belong to a line feed that comes next.
            is_open = not end or (end.group() == b"\r" and end.end() == len(self._ahead))
            if is_open and self._read():
                continue
            if not line:
                raise Unreadable("It is not what it was when it was framed.")
            found.append(line)
            self._position += len(line)
            number -= 1
        return b"".join(found)

    def before(self, text: bytes) -> bytes:
        """What stands before the next occurrence of a text; goes on behind it."""
        while (start := self._ahead.find(text, self._position)) < 0:
            if not self._read():
                raise Unreadable("It is not what it was when it was framed.")
        found = self._ahead[self._position : start]
        self._position = start + len(text)
        return found

    def rest(self) -> Iterator[bytes]:
        yield self._ahead[self._position :]
        while piece := self._stream.read(READ_BYTES):
            yield piece


def _unmarked(batch: pa.RecordBatch, marks: Marks) -> pa.Table:
    """The rows that stay, as slices: not every type can be filtered."""
    runs = []
    start = 0
    for is_marked, run in groupby(marks):
        length = len(list(run))
        if not is_marked:
            runs.append(batch.slice(start, length))
        start += length
    return pa.Table.from_batches(runs, batch.schema)


def _without_rows(original: IO[bytes], marked: Iterable[tuple[Frames, Marks]], *, compressed: bool) -> Iterator[bytes]:
    """A Parquet file without its marked rows, in its own schema and compression."""
    with tempfile.TemporaryFile() as copy, tempfile.TemporaryFile() as rewritten:
        if compressed:  # Parquet is read from its end
            shutil.copyfileobj(original, copy, READ_BYTES)
            copy.seek(0)
        with pq.ParquetFile(copy if compressed else original, pre_buffer=False) as table:
            groups = table.metadata.num_row_groups
            codec = table.metadata.row_group(0).column(0).compression if groups else "UNCOMPRESSED"
            with pq.ParquetWriter(rewritten, table.schema_arrow, compression=CODECS.get(codec, codec)) as writer:
                batches = table.iter_batches(ROWS_A_BATCH)
                for batch, (_, marks) in zip(batches, marked, strict=True):
                    writer.write_table(_unmarked(batch, marks))
        rewritten.seek(0)
        yield from pieces(rewritten)
