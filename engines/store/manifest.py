"""What a stored engine says about itself, and whether the files beside it are those it speaks of.

Nothing here trusts what it reads: a manifest or a file that is not exactly what was published is `Untrusted`, and
that is all a caller learns.
"""

import errno
import hashlib
import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fairy.engines.engine import Shapes
from fairy.engines.store.key import canonical_digest
from fairy.kernels.errors import InputError

MANIFEST = "manifest.json"
_FORMAT = 1
_LARGEST_MANIFEST = 8 << 20  # bytes; a full-size UNet's is a twentieth of it
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_DEEPEST = 16  # folders within each other in an engine
_KEY_TYPES: dict[str, Any] = {
    **dict.fromkeys(("weights", "backend", "device", "precision", "source"), str),
    **dict.fromkeys(("graph", "options", "environment"), dict),
    "shapes": dict | None,
}
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class Untrusted(Exception):
    """An entry of the store is not what was published; the message says why, in a few words."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of an engine."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """How an engine was made.

    Attributes:
        model: what its weights were loaded from, a folder or a hub id.
        command: what was typed.
        timings_s: seconds by phase.
        errors: of its outputs against the eager reference on random inputs, relative L2 norms, by output.
    """

    model: str
    command: str
    timings_s: dict[str, float]
    errors: dict[str, float]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest of one engine.

    Attributes:
        digest: of the key; the engine's name.
        key: the JSON of its `EngineKey`.
        files: every file beside the manifest, by path relative to it.
        created: ISO 8601, UTC.
        made: how it came about.
    """

    digest: str
    key: dict[str, Any]
    files: dict[str, FileRecord]
    created: str
    made: Provenance

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(record.bytes for record in self.files.values())

    @property
    def shapes(self) -> Shapes | None:
        """What the engine serves; None = any shape."""
        return _shapes(self.key["shapes"])

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain values."""
        return {"format": _FORMAT, **asdict(self)}

    @classmethod
    def parse(cls, text: bytes, digest: str) -> "Manifest":
        """Read a manifest that is said to be that of `digest`.

        Raises:
            Untrusted: it is not JSON of this form, speaks of another engine, or names files outside its folder.
        """
        try:
            plain = json.loads(text.decode())
            manifest = cls(
                digest,
                plain["key"],
                {name: FileRecord(**record) for name, record in plain["files"].items()},
                plain["created"],
                Provenance(**plain["made"]),
            )
            manifest._check(plain)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Untrusted(f"its manifest is broken ({type(error).__name__})") from error
        return manifest

    def _check(self, plain: dict[str, Any]) -> None:
        if type(plain["format"]) is not int or plain["format"] != _FORMAT:
            raise Untrusted("its manifest has another format")
        if plain["digest"] != self.digest or canonical_digest(self.key) != self.digest:
            raise Untrusted("its manifest is that of another engine")
        for name, record in self.files.items():
            if not _inside(name):
                raise Untrusted("its manifest names a file outside its folder")
            if type(record.bytes) is not int or record.bytes < 0 or not _DIGEST.fullmatch(record.sha256):
                raise Untrusted("its manifest is broken")
        if not _is_plain(self.created) or not _is_provenance(self.made) or not _is_key(self.key):
            raise Untrusted("its manifest is broken")
        _shapes(self.key["shapes"])


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the entry in `folder`, whose name is the engine's digest. Raises Untrusted."""
    check_folder(folder)
    with _opened(folder / MANIFEST) as (fd, size):
        if size > _LARGEST_MANIFEST:
            raise Untrusted("its manifest is too large")
        text = os.read(fd, _LARGEST_MANIFEST)
    return Manifest.parse(text, folder.name)


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare every file of an entry with its manifest: none missing, none more, each private and with its SHA-256.

    Raises:
        Untrusted: a file is not what was published.
    """
    found = set(_walk(folder, "")) - {MANIFEST}
    if found != set(manifest.files):
        odd = sorted(found ^ set(manifest.files))[0]
        raise Untrusted(f"the file {odd[:80]!r} is missing or not in its manifest")
    for name, record in manifest.files.items():
        with _opened(folder / name) as (fd, size), os.fdopen(os.dup(fd), "rb") as file:
            if size != record.bytes or hashlib.file_digest(file, "sha256").hexdigest() != record.sha256:
                raise Untrusted(f"the file {name!r} was changed")


def seal(folder: Path, digest: str, key: dict[str, Any], created: str, made: Provenance) -> Manifest:
    """Write the manifest of a folder of new files; make all of it private and durable.

    Raises:
        Untrusted: the folder holds something that may not be in an engine, such as a link.
        OSError: the disk failed or is full.
    """
    places = [Path(place) for place, _, _ in os.walk(folder)]
    for place in places:
        place.chmod(0o700)  # the user's umask may let a group write what the builder made
    files = {name: _seal_file(folder / name) for name in sorted(_walk(folder, ""))}
    manifest = Manifest(digest, key, files, created, made)
    text = json.dumps(manifest.to_json(), indent=1).encode() + b"\n"
    Manifest.parse(text, digest)  # what could not be read again is not published
    with open(os.open(folder / MANIFEST, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    for place in places:
        sync_folder(place)
    return manifest


def check_folder(folder: Path) -> None:
    """Refuse a folder that is a link, belongs to somebody else, or may be written by others. Raises Untrusted."""
    try:
        facts = folder.lstat()
    except OSError as error:
        raise Untrusted(f"it cannot be read ({error.strerror})") from error
    if not stat.S_ISDIR(facts.st_mode):
        raise Untrusted("it is not a folder")
    _check_owner(facts, "its folder")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, int]]:
    """A private regular file: its descriptor and size. No link is followed, and a pipe cannot block."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        reason = "is a link" if error.errno == errno.ELOOP else f"cannot be read ({error.strerror})"
        raise Untrusted(f"the file {path.name!r} {reason}") from error
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise Untrusted(f"{path.name!r} is not an ordinary file")
        if facts.st_nlink != 1:
            raise Untrusted(f"the file {path.name!r} has more than one name")
        _check_owner(facts, f"the file {path.name!r}")
        yield fd, facts.st_size
    finally:
        os.close(fd)


def _check_owner(facts: os.stat_result, what: str) -> None:
    if facts.st_uid != os.geteuid():
        raise Untrusted(f"{what} belongs to another user")
    if facts.st_mode & _WRITABLE_BY_OTHERS:
        raise Untrusted(f"{what} may be written by other users")


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    """Paths, relative to the entry, of everything in a folder that is not itself a private folder."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if prefix.count("/") >= _DEEPEST:
                        raise Untrusted("its folders are too deep")
                    check_folder(folder / entry.name)
                    yield from _walk(folder / entry.name, f"{prefix}{entry.name}/")
                else:
                    yield f"{prefix}{entry.name}"
    except OSError as error:
        raise Untrusted(f"it cannot be read ({error.strerror})") from error


def _seal_file(path: Path) -> FileRecord:
    with _opened_new(path) as fd:
        os.fsync(fd)
        with os.fdopen(os.dup(fd), "rb") as file:
            return FileRecord(os.fstat(fd).st_size, hashlib.file_digest(file, "sha256").hexdigest())


@contextmanager
def _opened_new(path: Path) -> Iterator[int]:
    """A file that a builder just wrote, made private before it is looked at."""
    if path.is_symlink():
        raise Untrusted(f"the file {path.name!r} is a link")
    path.chmod(0o600)
    with _opened(path) as (fd, _):
        yield fd


def _inside(name: str) -> bool:
    """Whether a manifest's name is a plain relative path: no "..", nothing absolute, no odd letters."""
    return name != MANIFEST and all(_NAME.fullmatch(part) and set(part) != {"."} for part in name.split("/"))


def _is_plain(text: Any) -> bool:
    """Whether it is text that a terminal can show: no control characters, no halves of characters."""
    return type(text) is str and not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text)


def _is_provenance(made: Provenance) -> bool:
    numbers = [*made.timings_s.items(), *made.errors.items()]
    plain = all(_is_plain(name) and type(value) in (int, float) and _is_small(value) for name, value in numbers)
    return plain and _is_plain(made.model) and _is_plain(made.command)


def _is_small(value: float) -> bool:
    """Whether a number can be written as seconds or errors are; NaN and infinity are errors too."""
    return isinstance(value, float) or abs(value) < 1 << 53


def _is_key(key: Any) -> bool:
    """Whether it has the names and types of an `EngineKey`'s JSON; what the values say is for others to judge."""
    if type(key) is not dict or set(key) != set(_KEY_TYPES):
        return False
    if not all(isinstance(key[name], kind) for name, kind in _KEY_TYPES.items()):
        return False
    texts = [value for value in key.values() if isinstance(value, str)]
    pairs = [part for pair in key["environment"].items() for part in pair]
    return all(_is_plain(text) for text in (*texts, *pairs, key["graph"].get("name"))) and _is_device(key["device"])


def _is_device(name: str) -> bool:
    return name in ("cpu", "cuda")


def _shapes(plain: Any) -> Shapes | None:
    if plain is None:
        return None
    ranges: dict[str, Any] = {name: tuple(plain[name]) for name in ("height", "width", "frames")}
    numbers: dict[str, Any] = {name: plain[name] for name in ("anchors", "groups", "tokens")}
    values = [*numbers.values(), *(part for whole in ranges.values() for part in whole)]
    if set(plain) != {*ranges, *numbers} or any(type(value) is not int for value in values):
        raise InputError("These are not the shapes of an engine.")
    return Shapes(**ranges, **numbers)
