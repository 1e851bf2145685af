"""The store of built engines: a private folder in which an engine is whole and unchanged, or not there at all.

    entries/DIGEST/   an engine's files and its manifest.json
    building/         what is being built; renamed into entries/ when it is whole
    locks/            one lock a digest, so that the same engine is built once

Engines are executable code. Only what this user put here is looked at; every file is compared with the manifest
before anything is loaded. Whatever is wrong with an entry makes it a miss, with one line in the log.
"""

import atexit
import errno
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from fairy.engines.store.key import EngineKey, request_digest
from fairy.engines.store.lock import locked, locked_if_free
from fairy.engines.store.manifest import (
    Manifest,
    Provenance,
    Untrusted,
    check_files,
    check_folder,
    read_manifest,
    seal,
    sync_folder,
)
from fairy.kernels.errors import InputError, MachineError

_LOG = logging.getLogger(__name__)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PARTS = ("entries", "building", "locks")


@dataclass(frozen=True, slots=True)
class StoredEngine:
    """An engine in the store. Its files were compared with the manifest only where a method says so."""

    digest: str
    folder: Path
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Broken:
    """An entry that is not an engine we published, and why."""

    digest: str
    problem: str


def short_digest(digest: str) -> str:
    """How a digest begins, for people; of a name that is no digest, in ASCII, so that it stays in its line."""
    return ascii(digest[:12])[1:-1]


def store_root(store: str | Path | None = None) -> Path:
    """The folder of the store: the one given, else `$FAIRY_STORE`, else in the user's cache folder."""
    given = store or os.environ.get("FAIRY_STORE")
    if given:
        return Path(given).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(cache) if os.path.isabs(cache) else Path.home() / ".cache"  # a relative one is to be ignored
    except RuntimeError:
        raise InputError("This user has no home folder for the store of engines; set FAIRY_STORE.") from None
    return base / "fairy" / "engines"


class EngineStore:
    """The engines of one user on one machine. Opening a store creates nothing; publishing does."""

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = store_root(root)
        self._told: set[tuple[str, str]] = set()

    def find(self, key: EngineKey) -> StoredEngine | None:
        """The engine of a key, every file checked; None where there is none that can be trusted."""
        try:
            found = self._read(key.digest) if self._is_there() else None
        except Untrusted as problem:
            self._tell(key.digest, str(problem))
            return None
        return found if found is not None and self.check(found) else None

    def serving(self, request: str) -> tuple[StoredEngine, ...]:
        """Engines whose keys agree with a request (see `request_digest`), newest first; `check` them before loading."""
        found = [entry for entry in self.engines() if request_digest(entry.manifest.key) == request]
        return tuple(sorted(found, key=lambda entry: (entry.manifest.created, entry.digest), reverse=True))

    def check(self, entry: StoredEngine) -> bool:
        """Whether every file of an entry is what was published; where not, one line in the log says why."""
        try:
            check_folder(entry.folder)
            check_files(entry.folder, entry.manifest)
        except Untrusted as problem:
            self._tell(entry.digest, str(problem))
            return False
        return True

    def list(self) -> tuple[StoredEngine | Broken, ...]:
        """Everything in the store, by digest; files are not compared, see `check`."""
        try:
            there = self._is_there()
        except Untrusted as problem:
            self._tell(str(self.root), str(problem))
            return ()
        names = sorted(os.listdir(self.root / "entries")) if there else []
        return tuple(entry for name in names if (entry := self._read_or_broken(name)) is not None)

    def engines(self) -> tuple[StoredEngine, ...]:
        """The entries of `list` that are not broken; each broken one is a line in the log."""
        entries = self.list()
        for entry in entries:
            if isinstance(entry, Broken):
                self._tell(entry.digest, entry.problem)
        return tuple(entry for entry in entries if isinstance(entry, StoredEngine))

    def verify(self, digest: str) -> StoredEngine:
        """The engine whose digest begins so, every file checked.

        Raises:
            InputError: there is none, or several, or it is not what was published.
        """
        names = [entry.digest for entry in self.list() if entry.digest.startswith(digest)] if digest else []
        if len(names) != 1:
            found = "is no engine" if not names else f"are {len(names)} engines"
            raise InputError(f"There {found} whose digest begins with {digest!r}; see `fairy engines list`.")
        try:
            entry = self._read(names[0])
            if entry is not None:
                check_files(entry.folder, entry.manifest)
                return entry
            problem = "it was removed"
        except Untrusted as error:
            problem = str(error)
        raise InputError(f"The engine {names[0][:12]} is broken: {problem}; run `fairy engines prune`, build it again.")

    def publish(
        self,
        key: EngineKey,
        build: Callable[[Path], Provenance],
        on_wait: Callable[[], bool] = lambda: True,
    ) -> StoredEngine:
        """The engine of a key, built now unless it is there; of several processes one builds and the others wait.

        Args:
            build: writes the engine's files into the empty private folder it is given, and says how it was made.
            on_wait: asked while another process builds the same engine; returning False gives up.

        Raises:
            InputError, MachineError, Cancelled: with one sentence; nothing is left that loads.
        """
        digest = key.digest
        with self._disk_errors(), locked(self._made() / "locks" / f"{digest}.lock", on_wait):
            found = self.find(key)
            if found is None:
                self._sweep(digest)
                self._remove(self.root / "entries" / digest)
                with self._building(digest) as folder:
                    made = build(folder)
                    self._seal(folder, key, made)
                    os.rename(folder, self.root / "entries" / digest)
                    sync_folder(self.root / "entries")
                found = self.find(key)
        if found is None:
            raise MachineError(f"The engine {digest[:12]} was changed while it was stored in {self.root}; build again.")
        return found

    def prune(self, reason: Callable[[StoredEngine], str | None]) -> dict[str, str]:
        """Remove broken entries, those that `reason` gives a reason for, and what killed builds left.

        Returns the reasons by digest. What is being built meanwhile is left alone.
        """
        removed: dict[str, str] = {}
        with self._disk_errors():
            self._made()
            for entry in self.list():
                problem = self._problem(entry, reason)
                still_bad = partial(self._is_still_bad, entry.digest, reason)
                if problem is not None and self._forget(entry.digest, still_bad):
                    removed[entry.digest] = problem
            for name in {path.name.partition(".")[0] for path in (self.root / "building").iterdir()}:
                self._forget(name, lambda: False)
        return removed

    def _problem(self, entry: "StoredEngine | Broken", reason: Callable[[StoredEngine], str | None]) -> str | None:
        """Why an entry is to go; None if it is to stay."""
        return entry.problem if isinstance(entry, Broken) else self._broken_files(entry) or reason(entry)

    def _is_still_bad(self, digest: str, reason: Callable[[StoredEngine], str | None]) -> bool:
        """Asked again under the entry's lock: another process may have built it anew meanwhile."""
        entry = self._read_or_broken(digest)
        return entry is not None and self._problem(entry, reason) is not None

    def _is_there(self) -> bool:
        """Whether the store exists; its folders must be private. Raises Untrusted."""
        if not os.path.lexists(self.root / "entries"):
            return False
        for folder in (self.root, self.root / "entries"):
            self._check_private(folder)
        return True

    def _check_private(self, folder: Path) -> None:
        try:
            check_folder(folder)
            if folder == self.root and folder.stat().st_mode & 0o077:
                raise Untrusted("it is open to other users")
        except Untrusted as problem:
            raise Untrusted(f"{folder} is not used: {problem}") from None

    def _made(self) -> Path:
        """The root, with its folders made where they are missing. Raises InputError where they are not private."""
        try:
            for folder in (self.root, *(self.root / part for part in _PARTS)):
                if not os.path.lexists(folder):
                    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                elif folder == self.root and _is_fresh(folder):
                    folder.chmod(0o700)
                self._check_private(folder)
        except Untrusted as problem:
            raise InputError(
                f"The store {problem}; choose another --store, or run `chmod 700 {self.root}` if it is yours."
            ) from None
        return self.root

    def _read(self, name: str) -> StoredEngine | None:
        folder = self.root / "entries" / name
        if not _DIGEST.fullmatch(name):
            raise Untrusted("its name is not a digest")
        if not os.path.lexists(folder):
            return None
        return StoredEngine(name, folder, read_manifest(folder))

    def _read_or_broken(self, name: str) -> StoredEngine | Broken | None:
        try:
            return self._read(name)
        except Untrusted as problem:
            return Broken(name, str(problem))

    def _broken_files(self, entry: StoredEngine) -> str | None:
        try:
            check_files(entry.folder, entry.manifest)
        except Untrusted as problem:
            return str(problem)
        return None

    def _forget(self, name: str, entry_too: Callable[[], bool]) -> bool:
        """Remove what was left of an entry's builds, and itself if `entry_too`; nothing while it is being built.

        Says whether it did. `entry_too` is asked once nobody else can change the entry.
        """
        if not _DIGEST.fullmatch(name):  # nobody builds what has no digest
            self._remove(self.root / ("entries" if entry_too() else "building") / name)
            return True
        lock = self.root / "locks" / f"{name}.lock"
        with locked_if_free(lock) as held:
            if held:
                self._sweep(name)
                if forgotten := entry_too():
                    self._remove(self.root / "entries" / name)
                lock.unlink(missing_ok=True)
                return forgotten
            return False

    def _sweep(self, digest: str) -> None:
        """Remove what killed builds of this engine left; the caller holds its lock, so nobody is building it."""
        for path in (self.root / "building").glob(f"{digest}.*"):
            self._remove(path)

    @contextmanager
    def _building(self, digest: str) -> Iterator[Path]:
        folder = self.root / "building" / f"{digest}.{secrets.token_hex(6)}"
        folder.mkdir(mode=0o700)
        remove = atexit.register(partial(shutil.rmtree, folder, ignore_errors=True))  # the process may end in here
        try:
            yield folder
        finally:
            atexit.unregister(remove)
            if folder.exists():
                self._remove(folder)

    def _remove(self, path: Path) -> None:
        """Remove a file, a link or a whole folder of the store. Links are not followed."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def _seal(self, folder: Path, key: EngineKey, made: Provenance) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            seal(folder, key.digest, key.to_json(), now, made)
        except Untrusted as problem:
            raise MachineError(f"The engine of {key.graph.name} cannot be stored: {problem}.") from problem

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            what = "the disk is full; free some space there" if full else f"{error.strerror or error}"
            raise MachineError(f"Nothing was stored in {self.root}: {what}.") from error

    def _tell(self, digest: str, problem: str) -> None:
        """One line in the log for every problem, once."""
        if (digest, problem) not in self._told:
            self._told.add((digest, problem))
            _LOG.warning("the engine %s in %s is not used: %s", short_digest(digest), self.root, problem)


def _is_fresh(folder: Path) -> bool:
    """Whether this is an empty folder that the user made for a store."""
    facts = folder.lstat()
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and not os.listdir(folder)
