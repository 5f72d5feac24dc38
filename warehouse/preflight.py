"""What has to be true before anything starts: free ports, folders, a ClickHouse that takes us in."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from clickhouse_connect.driver.exceptions import ClickHouseError

from warehouse.connection import connect
from warehouse.landing import LandingFolder
from warehouse.processes import bound, listens
from warehouse.settings import Settings

# ClickHouse's codes: unknown user, wrong password, password needed, authentication failed.
LOGIN_REFUSED = (192, 193, 194, 516)


class StartError(Exception):
    """The project cannot start; the message says why in one sentence."""


def clickhouse_url(settings: Settings) -> str:
    scheme = "https" if settings.clickhouse_secure else "http"
    return f"{scheme}://{settings.clickhouse_host}:{settings.clickhouse_port}"


def check_ports(settings: Settings) -> None:
    """Check that the ports of every part are free and differ.

    Raises:
        StartError: one is not.
    """
    addresses = {
        "API_PORT": (settings.api_host, settings.api_port),
        "DAGSTER_PORT": ("127.0.0.1", settings.dagster_port),
    }
    if settings.embedded:
        addresses["CLICKHOUSE_PORT"] = ("127.0.0.1", settings.clickhouse_port)
    for name, (host, port) in addresses.items():
        if same := [other for other, address in addresses.items() if other < name and address[1] == port]:
            raise StartError(f"{same[0]} and {name} are both {port}; set one of them to another port.")
        try:
            bound(host, port).close()
        except OSError as error:
            reason = f"Port {port} on {host} is taken" if listens(host, port) else f"{host}:{port}: {error.strerror}"
            raise StartError(f"{reason}; set {name} to a free port.") from None


def check_clickhouse(settings: Settings) -> None:
    """Check that the ClickHouse of ``CLICKHOUSE_HOST`` answers and takes the login.

    Raises:
        StartError: it does not.
    """
    url = clickhouse_url(settings)
    try:
        connect(settings, connect_timeout=5, send_receive_timeout=10).close()
    except ClickHouseError as error:
        if getattr(error, "code", None) in LOGIN_REFUSED:
            user = settings.clickhouse_user
            message = f"ClickHouse at {url} refuses {user!r}; check CLICKHOUSE_USER and CLICKHOUSE_PASSWORD."
        else:
            message = (
                f"No ClickHouse answers at {url}; check CLICKHOUSE_HOST, _PORT and _SECURE, or unset CLICKHOUSE_HOST."
            )
        raise StartError(message) from error


def check_landing(settings: Settings) -> None:
    """Check that the landing folder can be listed.

    Raises:
        StartError: it cannot.
    """
    try:
        LandingFolder(settings).files()
    except (ImportError, ValueError, OSError) as error:
        raise StartError(
            f"The landing folder cannot be listed; check LANDING_URL and its credentials: {error}"
        ) from error


@contextmanager
def data_folder(settings: Settings, lock_name: str) -> Iterator[None]:
    """Hold the data folder for one part, so that no second one runs on it.

    Raises:
        StartError: another copy holds it.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with (settings.data_dir / lock_name).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(
                f"The data folder {settings.data_dir} is in use by another copy; stop it or set DATA_DIR to another."
            ) from None
        yield
