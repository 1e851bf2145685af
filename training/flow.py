"""Exactly known optical flow between two frames of a scene, and where it holds."""

import numpy as np
import numpy.typing as npt

from training.scenes import Scene, render
from training.textures import Array


def backward_flow(scene: Scene, time: float, previous: float) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Where each pixel of the frame at ``time`` was in the frame at ``previous``.

    Returns the flow [H, W, 2] in pixels (x, y) to add to a pixel's position, and a mask [H, W] that is True
    where the same surface is visible in both frames, away from every outline.
    """
    labels, before = render(scene, time).labels, render(scene, previous).labels
    flow = np.zeros((*labels.shape, 2), np.float32)
    py, px = np.mgrid[: scene.height, : scene.width]
    for label in np.unique(labels):
        motion = scene.pose(int(label), previous) @ np.linalg.inv(scene.pose(int(label), time))
        here = labels == label
        x, y = px[here], py[here]
        flow[here, 0] = motion[0, 0] * x + motion[0, 1] * y + motion[0, 2] - x
        flow[here, 1] = motion[1, 0] * x + motion[1, 1] * y + motion[1, 2] - y
    return flow, _visible(labels, before, px + flow[..., 0], py + flow[..., 1])


def _visible(labels: npt.NDArray[np.int16], before: npt.NDArray[np.int16], x: Array, y: Array) -> npt.NDArray[np.bool_]:
    """True where the 4x4 pixels around (x, y) of ``before`` all show the object that ``labels`` names here."""
    height, width = labels.shape
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    visible = (left >= 1) & (top >= 1) & (left < width - 2) & (top < height - 2)
    for dy in range(-1, 3):
        for dx in range(-1, 3):
            row, column = np.clip(top + dy, 0, height - 1), np.clip(left + dx, 0, width - 1)
            visible &= before[row, column] == labels
    return np.asarray(visible & _inside(labels))


def _inside(labels: npt.NDArray[np.int16]) -> npt.NDArray[np.bool_]:
    """True where the eight neighbours belong to the same object."""
    padded = np.pad(labels, 1, mode="edge")
    height, width = labels.shape
    shifts = [padded[dy : dy + height, dx : dx + width] for dy in range(3) for dx in range(3)]
    return np.asarray(np.all(np.stack(shifts) == labels, axis=0))
