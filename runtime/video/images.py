"""A folder of pictures as a video without a clock or sound."""

import re
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairy.kernels.errors import Cancelled, InputError
from fairy.runtime.video.info import MAX_PIXELS
from fairy.runtime.video.reader import choose

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
TRANSPARENT = "The pictures have transparency: they are edited over black."
_OF_SEVERAL = ("PNG", "WEBP", "TIFF")
"""Formats whose files may hold frames or pages; a second picture in a JPEG is the camera's own matter."""


@dataclass(frozen=True, slots=True)
class ImageFolderInfo:
    """Pictures of one size, in the natural order of their names (2.png before 10.png)."""

    path: Path
    files: tuple[Path, ...]
    width: int
    height: int
    notes: tuple[str, ...] = ()

    @property
    def num_frames(self) -> int:
        return len(self.files)

    def to_json(self) -> dict[str, Any]:
        names = [file.name for file in self.files]
        return {"path": str(self.path), "files": names, "width": self.width, "height": self.height}


def probe_images(
    folder: str | Path,
    *,
    max_pixels: int = MAX_PIXELS,
    cancel: threading.Event | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> ImageFolderInfo:
    """Decodes every picture once; raises InputError for a broken one or the first of another size."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of pictures.")
    files = pictures_of(folder, PICTURES)
    if not files:
        raise InputError(f"{folder} has no pictures; {', '.join(sorted(PICTURES))} files are read.")
    height, width = load_picture(files[0], max_pixels).shape[:2]
    notes: dict[str, None] = {}
    for done, file in enumerate(files, 1):
        _stop_if(cancel, folder)
        found = load_picture(file, max_pixels, notes).shape
        if found[:2] != (height, width):
            raise InputError(
                f"{file} has {found[1]}×{found[0]} pixels, but {files[0].name} has {width}×{height}; all must be equal."
            )
        if on_progress is not None:
            on_progress(done)
    return ImageFolderInfo(folder, files, width, height, tuple(notes))


def pictures_of(folder: Path, suffixes: Collection[str]) -> tuple[Path, ...]:
    """The files with one of these endings in natural order, without the hidden ones that systems put beside them."""
    found = (f for f in folder.iterdir() if f.suffix.lower() in suffixes and f.name[0] != "." and f.is_file())
    return tuple(sorted(found, key=natural_order))


def read_images(
    info: ImageFolderInfo,
    start: int = 0,
    stop: int | None = None,
    *,
    indices: Collection[int] | None = None,
    max_pixels: int = MAX_PIXELS,
    cancel: threading.Event | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """The pictures start … stop − 1, or those of `indices`, in ascending order: uint8 RGB [H, W, 3]."""
    for index in choose(info.num_frames, start, stop, indices):
        _stop_if(cancel, info.path)
        picture = load_picture(info.files[index], max_pixels)
        if picture.shape != (info.height, info.width, 3):
            raise InputError(f"{info.files[index]} changed its size while the folder was being read.")
        yield picture


def read_alphas(info: ImageFolderInfo, cancel: threading.Event | None = None) -> Iterator[NDArray[np.uint8]]:
    """How opaque each picture is, in ascending order: uint8 [H, W, 1]."""
    from PIL import Image, ImageOps

    for file in info.files:
        _stop_if(cancel, info.path)
        with Image.open(file, formats=_FORMATS) as image:
            upright = ImageOps.exif_transpose(image)
            seen = np.array(upright.convert("RGBA"), dtype=np.uint8)[..., 3:]
        if seen.shape != (info.height, info.width, 1):
            raise InputError(f"{file} changed its size while the folder was being read.")
        yield seen


def natural_order(file: Path) -> tuple[list[tuple[int, str]], str]:
    """Runs of digits compare as numbers, all else as text; the name itself breaks ties."""
    parts = re.findall(r"\d+|\D+", file.name.lower())
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in parts], file.name


def load_picture(file: Path, max_pixels: int, notes: dict[str, None] | None = None) -> NDArray[np.uint8]:
    """A picture as uint8 RGB [H, W, 3]; what is lost of it is told to `notes`."""
    from PIL import Image, ImageOps  # here, so that the video helpers never load it

    try:
        with Image.open(file, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise InputError(
                    f"{file} has {width}×{height} pixels, more than max_pixels = {max_pixels:,} allows; "
                    "make it smaller or raise max_pixels."
                )
            pages = int(getattr(image, "n_frames", 1)) if image.format in _OF_SEVERAL else 1
            if pages > 1:
                remedy = "split it into its pages" if image.format == "TIFF" else "give the file itself as the video"
                raise InputError(f"{file} holds {pages} pictures, where one is one frame; {remedy}.")
            notes = {} if notes is None else notes
            if image.has_transparency_data:
                notes[TRANSPARENT] = None
            upright = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
                notes["The pictures have 16 bits a channel and are edited in 8."] = None
                grey = np.clip(np.asarray(upright).astype(np.int64), 0, 65535)
                return np.repeat(((grey + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
            if image.mode in ("I", "F"):
                raise InputError(
                    f"{file} holds {'32-bit' if image.mode == 'I' else 'floating point'} numbers, of which it is not "
                    "known what is white; export it in 8 or 16 bits a channel."
                )
            if image.has_transparency_data:  # over black: what is hidden stays hidden
                seen = np.array(upright.convert("RGBA"), dtype=np.uint16)
                return ((seen[..., :3] * seen[..., 3:] + 127) // 255).astype(np.uint8)
            return np.array(upright.convert("RGB"), dtype=np.uint8)
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(f"{file} has more pixels than Pillow opens; make it smaller.") from None
    except Exception:
        # Pillow's readers raise many kinds of error for broken bytes; all mean the same to the user.
        raise InputError(f"{file} is not a whole picture that can be read; export it again.") from None


def _stop_if(cancel: threading.Event | None, folder: Path) -> None:
    if cancel is not None and cancel.is_set():
        raise Cancelled(f"Cancelled while reading {folder}.")
