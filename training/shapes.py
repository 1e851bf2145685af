"""Outlines of the objects: signed distances (negative inside) of shapes that fit the unit disc."""

from collections.abc import Callable

import numpy as np

from training.textures import Array

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
MORE_SHAPES = ("heart", "moon", "hexagon", "arrow", "flower", "drop")  # which the editor with 16 channels knows too
ALL_SHAPES = (*SHAPES, *MORE_SHAPES)
UPRIGHT = {  # angles that point a tip upwards
    **dict.fromkeys(ALL_SHAPES, 0.0),
    "triangle": np.pi / 2,
    "star": -np.pi / 2,
    "hexagon": np.pi / 2,
    "flower": -np.pi / 2,
}


def signed_distance(shape: str, x: Array, y: Array) -> Array:
    """Distance to the outline of ``shape`` at (x, y), in units of its radius; exact near the outline only."""
    return np.asarray(_DISTANCES[shape](x, y), np.float32)


def _polygon(x: Array, y: Array, corners: int, apothem: float) -> Array:
    """A regular polygon: the largest of the distances to its sides."""
    angles = 2 * np.pi * np.arange(corners) / corners
    sides = [np.cos(a) * x + np.sin(a) * y for a in angles]
    return np.asarray(np.max(np.stack(sides), axis=0) - apothem, np.float32)


def _star(x: Array, y: Array) -> Array:
    """Five points: the outline's radius swings between 0.45 and 1."""
    phase = np.abs((np.arctan2(y, x) * 5 / (2 * np.pi)) % 1 - 0.5) * 2
    return np.asarray((np.hypot(x, y) - (0.45 + 0.55 * phase**1.5)) * 0.7, np.float32)


def _cross(x: Array, y: Array) -> Array:
    near, far = np.minimum(np.abs(x), np.abs(y)), np.maximum(np.abs(x), np.abs(y))
    return np.maximum(near - 0.3, far - 0.92)


def _flower(x: Array, y: Array) -> Array:
    """Five round petals."""
    petal = np.abs(np.cos(2.5 * np.arctan2(y, x)))
    return np.asarray((np.hypot(x, y) - (0.42 + 0.53 * petal**0.6)) * 0.75, np.float32)


def _moon(x: Array, y: Array) -> Array:
    """A crescent, open to the right."""
    return np.asarray(np.maximum(np.hypot(x, y) - 0.95, 0.78 - np.hypot(x - 0.48, y)), np.float32)


def _outline(x: Array, y: Array, corners_N2: np.ndarray) -> Array:
    """Exact distance to a closed polygon: to the nearest side, negative after an odd number of crossings."""
    nearest, inside = np.full(x.shape, np.inf), np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners_N2, np.roll(corners_N2, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - ax - along * ex, y - ay - along * ey))
        if ey:
            inside ^= ((ay > y) != (by > y)) & (x < ax + (y - ay) * ex / ey)
    return np.asarray(np.where(inside, -nearest, nearest), np.float32)


_TURN = np.linspace(0, 2 * np.pi, 36, endpoint=False)
_HEART = np.stack(
    [
        0.055 * 16 * np.sin(_TURN) ** 3,
        -0.055 * (13 * np.cos(_TURN) - 5 * np.cos(2 * _TURN) - 2 * np.cos(3 * _TURN) - np.cos(4 * _TURN)) - 0.12,
    ],
    axis=-1,
)
_DROP = np.stack([0.75 * np.sin(_TURN) * np.sin(_TURN / 2) ** 1.5, -0.95 * np.cos(_TURN)], axis=-1)
_HALF_ARROW = np.array([(0.0, -0.95), (0.62, -0.2), (0.24, -0.2), (0.24, 0.92)])
_ARROW = np.concatenate([_HALF_ARROW, _HALF_ARROW[:0:-1] * (-1, 1)])

_DISTANCES: dict[str, Callable[[Array, Array], np.ndarray]] = {
    "circle": lambda x, y: np.hypot(x, y) - 0.95,
    "square": lambda x, y: _polygon(x, y, 4, 0.7),
    "triangle": lambda x, y: _polygon(x, y, 3, 0.5),
    "star": _star,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.72) - 0.24,
    "cross": _cross,
    "heart": lambda x, y: _outline(x, y, _HEART),
    "moon": _moon,
    "hexagon": lambda x, y: _polygon(x, y, 6, 0.82),
    "arrow": lambda x, y: _outline(x, y, _ARROW),
    "flower": _flower,
    "drop": lambda x, y: _outline(x, y, _DROP),
}
