"""A clip that is computed, with what an instruction should make of it and how everything in it moves, both exact.

A camera pans by whole pixels over a painted landscape. The instruction is the embedded model's "make it sepia", whose
target is a function of every pixel by itself.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairy.benchmarks.measures import Flow, Frames, Mask

INSTRUCTION = "make it sepia"
VERSION = 1  # of the pictures; part of every recipe
PAN = (2, 1)  # pixels a frame, right and down
_SEED = 7

_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class GeneratedClip:
    """Frames and targets, uint8 [T, H, W, 3]; flow and visibility of frame t + 1 back to frame t."""

    source: Frames
    target: Frames
    flows: tuple[Flow, ...]
    visible: tuple[Mask, ...]


def generate_clip(num_frames: int, height: int, width: int) -> GeneratedClip:
    """The clip at a size."""
    right, down = PAN
    world = _landscape(height + down * num_frames, width + right * num_frames, width)
    places = [(down * t, right * t) for t in range(num_frames)]
    views = np.stack([world[y : y + height, x : x + width] for y, x in places])
    # What is at (x, y) in a frame was at (x + right, y + down) in the one before.
    flow = np.broadcast_to(np.array(PAN, np.float32), (height, width, 2))
    rows, columns = np.mgrid[:height, :width]
    visible = (columns + right < width) & (rows + down < height)
    moves = num_frames - 1
    return GeneratedClip(_bytes(views), _bytes(sepia(_bytes(views) / 255.0)), (flow,) * moves, (visible,) * moves)


def sepia(picture: _Floats) -> _Floats:
    """What the embedded model was trained to call sepia: [..., 3] in 0…1 to the same."""
    grey = picture @ np.array([0.299, 0.587, 0.114])
    toned = grey[..., None] * np.array([1.05, 0.82, 0.56]) + np.array([0.08, 0.05, 0.02])
    return np.asarray(np.clip(toned, 0, 1))


def _landscape(height: int, width: int, scale: int) -> _Floats:
    """A sky with clouds and a sun, hills one behind the other, a striped field: [height, width, 3] in 0…1."""
    rng = np.random.default_rng(_SEED)
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    x, y = columns / scale, rows / height
    sky = _mix((0.98, 0.86, 0.66), (0.36, 0.60, 0.92), np.clip(1 - 1.6 * y, 0, 1))
    picture = _blend(sky, (1.0, 0.98, 0.95), np.clip(_waves(rng, x, 2.5 * y, 9) * 1.4, 0, 0.85) * (y < 0.5))
    picture = _blend(picture, (0.99, 0.82, 0.30), np.hypot(x - 0.62, 0.75 * (y - 0.2)) < 0.09)
    for depth, colour in enumerate([(0.45, 0.55, 0.70), (0.30, 0.50, 0.42), (0.20, 0.42, 0.22)]):
        line = 0.42 + 0.14 * depth + 0.07 * _waves(rng, x, np.zeros_like(x), 4 + 2 * depth)
        picture = _blend(picture, np.array(colour), y > line)
    field = _mix((0.72, 0.62, 0.26), (0.40, 0.36, 0.16), 0.5 + 0.5 * np.tanh(3 * np.sin(60 * (x + 0.6 * y))))
    return _blend(picture, field, y > 0.86 + 0.02 * np.sin(9 * x))


def _waves(rng: np.random.Generator, x: _Floats, y: _Floats, count: int) -> _Floats:
    """A sum of plane waves about −1…1, the finer the fainter."""
    total = np.zeros_like(x)
    for i in range(count):
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        total += np.sin((5 + 4 * i) * (x * np.cos(angle) + y * np.sin(angle)) + phase) / (1 + 0.6 * i)
    return np.asarray(total / 2.2)


def _mix(light: tuple[float, ...], dark: tuple[float, ...], weight: _Floats) -> _Floats:
    return np.asarray(np.array(light) + (np.array(dark) - np.array(light)) * weight[..., None])


def _blend(picture: _Floats, colour: object, weight: NDArray[np.generic]) -> _Floats:
    """The colour laid over the picture where the weight is."""
    return np.asarray(picture + (np.asarray(colour) - picture) * weight.astype(np.float64)[..., None])


def _bytes(picture: _Floats) -> Frames:
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
