"""Outlines of the objects: signed distances (negative inside) of shapes that fit the unit disc."""

import numpy as np

from training.textures import Array

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
UPRIGHT = {**dict.fromkeys(SHAPES, 0.0), "triangle": np.pi / 2, "star": -np.pi / 2}  # angles that point a tip upwards


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


_DISTANCES = {
    "circle": lambda x, y: np.hypot(x, y) - 0.95,
    "square": lambda x, y: _polygon(x, y, 4, 0.7),
    "triangle": lambda x, y: _polygon(x, y, 3, 0.5),
    "star": _star,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.72) - 0.24,
    "cross": _cross,
}
