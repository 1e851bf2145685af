"""The photographs inside scikit-image, as backgrounds; two of them are never trained on."""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from skimage import data, transform

from training.textures import Array

TRAINING = ("astronaut", "rocket", "motorcycle", "hubble_deep_field", "immunohistochemistry", "retina")
TRAINING_GREY = ("brick", "grass", "gravel", "coins", "camera", "moon")
HELD_OUT = ("chelsea", "coffee")


@lru_cache(maxsize=32)
def photograph(name: str, long_side: int) -> Array:
    """The photograph [H, W, 3] in [0, 1], shrunk to ``long_side`` pixels; grey ones get three channels."""
    picture = _read(name)
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, axis=2)
    height, width = picture.shape[:2]
    scale = long_side / max(height, width)
    size = (round(height * scale), round(width * scale))
    return np.asarray(transform.resize(picture[..., :3], size, anti_aliasing=True), np.float32)


def _read(name: str) -> Array:
    if name == "motorcycle":
        return np.asarray(data.stereo_motorcycle()[0])
    return np.asarray(getattr(data, name)())


def sample(picture: Array, x: Array, y: Array) -> Array:
    """Colours [H, W, 3] of ``picture`` at pixel positions (x, y) [H, W], mirrored beyond its borders."""
    height, width = picture.shape[:2]
    grid = np.stack([2 * (x + 0.5) / width - 1, 2 * (y + 0.5) / height - 1], axis=-1)
    out = F.grid_sample(
        torch.from_numpy(picture).permute(2, 0, 1)[None],
        torch.from_numpy(grid.astype(np.float32))[None],
        mode="bilinear",
        padding_mode="reflection",
        align_corners=False,
    )
    return np.asarray(out[0].permute(1, 2, 0).numpy(), np.float32)
