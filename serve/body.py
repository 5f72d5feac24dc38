"""The body of a request, decompressed: never more of it than the limit is held."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import brotli  # type: ignore[import-untyped]  # it comes without types
import zstandard
from flask import Request

from serve.errors import ApiError

_PIECE = 256 * 1024
_STEP = 1024
# Parallel compressors write one for every 64 KiB or more; a body of nothing else would take minutes to go through.
_MEMBERS = 1000


def read_body(request: Request, limit: int) -> bytes:
    """The decompressed body.

    Args:
        limit: bytes that it may have once decompressed; a longer one is refused without inflating the rest.

    Raises:
        ApiError: 413 too large, 415 an unknown Content-Encoding, 400 one that is not what it says or ends early.
    """
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip", "deflate", "zstd", "br"):
        raise ApiError(
            415, "encoding_unknown", "This Content-Encoding is not understood; send gzip, zstd, br, deflate or none."
        )
    if request.content_length is None:
        body = _within(limit, [request.get_data(cache=False)])
    else:
        _check(request.content_length, limit)
        # In one piece: werkzeug's stream reads 64 KiB at a time, 3 ms more for 3 MB.
        body = request.environ["wsgi.input"].read(request.content_length)
        if len(body) < request.content_length:
            raise ApiError(400, "body_incomplete", "The body ended before its Content-Length; send it again.")
    try:
        if encoding in ("gzip", "x-gzip"):
            body = _within(limit, _inflate(body, lambda: zlib.decompressobj(zlib.MAX_WBITS | 16)))
        elif encoding == "deflate":
            # By the book it is zlib's format; some clients send the bare stream.
            is_zlib = len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2]) % 31 == 0
            window_bits = zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS
            body = _within(limit, _inflate(body, lambda: zlib.decompressobj(window_bits)))
        elif encoding == "zstd":
            decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
            body = _within(limit, _inflate(body, lambda: decompressor.decompressobj(write_size=_PIECE)))
        elif encoding == "br":
            body = _within(limit, _unbrotli(body))
    except (zlib.error, zstandard.ZstdError, brotli.error, EOFError):
        raise ApiError(400, "body_corrupt", f"The body is not whole {encoding} data; send it again.") from None
    return body


def _within(limit: int, pieces: Iterator[bytes] | list[bytes]) -> bytes:
    whole = bytearray()
    for piece in pieces:
        _check(len(whole) + len(piece), limit)
        whole += piece
    return bytes(whole)


def _check(size: int, limit: int) -> None:
    if size > limit:
        raise ApiError(
            413,
            "body_too_large",
            f"The body is larger than {limit} bytes (decompressed); send it in smaller parts.",
        )


def _inflate(body: bytes, new: Callable[[], Any]) -> Iterator[bytes]:
    """The pieces of gzip's members or zstd's frames, which may stand one after another.

    Args:
        new: makes what inflates one of them.
    """
    at, members = 0, 0
    while at < len(body):
        inflater, members = new(), members + 1
        if members > _MEMBERS:
            raise EOFError
        while not inflater.eof:
            # A frame can inflate 10,000-fold: fed little at a time, one piece stays small.
            piece = body[at : at + _STEP]
            if not piece:
                raise EOFError
            yield inflater.decompress(piece)
            at += len(piece)
        at -= len(inflater.unused_data)


def _unbrotli(body: bytes) -> Iterator[bytes]:
    inflater, rest = brotli.Decompressor(), body
    while not inflater.is_finished():
        piece = inflater.process(rest, output_buffer_limit=_PIECE)
        rest = b""
        if not (piece or inflater.is_finished()):
            raise EOFError
        yield piece
