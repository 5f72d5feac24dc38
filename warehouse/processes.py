"""Processes that a supervisor starts, asks and ends, and the ports that they listen on."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from warehouse.settings import PROJECT_DIR

LOG_BYTES = 10_000_000
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass
class Part:
    """A process of the project with its log.

    Attributes:
        answers: whether it does what it is there for.
    """

    name: str
    command: list[str]
    log: Path
    answers: Callable[[], bool] = lambda: True
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    restarts: int = 0
    restart_at: float = 0.0

    def start(self, environ: dict[str, str]) -> None:
        self.cut_log()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=PROJECT_DIR,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_before_exec,
            )
        self.started_at = time.monotonic()

    @property
    def exit_code(self) -> int | None:
        """None while it runs and before it was started."""
        return self.process.poll() if self.process else None

    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process, not to its children: it ends them itself."""
        if self.process:
            self.process.send_signal(number)

    def kill_all(self) -> None:
        """Kill what is left of it and of its children: workers of the API, runs of Dagster with their dbt."""
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def cut_log(self) -> None:
        """Move a log of more than 10 MB to ``.log.1``, from under the process that appends to it."""
        with suppress(OSError):  # on a full disk it stays as it is: no reason to end anything
            if self.log.stat().st_size > LOG_BYTES:
                shutil.copy(self.log, self.log.with_suffix(".log.1"))
                os.truncate(self.log, 0)

    def failure(self) -> str:
        """One line on how it ended and where its log is."""
        if self.exit_code is not None and self.exit_code < 0:
            return f"{self.name} was ended by {signal.Signals(-self.exit_code).name} (log: {self.log})"
        try:
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        except OSError:  # removed by someone who cleans up
            lines = []
        return f"{self.name} ended with code {self.exit_code}: {lines[-1] if lines else 'no output'} (log: {self.log})"


def bound(host: str, port: int) -> socket.socket:
    """A socket bound to an address; OSError when it is taken or not of this machine."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    probe = socket.socket(family, kind, protocol)
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind(address)
    except OSError:
        probe.close()
        raise
    return probe


def free_port() -> int:
    with bound("127.0.0.1", 0) as probe:
        return int(probe.getsockname()[1])


def listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((reachable(host), port), timeout=1).close()
    except OSError:
        return False
    return True


def http_answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - our own addresses
            return bool(answer.status == 200)
    except OSError:
        return False


def reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104 - compared, not bound


def _before_exec() -> None:
    # A shell that starts this in the background ignores SIGINT, and Dagster ends on SIGTERM only where SIGINT counts.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if LIBC:
        # A killed supervisor takes its parts along. Elsewhere than on Linux the next start finds their ports taken.
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
