"""Where the bytes lie. Every name here is made by the service; nothing a client says is part of a path.

DATA/jobs.sqlite3            rows
DATA/incoming/ID             an upload that is not whole yet
DATA/sources/ID              an upload
DATA/jobs/ID/result.mp4 …    what an edit wrote; result.mp4.job is its journal
"""

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fairy.kernels.errors import InputError, MachineError
from fairy.runtime.service.jobs import Job

_ID = re.compile(r"(video|source)_[0-9a-f]{32}")
CONTAINERS = {"mp4": "video/mp4", "mov": "video/quicktime", "mkv": "video/x-matroska", "webm": "video/webm"}
_RESERVE_BYTES = 8 * 1024**2
SPARE_BYTES = 256 * 1024**2
"""What stays free of the disk whatever is uploaded, for results and for the rows."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One file of a job: its name in the job's folder and its media type."""

    name: str
    media_type: str


VARIANTS = {
    "compare": Variant("compare.mp4", "video/mp4"),
    "anchors": Variant("anchors.png", "image/png"),
    "thumbnail": Variant("thumbnail.jpg", "image/jpeg"),
    "spritesheet": Variant("spritesheet.jpg", "image/jpeg"),
    "report": Variant("report.json", "application/json"),
}


def new_id(kind: str) -> str:
    """An id that nobody can guess: "video_" or "source_" and 128 random bits."""
    return f"{kind}_{secrets.token_hex(16)}"


class DataFolder:
    """The service's folder, which one service at a time may use.

    Attributes:
        too_full: it holds more than it may, and nothing in it can go.
    """

    def __init__(self, root: Path) -> None:
        """Makes what is missing, for this user alone.

        Raises:
            InputError: it cannot be made or written to.
        """
        self.root, self.too_full = root, False
        try:
            for folder in (root, self._incoming, self._sources, self._jobs):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InputError(
                f"{root} cannot hold the service's jobs ({error.strerror}); name another --data."
            ) from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """No second service on the same folder meanwhile, in whatever container; unfinished uploads go.

        Raises:
            InputError: another service has it.
        """
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            sentence = f"{self.root} is used by another service; stop that or name another --data."
            raise InputError(sentence) from None
        try:
            for path in self._incoming.iterdir():
                path.unlink(missing_ok=True)
            self.reserve()
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def reserve(self) -> None:
        """Set some of the disk aside, so that a full one still takes the change of a row."""
        try:
            handle = os.open(self._reserve, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(handle, 0, _RESERVE_BYTES)
            finally:
                os.close(handle)
        except OSError:  # it is full already; the next time
            self.free_reserve()

    def free_reserve(self) -> None:
        """Let the rows have it."""
        self._reserve.unlink(missing_ok=True)

    @property
    def _reserve(self) -> Path:
        return self.root / "reserve"

    @property
    def rows(self) -> Path:
        """The database."""
        return self.root / "jobs.sqlite3"

    @property
    def secret(self) -> Path:
        """What the page's cookies are signed with."""
        return self.root / "cookie.secret"

    @property
    def _incoming(self) -> Path:
        return self.root / "incoming"

    @property
    def _sources(self) -> Path:
        return self.root / "sources"

    @property
    def _jobs(self) -> Path:
        return self.root / "jobs"

    def incoming(self) -> Path:
        """A new name for an upload."""
        return self._incoming / secrets.token_hex(16)

    def source(self, source_id: str) -> Path:
        """An upload."""
        return self._sources / _checked(source_id)

    def job(self, job_id: str) -> Path:
        """A job's folder."""
        return self._jobs / _checked(job_id)

    def result(self, job_id: str, container: str) -> Path:
        """A job's edited video."""
        assert container in CONTAINERS, container
        return self.job(job_id) / f"result.{container}"

    def settle(self, incoming: Path, source_id: str) -> None:
        """Give a whole upload its place; it is on the disk when this returns."""
        target = self.source(source_id)
        incoming.rename(target)
        for folder in (self._sources, self._incoming):
            _sync_folder(folder)

    def adopt(self, result: Path, source_id: str) -> None:
        """Make a finished result a source too, without another copy of its bytes where the disk can."""
        target = self.source(source_id)
        try:
            os.link(result, target)
        except OSError:
            shutil.copyfile(result, target)
        _sync_folder(self._sources)

    def remove_job(self, job_id: str) -> None:
        """Everything a job wrote."""
        shutil.rmtree(self.job(job_id), ignore_errors=True)

    def remove_source(self, source_id: str) -> None:
        """An upload."""
        self.source(source_id).unlink(missing_ok=True)

    def remove_strangers(self, jobs: set[str], sources: set[str]) -> None:
        """What a kill left: folders and uploads that no row knows."""
        for folder in self._jobs.iterdir():
            if folder.name not in jobs:
                shutil.rmtree(folder, ignore_errors=True)
        for path in self._sources.iterdir():
            if path.name not in sources:
                path.unlink(missing_ok=True)

    def size_of_job(self, job_id: str) -> int:
        """Bytes of a job's folder."""
        return sum(path.stat().st_size for path in self.job(job_id).rglob("*") if path.is_file())

    def held_bytes(self) -> int:
        """Bytes of all sources and jobs; what is linked twice counts once."""
        seen: dict[tuple[int, int], int] = {}
        for top in (self._sources, self._jobs):
            for folder, _, names in os.walk(top):
                for name in names:
                    with suppress(FileNotFoundError):
                        found = os.stat(os.path.join(folder, name), follow_symlinks=False)
                        seen[found.st_dev, found.st_ino] = found.st_size
        return sum(seen.values())

    def bytes_of_sources(self, jobs: Iterable[Job]) -> int:
        """Bytes of the sources of these jobs, each counted once."""
        total = 0
        for source_id in {job.source_id for job in jobs}:
            with suppress(FileNotFoundError):
                total += self.source(source_id).stat().st_size
        return total

    def free_bytes(self) -> int:
        """What the disk has left."""
        return shutil.disk_usage(self.root).free


def private_text(path: Path, what: str) -> str:
    """A file that only its owner may read; root's may be read by a group too, as Kubernetes hands out secrets.

    Raises:
        InputError: it is missing, or others may read it.
    """
    try:
        found = path.stat()
        if found.st_mode & (0o037 if found.st_uid == 0 and os.getuid() else 0o077):
            raise InputError(f"{path} may be read by others, but it holds {what}; run: chmod 600 {path}.")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text; write {what} into it.") from error


def write_private(path: Path, text: str) -> None:
    """A new file of mode 600."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
    except OSError as error:
        raise MachineError(f"{path} cannot be written ({error.strerror}).") from error


def _checked(name: str) -> str:
    if not _ID.fullmatch(name):
        raise ValueError(f"{name!r} is no id of this service")
    return name


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
