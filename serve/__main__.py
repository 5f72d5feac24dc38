"""``python -m serve``: the API on API_HOST:API_PORT until SIGTERM or SIGINT."""

from __future__ import annotations

import socket
import sys

from flask import Flask
from granian import Granian
from granian.constants import Interfaces

from serve.app import create_app
from serve.logs import LOGGING
from warehouse.settings import Settings, SettingsError

# Measured on two cores that ClickHouse shares: a second process answers no more queries, as ClickHouse is what is busy,
# and 8 or 16 threads are alike; 16 leave room for ingestion beside queries that take their whole time limit.
WORKERS = 1
THREADS = 16
# Longer than a query may take, so that SIGTERM lets requests end.
SHUTDOWN_SECONDS = 15


def app() -> Flask:
    """The app of one worker."""
    return create_app(Settings.from_env())


def main() -> None:
    """Serve until a signal ends it.

    Raises:
        SystemExit: a setting cannot be used, or the port is taken.
    """
    try:
        settings = Settings.from_env()
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
    Granian(
        "serve.__main__:app",
        factory=True,
        interface=Interfaces.WSGI,
        address=settings.api_host,
        port=settings.api_port,
        workers=WORKERS,
        blocking_threads=THREADS,
        workers_kill_timeout=SHUTDOWN_SECONDS,
        log_access=False,
        log_dictconfig=LOGGING,
    ).serve()


if __name__ == "__main__":
    main()
