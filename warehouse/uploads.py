"""Files that come over HTTP: kept in the landing folder under the id that their import will have."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from warehouse.landing import (
    EXTENSIONS,
    READ_BYTES,
    SPOOL,
    SPOOLED_ID,
    UPLOADS,
    LandingFolder,
    Unreadable,
    content_id,
    read_frames,
)
from warehouse.settings import Settings

# How compressed files begin.
_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}


class TooLarge(Exception):
    """A file that is larger than the limit, as it came or once decompressed."""


@dataclass(frozen=True)
class Upload:
    """A file that was kept.

    Attributes:
        import_id: the id of its import; the same content has the same.
        lines: that will be ingested.
    """

    import_id: str
    lines: int


def keep(settings: Settings, pieces: Iterable[bytes], extension: str, limit: int) -> Upload:
    """Keep a file in the landing folder; durable and read to its end once when this returns. Memory stays constant.

    Args:
        pieces: its content, plain, gzip or zstd.
        extension: of its format, one of ``EXTENSIONS``.
        limit: bytes that it may have, also once decompressed.

    Raises:
        TooLarge: it is larger than the limit.
        Unreadable: it is not what its extension says.
        OSError: it could not be kept.
    """
    if extension not in EXTENSIONS:
        raise ValueError(f"Cannot keep a file with the extension {extension!r}.")
    # Not the system's folder for such things, which often is memory.
    with tempfile.TemporaryDirectory(dir=settings.data_dir, prefix="upload-") as scratch:
        folder = LandingFolder(replace(settings, landing_url=scratch))
        draft = Path(scratch) / UPLOADS / "draft"
        draft.parent.mkdir()
        with draft.open("wb") as file:
            for piece in _limited(pieces, limit):
                file.write(piece)
        with draft.open("rb") as file:
            start = file.read(4)
        compression = next((suffix for magic, suffix in _MAGIC.items() if start.startswith(magic)), "")
        draft = draft.rename(f"{draft}{extension}{compression}")
        kept = folder.file(f"{UPLOADS}/{draft.name}")
        try:
            with folder.open(kept) as content:
                import_id = content_id(_limited(_pieces(content), limit), extension)
            lines = sum(len(batch.lines) for batch in read_frames(folder, kept))
        except OSError as error:
            if error.errno is not None:
                raise
            raise Unreadable(f"It cannot be read to its end: {error}.") from error
        with (
            draft.open("rb") as content,
            LandingFolder(settings).write(f"{UPLOADS}/{import_id}{extension}{compression}") as target,
        ):
            shutil.copyfileobj(content, target, READ_BYTES)
    return Upload(import_id, lines)


def is_waiting(settings: Settings, import_id: str) -> bool:
    """Whether a file or batch of this import lies in the landing folder, not ingested to its end yet.

    Raises:
        OSError: the storage does not answer.
    """
    folder = LandingFolder(settings)
    return bool(
        SPOOLED_ID.fullmatch(import_id)
        and any(folder.fs.glob(folder.full(f"{place}/{import_id}.*")) for place in (UPLOADS, SPOOL))
    )


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    while piece := stream.read(READ_BYTES):
        yield piece


def _limited(pieces: Iterable[bytes], limit: int) -> Iterator[bytes]:
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > limit:
            raise TooLarge(f"The file is larger than {limit} bytes (decompressed); send it in smaller parts.")
        yield piece
