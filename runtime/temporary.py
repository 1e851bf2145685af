"""A private folder for as long as a process lives. What killed processes left of theirs is removed by the next one."""

import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

_PREFIX = "fairy-"
_OWNER = "owner"  # the file in it that its process holds locked: the system lets go of it however the process ends


class WorkingFolder:
    """A folder in the system's place for temporary files.

    Attributes:
        path: where it is; only the user may look into it.
    """

    def __init__(self) -> None:
        """Make it, after removing those that nobody owns any more."""
        remove_abandoned()
        self._lock = -1
        while self._lock < 0:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            self._lock = _owned(self.path)

    def close(self) -> None:
        """Remove it; closing again does nothing."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def remove_abandoned() -> None:
    """Remove the user's own working folders whose processes have ended."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            facts = folder.lstat()
            if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
                continue
            lock = os.open(folder / _OWNER, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # somebody else's, of another kind, or just removed
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass  # its process lives
        finally:
            os.close(lock)


def _owned(folder: Path) -> int:
    """The lock that says whose a new folder is; -1 where another process took it for an abandoned one."""
    try:
        lock = os.open(folder / _OWNER, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except FileNotFoundError:
        return -1
    if not (folder / _OWNER).exists():  # removed between the two lines
        os.close(lock)
        return -1
    return lock
