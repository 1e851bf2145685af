"""Who may ask: keys and their quotas, the page's cookie, and what a browser of another site must not do.

Without keys everybody on this machine may ask, and a page of another site could make a browser do so: the host's name
and the origin are therefore always checked.
"""

import hashlib
import hmac
import ipaddress
import re
import secrets
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fairy.kernels.errors import InputError
from fairy.runtime.service.files import private_text, write_private
from fairy.runtime.service.options import ServiceOptions
from fairy.runtime.service.problems import Problem

COOKIE = "fairy_session"
OPEN_PATHS = ("/health", "/ready")
COOKIE_S = 30 * 86_400
_SAFE = ("GET", "HEAD", "OPTIONS")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SHORTEST_KEY = 16
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `name` owns jobs; "" where no key is configured.

    Attributes:
        max_waiting: jobs of this key that may wait.
        max_priority: the highest priority that it may ask for.
        digest: of its key.
    """

    name: str = ""
    max_waiting: int | None = None
    max_priority: int = 10
    digest: bytes = field(default=b"", repr=False)


class Keys:
    """The keys of a file, one table each:

    [alice]
    key = "at least 16 characters"
    max_waiting = 5      # optional
    max_priority = 0     # optional
    """

    def __init__(self, callers: Mapping[bytes, Caller]) -> None:
        """`callers` by the SHA-256 of their key."""
        self._callers = dict(callers)

    @classmethod
    def read(cls, path: Path) -> "Keys":
        """Raises InputError naming what is wrong with the file."""
        try:
            tables = tomllib.loads(private_text(path, "keys"))
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{path} is no TOML ({error}); write a table [NAME] with key = … for each key.") from error
        if not tables:
            raise InputError(f"{path} holds no key; write a table [NAME] with key = … for each key.")
        callers: dict[bytes, Caller] = {}
        for name, table in tables.items():
            digest, caller = _caller(path, name, table)
            if digest in callers:
                raise InputError(f"{path}: [{name}] has the key of [{callers[digest].name}]; give each its own.")
            callers[digest] = caller
        return cls(callers)

    def find(self, key: str) -> Caller | None:
        """Whose key it is, in a time that does not depend on how much of it is right."""
        digest = _digest(key)
        found = None
        for known, caller in self._callers.items():
            if hmac.compare_digest(known, digest):
                found = caller
        return found

    def named(self, name: str) -> Caller | None:
        """The caller of that name."""
        return next((caller for caller in self._callers.values() if caller.name == name), None)


def _caller(path: Path, name: str, table: Any) -> tuple[bytes, Caller]:
    where = f"{path}: [{name}]"
    if not _NAME.fullmatch(name) or not isinstance(table, dict):
        raise InputError(f"{where} is no table of a key; names are letters, digits, '_', '.' and '-'.")
    unknown = sorted(set(table) - {"key", "max_waiting", "max_priority"})
    if unknown:
        raise InputError(f"{where} has {unknown[0]!r}, which is none of key, max_waiting, max_priority.")
    key = table.get("key")
    if not isinstance(key, str) or len(key) < _SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(f"{where} needs a key of at least {_SHORTEST_KEY} printable ASCII characters without spaces.")
    for limit in ("max_waiting", "max_priority"):
        value = table.get(limit, 0)
        if not isinstance(value, int) or isinstance(value, bool) or not -10 <= value <= 1_000_000:
            raise InputError(f"{where}: {limit} = {value!r} is not possible; give a whole number.")
    digest = _digest(key)
    return digest, Caller(name, table.get("max_waiting"), table.get("max_priority", 0), digest)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


class Gate:
    """Decides who a request is from. Without keys it is the one caller with the name ""."""

    def __init__(self, options: ServiceOptions, secret_path: Path) -> None:
        """Raises InputError for a file of keys that cannot be used."""
        self.keys = None if options.keys is None else Keys.read(Path(options.keys).expanduser())
        self._secret = _secret(secret_path)
        self.cors_origins = frozenset(options.cors_origin)
        self._hosts = frozenset(name.lower() for name in (*options.allow_host, "localhost", options.host.strip("[]")))
        self._only_local = self.keys is None

    def caller(self, request: Request) -> Caller:
        """Who asks. Raises Problem (401)."""
        if self.keys is None:
            return Caller()
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            found = self.keys.find(key.strip())
        else:
            found = self._of_cookie(request.cookies.get(COOKIE, ""))
        if found is None:
            sentence = "A key is needed: send it as Authorization: Bearer KEY, or sign in on the page."
            raise Problem(401, sentence, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        return found

    def cookie(self, caller: Caller) -> str:
        """What the page is given in place of the key."""
        text = f"{caller.name}:{int(time.time()) + COOKIE_S}"
        return f"{text}:{self._sign(text, caller)}"

    def _of_cookie(self, cookie: str) -> Caller | None:
        text, _, sign = cookie.rpartition(":")
        name, _, until = text.partition(":")
        assert self.keys is not None
        caller = self.keys.named(name)
        if caller is None or not until.isascii() or not until.isdigit() or len(until) > 12:
            return None
        if not hmac.compare_digest(self._sign(text, caller).encode(), sign.encode(errors="replace")):
            return None
        return caller if int(until) > time.time() else None

    def _sign(self, text: str, caller: Caller) -> str:
        """Of a key too: a new one for the same name ends what the old one had opened."""
        signed = text.encode(errors="surrogateescape") + b"\0" + caller.digest
        return hmac.new(self._secret, signed, hashlib.sha256).hexdigest()

    def check_host(self, headers: Headers) -> None:
        """A name that resolves here but is not ours is another site's trick. Raises Problem (421)."""
        host = headers.get("host", "")
        name = _host_name(host)
        if name in self._hosts:
            return
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            address = None
        if address is not None and (address.is_loopback or not self._only_local):
            return
        sentence = f"The host {name[:80]!r} is not served here; start the service with --allow-host to serve it."
        raise Problem(421, sentence, code="unknown_host")

    def check_origin(self, method: str, headers: Headers) -> None:
        """Pages of other sites may not change anything. Raises Problem (403)."""
        if method in _SAFE:
            return
        origin = headers.get("origin")
        if origin in self.cors_origins:
            return
        if origin is not None and origin.partition("://")[2] != headers.get("host", ""):
            raise Problem(403, "Pages of another origin may not do this.", code="foreign_origin")
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise Problem(403, "Pages of another site may not do this.", code="foreign_origin")


def _secret(path: Path) -> bytes:
    if not path.exists():
        write_private(path, secrets.token_hex(32))
    return bytes.fromhex(private_text(path, "the secret of cookies").strip())


def _host_name(host: str) -> str:
    """Without port and brackets, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


class Guard:
    """The outermost layer: host, origin, and headers that every answer carries."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app, self._gate = app, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    out.setdefault(name, value)
                out.setdefault("cache-control", "no-store")
            await send(message)

        try:
            if scope["path"] not in OPEN_PATHS:  # probes come to an address, under any name
                self._gate.check_host(headers)
            self._gate.check_origin(scope["method"], headers)
        except Problem as problem:
            await problem.answer()(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)
