"""What `fairy serve` can be told: where it listens, who may ask, how much it takes and keeps."""

import ipaddress
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairy.kernels.errors import InputError
from fairy.runtime.files import user_path
from fairy.runtime.options import Choice, Flag, Kind, Name, Names, Number, Text, Whole, check_options, option

_UNITS_BYTES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*([KMGT]?)B?", re.IGNORECASE)
_SPAN = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*([smhd])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Size(Kind):
    """An amount of bytes."""

    metavar: str = "SIZE"

    def takes(self) -> str:
        """How it is written."""
        return "bytes, as 500MB or 50GB"

    def check(self, name: str, value: Any) -> int:
        """Whole bytes."""
        if isinstance(value, str):
            found = _SIZE.fullmatch(value.strip())
            value = int(float(found[1]) * _UNITS_BYTES[found[2].upper()]) if found else value
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        raise InputError("is no size", name=name, value=value, remedy=f"give {self.takes()}")

    def parse(self, name: str, text: str) -> int:
        """Digits and a unit."""
        return self.check(name, text)


@dataclass(frozen=True, slots=True)
class Span(Kind):
    """A span of time."""

    metavar: str = "SPAN"

    def takes(self) -> str:
        """How it is written."""
        return "a number with s, m, h or d, as 7d"

    def check(self, name: str, value: Any) -> float:
        """Seconds."""
        if isinstance(value, str):
            found = _SPAN.fullmatch(value.strip())
            value = float(found[1]) * _UNITS_S[found[2].lower()] if found else value
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
            return float(value)
        raise InputError("is no span of time", name=name, value=value, remedy=f"give {self.takes()}")

    def parse(self, name: str, text: str) -> float:
        """A number and a unit."""
        return self.check(name, text)


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """How the service is run; `docs/service.md` says what each means for whoever runs it.

    Raises:
        InputError: a value is impossible, or the service would be open to others without a key.
    """

    host: str = option("127.0.0.1", Text(), "Address to listen on; beyond this machine only with keys")
    port: int = option(8000, Whole(0, 65_535), "Port to listen on; 0 = a free one")
    data: str | Path | None = option(
        None, Name("a folder"), "Folder of jobs, uploads and results", usual="~/.local/share/fairy/serve"
    )
    keys: str | Path | None = option(
        None, Name("a TOML file of mode 600"), "Names, keys and quotas of those who may ask"
    )
    editors: int = option(1, Whole(1, 64), "Editor processes, each with a model of its own, that edit at the same time")
    ray: str | None = option(
        None, Text(), "A Ray cluster that runs the editors: auto or HOST:PORT; --data must lie where all of it sees it"
    )
    max_upload: int = option(4_000_000_000, Size(), "Largest video that is taken", usual="4GB")
    max_frames: int = option(36_000, Whole(1, 2**31 - 1), "Longest video that is edited, in frames")
    max_steps: int = option(100, Whole(1, 1000), "Most denoising steps that may be asked for")
    max_long_side: int = option(2048, Whole(8, 16_384), "Largest long side that may be asked for, in pixels")
    queue: int = option(100, Whole(1, 1_000_000), "Jobs that may wait; more are refused with 429")
    per_key: int = option(20, Whole(1, 1_000_000), "Jobs of one key that may wait, where its quota says nothing")
    keep: float = option(604_800.0, Span(), "How long results are kept", usual="7d")
    disk: int = option(
        50_000_000_000, Size(), "How much the folder may hold; the oldest results go first", usual="50GB"
    )
    grace: float = option(
        30.0, Span(), "How long a running job may take to end when the service is stopped", usual="30s"
    )
    allow_host: tuple[str, ...] = option((), Names(), "A host name under which clients reach this service")
    cors_origin: tuple[str, ...] = option(
        (), Names(), "An origin whose pages may call this service, https://app.example"
    )
    allow_url: tuple[str, ...] = option((), Names(), "A host from which source videos may be fetched")
    webhook_host: tuple[str, ...] = option((), Names(), "A host to which webhooks may be sent")
    webhook_secret: str | Path | None = option(
        None, Name("a file of mode 600"), "Holds the secret (whsec_…) that signs webhooks"
    )
    metrics_open: bool = option(False, Flag(), "Answer /metrics without a key")
    log_format: str = option("text", Choice(("text", "json")), "One line of text or of JSON for each event")
    upload_idle: float = option(60.0, Number(1.0, 3600.0), "Seconds without a byte after which an upload is given up")

    def __post_init__(self) -> None:
        check_options(self)
        object.__setattr__(self, "data", user_path(default_folder() if self.data is None else self.data))
        if not is_loopback(self.host) and self.keys is None:
            remedy = "name a file of keys (--keys), or listen on 127.0.0.1"
            raise InputError("lets others reach the service without a key", name="host", value=self.host, remedy=remedy)
        if self.ray is not None and (not self.ray.strip() or self.ray == "local" or "://" in self.ray):
            remedy = "give auto or HOST:PORT; on this machine alone --editors does without Ray"
            raise InputError("is not served", name="ray", value=self.ray, remedy=remedy)
        for origin in self.cors_origin:
            if not re.fullmatch(r"https?://[A-Za-z0-9.\-\[\]:]+", origin):
                remedy = "name one exact origin, such as https://app.example"
                raise InputError("is no origin", name="cors_origin", value=origin, remedy=remedy)
        if self.webhook_host and self.webhook_secret is None:
            remedy = "name the file that holds the secret (--webhook-secret)"
            raise InputError("asks for webhooks, which must be signed", name="webhook_host", remedy=remedy)

    @property
    def folder(self) -> Path:
        """The folder of jobs, absolute."""
        assert isinstance(self.data, Path)
        return self.data


def default_folder() -> Path:
    """Where users' data lies by the XDG convention."""
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share") / "fairy" / "serve"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
