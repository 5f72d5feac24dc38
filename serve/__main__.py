"""``python -m serve``: the API on API_HOST:API_PORT until SIGTERM or SIGINT."""

from __future__ import annotations

import resource
import socket
import sys

from granian import Granian
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings

from serve.app import create_app
from serve.asgi import Gate
from serve.logs import LOGGING
from warehouse.settings import Settings, SettingsError

# For a request's head to arrive, and for a connection to stay open without one; bodies have limits of their own.
HEAD_SECONDS = 10
# A head has room for the longest parameter, escaped; more is answered 431.
HEAD_BYTES = 256 * 1024
# The operating system's files are connections, but for these: answers and bodies on disk, ClickHouse's, tokens.
OTHER_FILES = 512
MAX_FILES = 65_536
# SIGTERM lets requests end for this long beyond what a query may take.
SHUTDOWN_SECONDS = 5


def app() -> Gate:
    """The app of one worker."""
    return Gate(create_app(Settings.from_env()))


def main() -> None:
    """Serve until a signal ends it.

    Raises:
        SystemExit: a setting cannot be used, or the port is taken.
    """
    try:
        settings = Settings.from_env()
        config = create_app(settings).config  # refused here rather than in a worker
    except SettingsError as error:
        sys.exit(str(error))
    # The server shares its port between its workers, hence with any other copy of it as well.
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.api_host, settings.api_port))
        except OSError as error:
            address = f"{settings.api_host}:{settings.api_port}"
            sys.exit(f"Cannot listen on {address}: {error.strerror}; set API_PORT to a free port.")
    # Connections that say nothing are held until their time is over, and while there are as many as allowed, nobody
    # else gets in: allow as many as the operating system does.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MAX_FILES if most == resource.RLIM_INFINITY else min(most, MAX_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    Granian(
        "serve.__main__:app",
        factory=True,
        interface=Interfaces.ASGINL,
        http=HTTPModes.http1,
        websockets=False,
        address=settings.api_host,
        port=settings.api_port,
        workers=config["WORKERS"],
        backlog=4096,
        backpressure=max(files - OTHER_FILES, 128),
        http1_settings=HTTP1Settings(header_read_timeout=HEAD_SECONDS * 1000, max_buffer_size=HEAD_BYTES),
        workers_kill_timeout=config["MAX_EXECUTION_TIME"] + SHUTDOWN_SECONDS,
        log_access=False,
        log_dictconfig=LOGGING,
    ).serve()


if __name__ == "__main__":
    main()
