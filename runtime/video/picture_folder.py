"""Writes frames as numbered PNG files into a folder, which appears under its name only when it is whole."""

import os
import secrets
import shutil
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fairy.kernels.errors import Cancelled, InputError, MachineError
from fairy.runtime.files import WholeOrNothing, temporary_name


class PictureFolder(WholeOrNothing):
    """000000.png, 000001.png, …; a context manager with the face of `VideoWriter`."""

    def __init__(self, path: Path, *, num_frames: int, cancel: threading.Event | None = None) -> None:
        """Raises InputError where the folder cannot be made, or something of that name is there."""
        self.path, self.notes = path, ["A folder of pictures keeps no sound and no time stamps."]
        self._num_frames, self._cancel, self._written = num_frames, cancel, 0
        if path.exists():
            raise InputError(f"{path} is there already; name a folder that does not exist yet.")
        self._part = path.with_name(temporary_name(path, f".{secrets.token_hex(4)}.part"))
        try:
            self._part.mkdir()
        except OSError as error:
            raise InputError(f"{path} cannot be made: {(error.strerror or 'unknown reason').lower()}.") from None

    def write(self, frames: NDArray[np.uint8]) -> None:
        """The next frames, uint8 RGB [N, H, W, 3] or one [H, W, 3]."""
        from PIL import Image

        for frame in frames[None] if frames.ndim == 3 else frames:
            if self._cancel is not None and self._cancel.is_set():
                raise Cancelled(f"Cancelled while writing {self.path}.")
            try:
                Image.fromarray(frame).save(self._part / f"{self._written:06d}.png", compress_level=3)
            except OSError as error:
                self.abort()
                raise MachineError(f"{self.path} could not be written ({error.strerror}); nothing was kept.") from error
            self._written += 1

    def close(self) -> Path:
        """Gives the folder its name."""
        if self._written != self._num_frames:
            self.abort()
            raise MachineError(f"{self._written} of {self._num_frames} frames were written to {self.path}; none kept.")
        os.rename(self._part, self.path)
        return self.path

    def abort(self) -> None:
        """Removes what was written; does nothing after `close`."""
        shutil.rmtree(self._part, ignore_errors=True)
