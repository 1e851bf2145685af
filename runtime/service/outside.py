"""HTTP to the outside, which a client could misuse to reach what only this machine can: to named hosts alone.

A name is resolved once, every address must be public, and the connection goes to that very address. Redirects are
followed by hand, each checked the same way.
"""

import errno
import http.client
import ipaddress
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from fairy.runtime.service.files import SPARE_BYTES
from fairy.runtime.service.problems import Problem, disk_full

_MOST_REDIRECTS = 3
_CONNECT_S, _IDLE_S = 10.0, 30.0
_PIECE_BYTES = 1 << 18
_CHECK_BYTES = 1 << 24
_SCHEMES = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """An address that may be reached, and under which name."""

    scheme: str
    host: str
    port: int
    path: str
    address: str


class Refused(Exception):
    """The URL must not be reached; the message is a sentence."""


def check_url(url: str, allowed: Iterable[str]) -> tuple[str, str, int, str]:
    """Scheme, host, port and path of a URL on an allowed host ("HOST" or "HOST:PORT"). Raises Refused."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower().rstrip("."), parts.port
    except ValueError as error:
        raise Refused("The URL is damaged; write it again.") from error
    if parts.scheme not in _SCHEMES or not host or parts.username or parts.password:
        raise Refused("The URL must be http or https, with a host and without a password in it.")
    if any(c in url for c in "\r\n\t \\") or not (url.isascii() and url.isprintable()):
        raise Refused("The URL has characters that no URL has; write it again.")
    port = port or _SCHEMES[parts.scheme]
    names = {name.lower() for name in allowed}
    if host not in names and f"{host}:{port}" not in names:
        raise Refused(f"The host {host[:80]!r} is not allowed here.")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return parts.scheme, host, port, path


def resolve(url: str, allowed: Iterable[str], *, private: bool = False) -> Target:
    """Where that URL is, if it may be reached. Raises Refused.

    Args:
        private: addresses of this machine and its network are reached too (for tests alone).
    """
    scheme, host, port, path = check_url(url, allowed)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Refused(f"The host {host[:80]!r} is not found.") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not private and not all(is_public(address) for address in addresses):
        raise Refused(f"The host {host[:80]!r} is in a private network, which is not reached.")
    return Target(scheme, host, port, path, addresses[0])


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    if mapped is not None:
        found = mapped
    return found.is_global and not found.is_multicast


def connect(target: Target) -> http.client.HTTPConnection:
    """A connection to that address, which checks the certificate of the name."""
    plain = socket.create_connection((target.address, target.port), _CONNECT_S)
    plain.settimeout(_IDLE_S)
    connection = http.client.HTTPConnection(target.host, target.port, timeout=_IDLE_S)
    if target.scheme == "https":
        connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=target.host)
    else:
        connection.sock = plain
    return connection


def fetch(
    url: str,
    allowed: Iterable[str],
    path: Path,
    *,
    max_bytes: int,
    limit_s: float,
    free_bytes: Callable[[], int],
    private: bool = False,
) -> int:
    """Fetch a video into a new file; how many bytes it has. Raises Problem; nothing is left then.

    Args:
        free_bytes: says what the disk has left.
    """
    ends = time.monotonic() + limit_s
    try:
        response = _answer(url, tuple(allowed), private)
        try:
            return _copy(response, path, max_bytes, ends, free_bytes)
        finally:
            response.close()
    except Problem:
        path.unlink(missing_ok=True)
        raise
    except Refused as refused:
        path.unlink(missing_ok=True)
        raise Problem(400, str(refused), code="url_refused", param="source_url") from None
    except (OSError, http.client.HTTPException) as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full() from error
        sentence = "The source could not be fetched from its host."
        raise Problem(400, sentence, code="url_failed", param="source_url") from error


def _answer(url: str, allowed: tuple[str, ...], private: bool) -> http.client.HTTPResponse:
    """The answer to a GET, after redirects that are allowed too. Raises Refused, OSError, HTTPException."""
    for _ in range(_MOST_REDIRECTS + 1):
        target = resolve(url, allowed, private=private)
        connection = connect(target)
        connection.request("GET", target.path, headers={"User-Agent": "fairy", "Accept": "*/*", "Connection": "close"})
        response = connection.getresponse()
        if response.status in (301, 302, 303, 307, 308):
            url = urljoin(url, response.headers.get("Location", ""))
            connection.close()
            continue
        if response.status != 200:
            connection.close()
            raise Refused(f"The source's host answered {response.status}.")
        return response
    raise Refused("The source's host redirects too often.")


def _copy(
    response: http.client.HTTPResponse, path: Path, max_bytes: int, ends: float, free_bytes: Callable[[], int]
) -> int:
    size = checked = 0
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        while piece := response.read1(_PIECE_BYTES):
            size += len(piece)
            if size > max_bytes:
                raise Refused(f"The source is larger than {max_bytes / 1e6:.0f} MB, the most that is taken.")
            if time.monotonic() > ends:
                raise Refused("The source arrives too slowly.")
            if size >= checked:
                checked = size + _CHECK_BYTES
                if free_bytes() < SPARE_BYTES:
                    raise disk_full()
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return size


def post(url: str, allowed: Iterable[str], body: bytes, headers: Mapping[str, str], *, private: bool = False) -> int:
    """Post a body to an allowed host, without following redirects; the status. Raises Refused, OSError."""
    target = resolve(url, allowed, private=private)
    connection: Any = connect(target)
    try:
        connection.request("POST", target.path, body, {"User-Agent": "fairy", **headers})
        return int(connection.getresponse().status)
    except http.client.HTTPException as error:
        raise OSError("the answer is no HTTP") from error
    finally:
        connection.close()
