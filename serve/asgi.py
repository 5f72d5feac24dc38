"""Between the HTTP server and the app: a thread works on a request once it is there whole, and waits for no client.

The server reads and writes any number of connections in its event loop. What would let a few slow clients take every
thread, reading a body and sending an answer, happens there as well, with deadlines. Queries, imports and uploads have
threads of their own, so that none of them keeps the others out; who finds too many in line is told so at once.
"""

from __future__ import annotations

import asyncio
import contextvars
import io
import itertools
import logging
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any
from urllib.parse import unquote_to_bytes

from flask import Flask

from serve.errors import ApiError

log = logging.getLogger("serve")

Scope = dict[str, Any]
Environ = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

# A body may take longer than its time for as long as it comes this fast.
BODY_BYTES_A_SECOND = 10_000
# A client that takes nothing of its answer for this long is hung up on.
SEND_SECONDS = 30
# Bytes of a body that are held in memory; a larger one is on disk.
BODY_IN_MEMORY = 1024 * 1024
# In the WSGI environment: the ApiError that the app answers with instead of doing anything.
REFUSAL = "serve.refusal"


class Gate:
    """The app as the server calls it: ASGI, without lifespan.

    Args:
        app: made by ``create_app``; its configuration has the limits.
    """

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._body_bytes: int = app.config["MAX_BODY_BYTES"]
        self._body_seconds: int = app.config["MAX_BODY_SECONDS"]
        limits = app.config["MAX_WAITING"], app.config["MAX_EXECUTION_TIME"]
        self._queries = Lane(app.config["MAX_CONCURRENT_QUERIES"], *limits)
        self._imports = Lane(app.config["MAX_CONCURRENT_IMPORTS"], *limits)
        self._uploads = Lane(app.config["MAX_CONCURRENT_UPLOADS"], *limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        environ = _environ(scope)
        path = "/" + environ["PATH_INFO"].lstrip("/")  # as the app reads it
        has_body = "CONTENT_LENGTH" in environ or "HTTP_TRANSFER_ENCODING" in environ
        # A file can be too large to be kept for someone whose token nobody has seen yet: the app reads it.
        is_upload = scope["method"] == "POST" and path.rstrip("/") == "/v0/datasources"
        is_query = path.startswith(("/v0/pipes/", "/v0/sql"))
        lane = self._uploads if is_upload else self._queries if is_query else self._imports
        body = Body(receive, self._body_seconds)
        with tempfile.SpooledTemporaryFile(max_size=BODY_IN_MEMORY) as gathered:
            environ["wsgi.input"] = io.BufferedReader(body) if is_upload else gathered
            # What is announced as too large the app refuses without reading it.
            if has_body and not is_upload and int(environ.get("CONTENT_LENGTH", 0)) <= self._body_bytes:
                try:
                    environ["CONTENT_LENGTH"] = str(await body.gather(gathered, self._body_bytes))
                except ApiError as refusal:
                    environ[REFUSAL] = refusal
            answer = await lane.run(self._app, environ)
            try:
                await answer.send(send)
            except TimeoutError:
                log.warning("a client took nothing of its answer for %s s: %s %r", SEND_SECONDS, scope["method"], path)
            finally:
                answer.close()


class Lane:
    """Threads for one kind of request, and a line before them.

    Args:
        threads: how many requests are worked on at once.
        waiting: how many more may stand in line.
        seconds: for how long.
    """

    def __init__(self, threads: int, waiting: int, seconds: float) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._room = threads + waiting
        self._seconds = seconds
        self._inside = 0

    async def run(self, app: Flask, environ: Environ) -> Answer:
        """The app's answer: 503 when too many are in line, or when it took too long."""
        if self._inside >= self._room:
            environ.setdefault(REFUSAL, _overloaded())
            return await asyncio.to_thread(Answer, app, environ)
        self._inside += 1
        try:
            arrived_at = time.monotonic()
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._answer, app, environ, arrived_at)
        finally:
            self._inside -= 1

    def _answer(self, app: Flask, environ: Environ, arrived_at: float) -> Answer:
        if time.monotonic() - arrived_at > self._seconds:
            environ.setdefault(REFUSAL, _overloaded())
        return Answer(app, environ)


class Body(io.RawIOBase):
    """A request's body as it comes; gathered in the event loop, or read in a thread.

    Args:
        seconds: that it may take, when it does not come fast.
    """

    def __init__(self, receive: Receive, seconds: float) -> None:
        self._receive = receive
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._started_at = time.monotonic()
        self._size = 0
        self._rest = b""
        self._is_whole = False

    async def gather(self, into: IO[bytes], limit: int) -> int:
        """Take all of it in, or a little more than `limit` bytes of a larger one; returns how many.

        Raises:
            ApiError: 408 too slow, 400 it ended before its end.
        """
        while not self._is_whole and self._size <= limit:
            into.write(await self._next())
        into.seek(0)
        return self._size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """As of a file; raises ApiError as `gather` does."""
        while not (self._rest or self._is_whole):
            self._rest = asyncio.run_coroutine_threadsafe(self._next(), self._loop).result()
        piece, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)

    async def _next(self) -> bytes:
        allowed = max(self._seconds, self._size / BODY_BYTES_A_SECOND)
        try:
            async with asyncio.timeout(self._started_at + allowed - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(408, "body_timeout", "The body took too long to arrive; send it again.") from None
        if message["type"] == "http.disconnect":
            raise ApiError(400, "body_incomplete", "The body ended before it was whole; send it again.")
        piece: bytes = message["body"]
        self._size += len(piece)
        self._is_whole = not message["more_body"]
        return piece


class Answer:
    """What the app answers; made in a thread, up to its second piece: most answers have one."""

    def __init__(self, app: Flask, environ: Environ) -> None:
        # Pieces that are made while they are sent, such as compressed ones, are made in whichever thread is free, but
        # in one context: the app leaves there what it looks for with the next piece.
        self._context = contextvars.copy_context()
        self._result: Iterable[bytes] = self._context.run(app, environ, self._start)
        self._pieces: Iterator[bytes] = iter(self._result)
        self._first = self._next()

    def _next(self) -> list[bytes]:
        return self._context.run(lambda: list(itertools.islice(self._pieces, 2)))

    def _start(self, status: str, headers: list[tuple[str, str]], _: object = None) -> Callable[[bytes], object]:
        self._head: dict[str, Any] = {
            "type": "http.response.start",
            "status": int(status[:3]),
            "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        }
        return lambda _: None

    async def send(self, send: Send) -> None:
        """Send it as fast as the client takes it."""
        await send(self._head)
        pieces = self._first
        # Cut short, an answer looks whole to its client unless its length was told.
        patience = SEND_SECONDS if any(name == b"content-length" for name, _ in self._head["headers"]) else None
        while len(pieces) > 1:
            for piece in pieces:
                async with asyncio.timeout(patience):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            pieces = await asyncio.to_thread(self._next)
        await send({"type": "http.response.body", "body": b"".join(pieces)})

    def close(self) -> None:
        if hasattr(self._result, "close"):
            self._context.run(self._result.close)


def _environ(scope: Scope) -> Environ:
    """The request as WSGI has it, but for its body."""
    host, port = scope["server"]
    environ: Environ = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(scope["raw_path"]).decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "REMOTE_ADDR": scope["client"][0],
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
    }
    for raw_name, raw_value in scope["headers"]:
        name = raw_name.decode("latin-1").upper()
        if "_" in name:  # it would pass for the one with hyphens
            continue
        name = name.replace("-", "_")
        key = name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"
        value = raw_value.decode("latin-1")
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    return environ


def _overloaded() -> ApiError:
    return ApiError(503, "overloaded", "There is too much to do; ask again later.", retry_after=2)
