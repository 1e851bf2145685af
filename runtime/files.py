"""Small files that appear under their name only when they are whole."""

import os
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from fairy.kernels.errors import InputError, MachineError


def check_can_write(path: Path, *, endings: tuple[str, ...] = ()) -> None:
    """Refuse, before anything is computed, a path that no file can be written to.

    Raises:
        InputError: the folder is missing or not writable, the path is a folder, or its ending is none of `endings`.
    """
    folder = path.parent
    if endings and path.suffix.lower() not in endings:
        raise InputError(f"{path} cannot be written: its name must end in {' or '.join(endings)}.")
    if not folder.is_dir():
        raise InputError(f"{path} cannot be written: the folder {folder} does not exist; create it first.")
    if path.is_dir():
        raise InputError(f"{path} cannot be written: it is a folder; name a file.")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{path} cannot be written: you may not write into {folder}.")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file by way of a temporary one beside it, so that it is never seen half-written.

    Raises:
        InputError: see `check_can_write`; MachineError: the disk failed or is full.
    """
    check_can_write(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except OSError as error:
        raise MachineError(f"{path} could not be written ({error.strerror}); free some space and try again.") from error
    finally:
        Path(name).unlink(missing_ok=True)


def write_picture(path: Path, picture: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """Write uint8 [H, W, 3] as a PNG or JPEG file, whole or not at all."""
    from PIL import Image

    check_can_write(path, endings=(".png", ".jpg", ".jpeg"))
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG" if path.suffix.lower() == ".png" else "JPEG")
    write_atomically(path, buffer.getvalue())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
