"""ClickHouse as the API sees it: connected when first needed, given up on quickly while it is away."""

from __future__ import annotations

import contextvars
import json
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, TypeVar

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, Error
from clickhouse_connect.driver.external import ExternalData
from urllib3.exceptions import HTTPError

from warehouse.background import in_background
from warehouse.connection import connect
from warehouse.settings import Settings

CONNECT_SECONDS = 2
# For ClickHouse's own "too slow" to arrive.
READ_SECONDS = 2
# What is waited for in turn, at most: a connection, an insert, and two questions what it brought.
ANSWERS = 4
# While ClickHouse is away it is asked again once in this time, by one request; the others fail at once.
RETRY_SECONDS = 1.0
# Bytes of an answer that are held in memory; the rest of a larger one is on disk.
ANSWER_IN_MEMORY = 4 * 1024 * 1024
PIECE = 128 * 1024
SAME_QUERY_ID_IS_RUNNING = 216

T = TypeVar("T")


class UnavailableError(Exception):
    """ClickHouse does not answer."""


@dataclass(frozen=True)
class Answer:
    """The whole answer of a query.

    Attributes:
        content: its bytes, from the first one on, in memory up to ``ANSWER_IN_MEMORY`` and on disk beyond.
        size: in bytes.
        media_type: of the format.
        query_id: by which ClickHouse's own logs know the query.
        rows_read, bytes_read: what ClickHouse read for it.
    """

    content: IO[bytes]
    size: int
    media_type: str
    query_id: str
    rows_read: int
    bytes_read: int


class Database:
    """A connection with the rights of the API, shared by all threads.

    Args:
        settings: where ClickHouse is.
        max_execution_time: seconds that a query may take.
        as_user: another database user than the API's own, with limits that are the user's.
    """

    def __init__(self, settings: Settings, max_execution_time: int, as_user: str = "") -> None:
        self._settings = settings
        self._max_execution_time = max_execution_time
        self._as_user = as_user
        self._client: Client | None = None
        self._connecting = threading.Lock()
        self._lost_at = float("-inf")

    @contextmanager
    def client(self) -> Iterator[Client]:
        """The client, for the span of one piece of work.

        Raises:
            UnavailableError: ClickHouse cannot be reached or does not answer in time.
        """
        client = self._client or self._connect()
        try:
            yield client
        except ClickHouseError as error:
            # An error without ClickHouse's own code is the transport's.
            if isinstance(error, Error) and error.code is None:
                self._lost_at = time.monotonic()
                self._client = None
                raise UnavailableError("ClickHouse does not answer.") from error
            raise

    def _connect(self) -> Client:
        if time.monotonic() - self._lost_at < RETRY_SECONDS:
            raise UnavailableError("ClickHouse did not answer a moment ago.")
        # Wait for the one that connects no longer than a connection may take.
        if not self._connecting.acquire(timeout=CONNECT_SECONDS):
            raise UnavailableError("ClickHouse does not answer.")
        try:
            if self._client is None:
                if time.monotonic() - self._lost_at < RETRY_SECONDS:
                    raise UnavailableError("ClickHouse did not answer a moment ago.")
                try:
                    self._client = self._new_client()
                except Exception as error:
                    if not (isinstance(error, Error) and error.code):  # it answers, and refuses
                        self._lost_at = time.monotonic()
                    raise UnavailableError("ClickHouse does not answer.") from error
            return self._client
        finally:
            self._connecting.release()

    def _new_client(self) -> Client:
        return connect(
            self._settings,
            as_serve_user=not self._as_user,
            as_user=self._as_user,
            # In which plain names such as app_events are looked up.
            database=self._settings.database if self._as_user == self._settings.sql_user else None,
            connect_timeout=CONNECT_SECONDS,
            # Longer than a query may take: ClickHouse's own "too slow" arrives before we hang up.
            send_receive_timeout=self._max_execution_time + READ_SECONDS,
            # The bytes are passed on as they are, and callers take them uncompressed.
            compress=False,
        )

    def run(self, work: Callable[[Client, str], T], query_id: str) -> T:
        """What `work` returns, called with the client and the id that its query is to have.

        Raises:
            UnavailableError: as ``client``.
            clickhouse_connect.driver.exceptions.ClickHouseError: ClickHouse refused or ended the query.
        """
        with self.client() as client:
            try:
                return work(client, query_id)
            except Error as error:
                # A caller may use one x-request-id for several requests at once.
                if error.code != SAME_QUERY_ID_IS_RUNNING:
                    raise
                return work(client, f"{query_id}-{uuid.uuid4().hex}")

    def run_in_time(self, work: Callable[[Client, str], T], query_id: str) -> T:
        """As ``run``, and given up on when all of it takes too long; `work` then goes on, and nobody waits for it.

        A read that times out ends no answer that comes bit by bit, such as that of a server whose disk hangs: it goes
        on to tell of its progress.
        """
        context = contextvars.copy_context()
        result = in_background(lambda: context.run(self.run, work, query_id))
        try:
            return result.result(ANSWERS * (self._max_execution_time + READ_SECONDS))
        except TimeoutError as error:
            self._lost_at = time.monotonic()
            self._client = None
            raise UnavailableError("ClickHouse does not come to an end.") from error

    def fetch(
        self,
        sql: str,
        parameters: dict[str, Any],
        output_format: str,
        query_id: str,
        *,
        settings: Mapping[str, object] | None = None,
        external_data: ExternalData | None = None,
        as_header: bool = False,
    ) -> Answer:
        """Run a query with bound parameters and return its whole answer in the given format.

        Args:
            output_format: empty when the query names it.
            external_data: a table for this query alone.
            as_header: name the format beside the query, whose text stays as it is.

        Whole, because the WSGI server ends an answer that breaks midway as if it were complete. Large answers lie on
        disk: ClickHouse's (``wait_end_of_query``) until the last row is there, then ours, so that an error never
        follows data and a slow reader uses up neither memory nor the query's time.

        Raises:
            UnavailableError, clickhouse_connect.driver.exceptions.ClickHouseError: as ``run``.
        """
        own_settings = {**(settings or {}), "wait_end_of_query": 1}
        if not self._as_user:
            # Also where the user was made by hand, without limits of its own.
            limits = {**self._settings.query_limits, "max_execution_time": self._max_execution_time}
            own_settings |= {"readonly": 2, **limits}
        upstream: Any = self.run(
            lambda client, own_id: client.raw_stream(
                sql,
                parameters,
                {**own_settings, "query_id": own_id},
                "" if as_header else output_format,
                external_data=external_data,
                transport_settings={"X-ClickHouse-Format": output_format} if as_header and output_format else None,
            ),
            query_id,
        )
        content = tempfile.SpooledTemporaryFile(max_size=ANSWER_IN_MEMORY)  # noqa: SIM115 - the response closes it
        try:
            with upstream:
                shutil.copyfileobj(upstream, content, PIECE)
        except HTTPError as error:
            raise UnavailableError("ClickHouse broke off its answer.") from error
        size = content.tell()
        content.seek(0)
        read = json.loads(upstream.headers["X-ClickHouse-Summary"])
        return Answer(
            content,
            size,
            upstream.headers["Content-Type"],
            upstream.headers["X-ClickHouse-Query-Id"],
            int(read["read_rows"]),
            int(read["read_bytes"]),
        )
