"""Depth as a depth-conditioned network sees it: one channel at the size of the latents, −1 (far) to 1 (near).

It is read from a folder, one map a frame, or estimated by the DPT that comes with the model. Larger values are nearer,
as DPT has it; every frame is normalised by itself.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fairy.export.model import EditModel
from fairy.kernels.errors import InputError
from fairy.runtime.files import user_path
from fairy.runtime.plan.geometry import Geometry, pad_by_reflection
from fairy.runtime.video.images import pictures_of

_SUFFIXES = (".png", ".npy")


@dataclass(frozen=True, slots=True)
class DepthFolder:
    """Depth maps in the natural order of their names, 8 or 16 bit PNG or NumPy arrays [H, W]; one for every frame."""

    files: tuple[Path, ...]
    max_pixels: int

    @classmethod
    def open(cls, folder: str | Path, *, num_frames: int, max_pixels: int) -> "DepthFolder":
        """Raises InputError where there is no folder, or not one map for every frame."""
        path = user_path(folder)
        if not path.is_dir():
            raise InputError(
                "is not a folder", name="depth", value=str(folder), remedy="give one with a depth map for every frame"
            )
        files = pictures_of(path, _SUFFIXES)
        if len(files) != num_frames:
            problem = f"has {len(files)} depth maps ({' or '.join(_SUFFIXES)}) for {num_frames} frames"
            remedy = "it must have one for every frame that is edited"
            raise InputError(problem, name="depth", value=str(folder), remedy=remedy)
        return cls(files, max_pixels)

    def read(self, frame: int) -> Tensor:
        """The map of a frame: float32 [1, 1, H, W]. Raises InputError for a file that is none."""
        file = self.files[frame]
        try:
            values = _read_array(file) if file.suffix.lower() == ".npy" else _read_png(file, self.max_pixels)
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{file} is not a readable depth map ({error}); write it again.") from error
        if values.ndim != 2 or not values.size or values.size > self.max_pixels or not np.isfinite(values).all():
            raise InputError(
                f"{file} has shape {list(values.shape)}; a depth map is one finite value a pixel, at most "
                f"{self.max_pixels} of them."
            )
        return torch.from_numpy(values.astype(np.float32))[None, None]


def from_map(depth: Tensor, geometry: Geometry, latent_size: tuple[int, int]) -> Tensor:
    """A given map [1, 1, H, W] of any size as the network sees it: [1, 1, h, w], padded as the frame is."""
    scaled = F.interpolate(depth, geometry.scaled, mode="bicubic", antialias=True, align_corners=False)
    padded = pad_by_reflection(scaled, geometry.padded)
    return normalised(F.interpolate(padded, latent_size, mode="bicubic", antialias=True, align_corners=False))


def estimated(checkpoint: EditModel, picture: Tensor, latent_size: tuple[int, int]) -> Tensor:
    """The depth of a padded picture, float [1, 3, H, W] in 0…255, by the model's DPT: [1, 1, h, w].

    Raises:
        InputError: the model has no depth estimator.
    """
    estimator, processor = (getattr(checkpoint, f"depth_{part}") for part in ("estimator", "processor"))
    if estimator is None or processor is None:
        raise InputError(
            f"{checkpoint.name} has no depth_estimator; give the frames' depth maps with --depth FOLDER (depth=...)."
        )
    levels: Any = picture[0].round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    pixels = processor(images=[levels], return_tensors="pt").pixel_values.to(estimator.device)
    depth = estimator(pixels).predicted_depth.unsqueeze(1)
    return normalised(F.interpolate(depth, latent_size, mode="bicubic", align_corners=False)).to(picture.device)


def normalised(depth: Tensor) -> Tensor:
    """Each map of [n, 1, h, w] stretched to −1…1; one that is the same everywhere becomes 0."""
    low, high = depth.amin((1, 2, 3), keepdim=True), depth.amax((1, 2, 3), keepdim=True)
    flat = high == low
    return torch.where(flat, 0.0, 2.0 * (depth - low) / torch.where(flat, 1.0, high - low) - 1.0)


def _read_png(file: Path, max_pixels: int) -> np.ndarray[Any, Any]:
    from PIL import Image

    with Image.open(file, formats=["PNG"]) as picture:
        if picture.width * picture.height > max_pixels:
            raise ValueError(f"{picture.width}×{picture.height} pixels are more than max_pixels = {max_pixels}")
        if picture.mode not in ("L", "I", "I;16", "1"):
            raise ValueError(f"a picture of mode {picture.mode}, not of gray levels")
        return np.array(picture)


def _read_array(file: Path) -> np.ndarray[Any, Any]:
    found = np.load(file, mmap_mode="r", allow_pickle=False)
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu":
        raise ValueError("not an array of numbers")
    return found
