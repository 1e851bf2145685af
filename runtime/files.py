"""Paths a user gave, and small files that appear under their name only when they are whole."""

import errno
import hashlib
import os
import secrets
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fairy.kernels.errors import InputError, MachineError

if TYPE_CHECKING:
    import numpy as np

PICTURES = (".png", ".jpg", ".jpeg")
_SHORT_NAME_BYTES = 100
"""Every file system has room for such a name; the longest that Linux knows has 255."""


class WholeOrNothing(ABC):
    """A writer as a context manager: at its end what it wrote gets its name, after an error nothing is left."""

    @abstractmethod
    def close(self) -> Path:
        """Give what was written its name."""

    @abstractmethod
    def abort(self) -> None:
        """Remove what was written; does nothing after `close`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def user_path(path: str | Path) -> Path:
    """A path as the user meant it: `~` expanded, and absolute, so that it outlives a change of folder.

    Raises:
        InputError: it is empty or not a path.
    """
    if not isinstance(path, str | Path) or not str(path).strip():
        raise InputError(f"{path!r} is not a path; name a file or a folder.")
    try:
        found = Path(path).expanduser().absolute()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            os.lstat(found)
    except RuntimeError as error:
        raise InputError(f"{path} begins with a user who is not known here; write the path in full.") from error
    except (OSError, ValueError) as error:  # too long a name, a circle of links, a zero byte
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{str(path)[:80]!r} is not a path that can be used ({reason}); write another.") from error
    return found


def check_names(**given: object) -> None:
    """Raise InputError for what is neither text, a path nor None."""
    for name, value in given.items():
        if not isinstance(value, str | Path | None):
            raise InputError("is not possible", name=name, value=value, remedy="give a name or a path")


def check_outputs(outputs: Mapping[str, Path | None], *inputs: Path | None) -> None:
    """Refuse, before anything is computed, outputs that would meet each other, the input, or cannot be written.

    Args:
        outputs: what each is ("out", "compare", "preview", "report") and its path, None where it is not asked for.
        inputs: files that are read, and folders of them; None is none.
    """
    given = {name: path for name, path in outputs.items() if path is not None}
    seen: dict[Path, str] = {}
    for name, path in given.items():
        real = path.resolve()
        if real in seen:
            raise InputError(f"{path} is named for two outputs, {seen[real]} and {name}; give each its own file.")
        seen[real] = name
        for source in inputs:
            if source is not None and (real == source.resolve() or source.resolve() in real.parents):
                raise InputError(f"{path} is the input itself or lies in it; name another file for {name}.")
        check_can_write(path, endings={"preview": PICTURES, "report": (".json",)}.get(name, ()))


def check_can_write(path: Path, *, endings: tuple[str, ...] = ()) -> None:
    """Refuse a path that no file can be written to.

    Raises:
        InputError: the folder is missing or not writable, something other than a file has that name, or the ending
            is none of `endings`.
    """
    folder = settled(path).parent
    if endings and path.suffix.lower() not in endings:
        raise InputError(f"{path} cannot be written: its name must end in {' or '.join(endings)}.")
    if not folder.is_dir():
        raise InputError(f"{path} cannot be written: the folder {folder} does not exist; create it first.")
    if path.is_dir():
        raise InputError(f"{path} cannot be written: it is a folder; name a file.")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} cannot be written: it is not an ordinary file; name another one.")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{path} cannot be written: you may not write into {folder}.")


def temporary_name(path: Path, extra: str) -> str:
    """A hidden name beside `path`: "." + its stem + `extra`, with the stem cut where that would be too long.

    Longer than the name itself only up to 100 bytes, so that every name a file system takes can be written to.
    """
    room = max(len(os.fsencode(path.name)), _SHORT_NAME_BYTES) - len(os.fsencode(extra)) - 1
    return "." + cut_to_bytes(path.stem, room) + extra


def cut_to_bytes(name: str, most: int) -> str:
    """The beginning of a name that takes at most so many bytes, cut between characters."""
    whole = os.fsencode(name)
    return name if len(whole) <= most else whole[:most].decode(errors="ignore")


class BusyError(InputError):
    """Somebody else is writing the same file; it is free when they end."""


@contextmanager
def only_writer_of(*paths: Path | None) -> Iterator[None]:
    """Holds these outputs for one edit at a time.

    By a socket's name, which the system takes back however the process ends and which is no file. Linux only.

    Raises:
        BusyError: another edit on this machine is writing one of them.
    """
    with ExitStack() as held:
        for path in paths if sys.platform == "linux" else ():
            if path is None:
                continue
            name = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()
            lock = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            try:
                lock.bind(f"\0fairy-writes-{name}")
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    continue
                raise BusyError(
                    f"{path} is being written by another edit at this moment; wait for its end or name another file."
                ) from None
        yield


def settled(path: Path) -> Path:
    """The file itself where `path` is a link to it, so that replacing it leaves the link a link."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file by way of a temporary one beside it, so that it is never seen half-written.

    Raises:
        InputError: see `check_can_write`; MachineError: the disk failed or is full.
    """
    check_can_write(path)
    file_itself = settled(path)
    part = file_itself.with_name(temporary_name(file_itself, f".{secrets.token_hex(6)}.part"))
    try:
        # 0o666 less the user's own mask, as an ordinary file would get.
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, file_itself)
    except OSError as error:
        raise MachineError(f"{path} could not be written ({error.strerror}); free some space and try again.") from error
    finally:
        part.unlink(missing_ok=True)


def write_picture(path: Path, picture: "np.ndarray[Any, np.dtype[np.uint8]]") -> None:
    """Write uint8 [H, W, 3] as a PNG or JPEG file, whole or not at all."""
    from PIL import Image

    check_can_write(path, endings=PICTURES)
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG" if path.suffix.lower() == ".png" else "JPEG")
    write_atomically(path, buffer.getvalue())
