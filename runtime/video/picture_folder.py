"""Writes frames as numbered PNG or EXR files into a folder, which appears under its name only when it is whole.

EXR files hold linear light: the 8 bits of an edit through sRGB's curve (IEC 61966-2-1), as half precision numbers,
multiplied by how opaque they are. That is another way of writing the same 256 levels, not more of them.
"""

import os
import secrets
import shutil
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fairy.kernels.errors import Cancelled, InputError, MachineError
from fairy.runtime.files import WholeOrNothing, temporary_name
from fairy.runtime.video.codecs import EXR, PNG


class PictureFolder(WholeOrNothing):
    """000000.png, 000001.png, …; a context manager with the face of `VideoWriter`."""

    def __init__(self, path: Path, *, num_frames: int, kind: str = PNG, cancel: threading.Event | None = None) -> None:
        """Raises InputError where the folder cannot be made, or something of that name is there."""
        self.path, self.notes = path, ["A folder of pictures keeps no sound and no time stamps."]
        self._kind, self._save = kind, _save_exr if kind == EXR else _save_png
        self._num_frames, self._cancel, self._written = num_frames, cancel, 0
        if path.exists():
            raise InputError(f"{path} is there already; name a folder that does not exist yet.")
        self._part = path.with_name(temporary_name(path, f".{secrets.token_hex(4)}.part"))
        try:
            self._part.mkdir()
        except OSError as error:
            raise InputError(f"{path} cannot be made: {(error.strerror or 'unknown reason').lower()}.") from None

    def write(self, frames: NDArray[np.uint8]) -> None:
        """The next frames, uint8 RGB [N, H, W, 3] or one [H, W, 3]; with four channels they say how opaque they are."""
        for frame in frames[None] if frames.ndim == 3 else frames:
            if self._cancel is not None and self._cancel.is_set():
                raise Cancelled(f"Cancelled while writing {self.path}.")
            try:
                self._save(frame, self._part / f"{self._written:06d}.{self._kind}")
            except (OSError, RuntimeError) as error:  # the latter is OpenEXR's
                self.abort()
                reason = getattr(error, "strerror", None) or error
                raise MachineError(f"{self.path} could not be written ({reason}); nothing was kept.") from error
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


def linear(levels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Light, 0 to 1, of sRGB's 8 bit levels."""
    shown = np.arange(256) / 255
    light = np.where(shown <= 0.04045, shown / 12.92, ((shown + 0.055) / 1.055) ** 2.4).astype(np.float32)
    found: NDArray[np.float32] = light[levels]
    return found


def _save_png(frame: NDArray[np.uint8], file: Path) -> None:
    from PIL import Image

    Image.fromarray(frame).save(file, compress_level=3)


def _save_exr(frame: NDArray[np.uint8], file: Path) -> None:
    import OpenEXR

    light, alpha = linear(frame[..., :3]), frame[..., 3:].astype(np.float32) / 255
    channels = np.concatenate([light * alpha, alpha], axis=2) if frame.shape[2] == 4 else light
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    name = "RGBA" if frame.shape[2] == 4 else "RGB"
    with OpenEXR.File(header, {name: np.ascontiguousarray(channels.astype(np.float16))}) as picture:
        picture.write(str(file))
