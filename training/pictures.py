"""The pool of pictures the autoencoder learns from: scenes and photographs, two fifths of them with a global look."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.looks import LOOKS, apply_look
from training.random_scenes import random_scene
from training.scenes import render
from training.textures import Array

Bytes = npt.NDArray[np.uint8]
STREAM = 12  # of random numbers


def picture(seed: int, size: int = 256) -> Array:
    """The picture of that seed, float32 [size, size, 3] in [0, 1]."""
    rng = np.random.default_rng((STREAM, seed))
    image = render(random_scene(seed, size, size, photos=0.35)).image
    return apply_look(str(rng.choice(list(LOOKS))), image) if rng.random() < 0.4 else image


def to_bytes(image: Array) -> Bytes:
    """[0, 1] to 0 … 255, rounded."""
    return np.asarray(np.round(np.clip(image, 0, 1) * 255), np.uint8)


def picture_pool(cache: Path, count: int, seed: int) -> Bytes:
    """``count`` pictures uint8 [count, 256, 256, 3], kept in the file ``cache``."""
    if cache.exists():
        pool = np.load(cache, mmap_mode="r")
        if len(pool) == count:
            return np.asarray(pool)
    pool = np.stack([to_bytes(picture(seed * 1_000_000 + index)) for index in range(count)])
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.save(cache, pool)
    return pool
