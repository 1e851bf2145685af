"""A lock between processes, held by an open file: the system lets go of it however its holder ends."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fairy.kernels.errors import Cancelled

_POLL_S = 0.1


@contextmanager
def locked(path: Path, on_wait: Callable[[], bool]) -> Iterator[None]:
    """Hold the lock at `path` inside the block; while another process holds it, ask `on_wait` ten times a second.

    Raises:
        Cancelled: `on_wait` returned False.
    """
    while (fd := _try(path)) is None:
        if not on_wait():
            raise Cancelled("Stopped while waiting for another process that builds the same engine.")
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        os.close(fd)


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock at `path` inside the block if nobody else does; says whether it is held."""
    fd = _try(path)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            os.close(fd)


def _try(path: Path) -> int | None:
    """A descriptor that holds the lock, or None where another one does."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), path.stat()):  # else it was tidied away between opening and locking
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(fd)
    return None
