"""Files that a caller names by their address: fetched only from where SERVE_URL_ALLOWED says."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Iterator
from urllib.parse import SplitResult, urlsplit

import certifi
import urllib3

from serve.errors import ApiError

CONNECT_SECONDS, READ_SECONDS, WHOLE_SECONDS = 3, 10, 60
PIECE = 256 * 1024


def fetch(url: str, allowed: str) -> Iterator[bytes]:
    """The content of a file.

    Args:
        allowed: comma-separated beginnings of addresses, for example ``https://data.example.org/exports/``.

    Raises:
        ApiError: 403 it is not from there, 400 it cannot be fetched.
    """
    address = _allowed(url, allowed)
    if not address:
        places = allowed or "none; send the file itself"
        raise ApiError(403, "url_forbidden", f"Files are fetched from these addresses only: {places}.", parameter="url")
    host, port = address.hostname or "", address.port or {"http": 80, "https": 443}[address.scheme]
    # The address that was looked at is the one that is connected to: a name may stand for another a moment later.
    ip = _public_address(host, port)
    pool: urllib3.HTTPConnectionPool
    if address.scheme == "https":
        context = ssl.create_default_context(cafile=certifi.where())
        pool = urllib3.HTTPSConnectionPool(ip, port, ssl_context=context, server_hostname=host, assert_hostname=host)
    else:
        pool = urllib3.HTTPConnectionPool(ip, port)
    deadline = time.monotonic() + WHOLE_SECONDS
    with pool:
        try:
            answer = pool.request(
                "GET",
                f"{address.path or '/'}?{address.query}".rstrip("?"),
                headers={"Host": address.netloc},
                redirect=False,  # it could lead anywhere
                retries=False,
                preload_content=False,
                timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
            )
            if answer.status != 200:
                raise _unfetched(f"answered {answer.status}, not 200")
            for piece in answer.stream(PIECE, decode_content=False):
                if time.monotonic() > deadline:
                    raise _unfetched(f"took longer than {WHOLE_SECONDS} s")
                yield piece
        except urllib3.exceptions.HTTPError as error:
            raise _unfetched("could not be read to its end") from error


def _allowed(url: str, allowed: str) -> SplitResult | None:
    """The address in parts, if it begins as one of those allowed."""
    try:
        address = urlsplit(url)
        named = (address.scheme, address.hostname, address.port)
    except ValueError:
        return None
    plain = url.isascii() and url.isprintable() and " " not in url and "\\" not in url and "@" not in address.netloc
    # Whoever serves the address may resolve dots, plain or encoded.
    if not plain or ".." in address.path.lower().replace("%2e", "."):
        return None
    for beginning in filter(None, (text.strip() for text in allowed.split(","))):
        place = urlsplit(beginning)
        folder = place.path if place.path.endswith("/") else place.path + "/"
        if named == (place.scheme, place.hostname, place.port) and (address.path or "/").startswith(folder):
            return address
    return None


def _public_address(host: str, port: int) -> str:
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except OSError as error:
        raise _unfetched("has a host that is not known") from error
    try:
        ipaddress.ip_address(host)
    except ValueError:
        # A private address is where the operator names it as such, not where a name leads to one.
        if not all(ipaddress.ip_address(ip.partition("%")[0]).is_global for ip in found):
            raise ApiError(403, "url_forbidden", "This host leads to a private address.", parameter="url") from None
    return found[0]


def _unfetched(what: str) -> ApiError:
    return ApiError(400, "url_unreachable", f"The address {what}; send the file itself.", parameter="url")
