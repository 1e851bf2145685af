"""The pool of pictures for the autoencoder with 16 channels: photographs first, detail and scenes beside them.

Half of the photographs come from a folder with further ones, where one is named; ``photo_files`` says which were used.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from training.details import DETAILS
from training.looks import LOOKS, apply_look
from training.photo_files import TRAINING_FILES, Bytes, resized, whole_photograph
from training.pictures import to_bytes
from training.random_scenes import random_scene
from training.scenes import render

STREAM = 31  # of random numbers
SIDE = 256
PHOTOGRAPHS, DETAILED = 0.64, 0.2  # shares of the pool; the rest are scenes
GREY_SHARE = 0.2  # of the photographs
FURTHER_SHARE = 0.5  # of the photographs, where a folder with further ones is named
LOOKED = 0.15  # of the pictures get one of the global looks, as an edit would


def detailed_picture(seed: int, folder: Path | None = None) -> Bytes:
    """The picture of that seed, uint8 [256, 256, 3]; ``folder`` holds further photographs."""
    rng = np.random.default_rng((STREAM, seed))
    draw = rng.random()
    if draw < PHOTOGRAPHS:
        image = photograph_part(rng, SIDE, folder)
    elif draw < PHOTOGRAPHS + DETAILED:
        image = DETAILS[int(rng.integers(len(DETAILS)))](rng, SIDE)
    else:
        image = to_bytes(render(random_scene(seed, SIDE, SIDE, photos=0.2)).image)
    if rng.random() < LOOKED:
        image = to_bytes(apply_look(str(rng.choice(list(LOOKS))), (image / 255).astype(np.float32)))
    return image


def photograph_part(rng: np.random.Generator, side: int, folder: Path | None = None) -> Bytes:
    """A square part of a training photograph whose long side is shrunk to between ``side`` and all it has.

    Half of the parts get other brightness, contrast and order of the colours.
    """
    if folder and rng.random() < FURTHER_SHARE:
        files = sorted(folder.glob("*.jpg"))
        whole = _read(files[int(rng.integers(len(files)))])
    else:
        grey = rng.random() < GREY_SHARE
        names = [name for name, file in TRAINING_FILES.items() if file.grey == grey]
        whole = whole_photograph(str(rng.choice(names)))
    smallest = side * max(whole.shape[:2]) / min(whole.shape[:2])
    largest = max(smallest, min(float(max(whole.shape[:2])), 4.0 * side))
    picture = resized(whole, int(np.ceil(np.exp(rng.uniform(np.log(smallest), np.log(largest))))))
    top, left = (int(rng.integers(n - side + 1)) for n in picture.shape[:2])
    part = picture[top : top + side, left : left + side]
    return _recoloured(part, rng) if rng.random() < 0.5 else part


@lru_cache(maxsize=64)
def _read(path: Path) -> Bytes:
    """The photograph, its long side at most 2048 pixels."""
    picture = Image.open(path).convert("RGB")
    picture.thumbnail((2048, 2048), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _recoloured(part: Bytes, rng: np.random.Generator) -> Bytes:
    gamma, gain = float(np.exp(rng.normal(0, 0.25))), float(rng.uniform(0.8, 1.15))
    return to_bytes((gain * (part / 255) ** gamma)[..., rng.permutation(3)].astype(np.float32))


def detailed_pool(cache: Path, count: int, seed: int, folder: Path | None = None) -> Bytes:
    """``count`` pictures uint8 [count, 256, 256, 3], kept in the file ``cache``."""
    if cache.exists():
        pool = np.load(cache, mmap_mode="r")
        if len(pool) == count:
            return np.asarray(pool)
    pool = np.stack([detailed_picture(seed * 1_000_000 + index, folder) for index in range(count)])
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.save(cache, pool)
    return pool
