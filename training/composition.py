"""What a clip shows, read from its frames alone: colour, shape, place and motion.

The background is what each row mostly shows; the thing is what differs from it. Exact on rendered clips (see the test);
for generated ones it says whether the caption was obeyed.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from training.captioned_clips import DIRECTIONS, PLACES, Clip
from training.shapes import SHAPES, UPRIGHT, signed_distance
from training.textures import NAMED_COLOURS, Array

Mask = npt.NDArray[np.bool_]
STANDS_OUT = 0.16  # from the background, in the largest channel
SMALLEST = 0.01  # share of the picture that a thing covers
STILL = 0.06  # sides that a thing may drift over a clip and still count as standing still
STEEP = 2.0  # a motion is along the axis on which it goes so many times further
GRID = 24  # places a side at which a thing's outline is compared with the shapes
NEAR = 0.17  # sides from a named place


@dataclass(frozen=True, slots=True)
class Seen:
    """What a clip was found to show; None where nothing can be told."""

    colour: str | None
    shape: str | None
    centre: tuple[float, float] | None
    direction: str | None


def look(frames_FHWC: Array) -> Seen:
    """What is seen in frames [F, H, W, 3] in [0, 1]."""
    ground_H1C = np.median(frames_FHWC, axis=(0, 2), keepdims=True)[0]
    masks_FHW = np.abs(frames_FHWC - ground_H1C).max(axis=3) > STANDS_OUT
    seen = [i for i, mask in enumerate(masks_FHW) if mask.mean() >= SMALLEST]
    if not seen:
        return Seen(None, None, None, None)
    centres = {i: _centre(masks_FHW[i]) for i in seen}
    outlines = np.mean([_outline(masks_FHW[i], centres[i]) for i in seen], axis=0)
    inside = np.concatenate([frames_FHWC[i][_core(masks_FHW[i])] for i in seen])
    return Seen(_colour(inside), _shape(outlines), centres[seen[0]], _direction(centres, len(frames_FHWC)))


def obeyed(clip: Clip, seen: Seen) -> dict[str, bool]:
    """Which parts of the caption the clip obeys; the place only where the caption names one."""
    told = {
        "colour": seen.colour == clip.colour,
        "shape": seen.shape == clip.shape,
        "motion": seen.direction == clip.direction,
    }
    told["all three"] = all(told.values())
    if clip.place is not None:
        told["place"] = seen.centre is not None and _is_at(clip, seen.centre)
    return told


def _is_at(clip: Clip, centre: tuple[float, float]) -> bool:
    """Whether the clip starts at the place that the caption names, along its way apart."""
    assert clip.place is not None
    free = [axis for axis, step in enumerate(DIRECTIONS[clip.direction]) if step == 0]
    return all(abs(centre[axis] - PLACES[clip.place][axis]) <= NEAR for axis in free)


def _centre(mask: Mask) -> tuple[float, float]:
    """Mean place (x, y) in shares of the side."""
    y, x = np.nonzero(mask)
    return float((x.mean() + 0.5) / mask.shape[1]), float((y.mean() + 0.5) / mask.shape[0])


def _core(mask: Mask) -> Mask:
    """The mask without its border, whose colours are mixed; all of it where nothing else is left."""
    inner = mask.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            inner &= np.roll(mask, step, axis)
    return inner if inner.any() else mask


def _colour(inside_NC: Array) -> str:
    """The named colour that is nearest to most of the thing."""
    names = list(NAMED_COLOURS)
    table = np.asarray([NAMED_COLOURS[name] for name in names])
    nearest = np.square(inside_NC[:, None] - table).sum(axis=2).argmin(axis=1)
    return names[int(np.bincount(nearest, minlength=len(names)).argmax())]


def _outline(mask: Mask, centre: tuple[float, float]) -> Array:
    """The thing cut out and scaled by its reach from the middle of its box, [GRID, GRID] in 0 to 1."""
    y, x = np.nonzero(mask)
    left, right, top, bottom = x.min(), x.max() + 1, y.min(), y.max() + 1
    rows = np.minimum(top + (np.arange(GRID) + 0.5) * (bottom - top) / GRID, bottom - 0.5).astype(int)
    columns = np.minimum(left + (np.arange(GRID) + 0.5) * (right - left) / GRID, right - 0.5).astype(int)
    return np.asarray(mask[np.ix_(rows, columns)], np.float32)


def _shape(outline: Array) -> str:
    """The shape whose outline in its own box is most alike."""
    errors = {shape: float(np.abs(outline - template).mean()) for shape, template in _templates().items()}
    return min(errors, key=lambda shape: errors[shape])


@lru_cache(maxsize=1)
def _templates() -> dict[str, Array]:
    """Every shape's outline, in its own box."""
    made = {}
    plane = np.linspace(-1.1, 1.1, 441, dtype=np.float32)
    for shape in SHAPES:
        c, s = np.cos(UPRIGHT[shape]), np.sin(UPRIGHT[shape])
        u, v = np.meshgrid(plane, plane)
        mask = signed_distance(shape, np.float32(c * u + s * v), np.float32(c * v - s * u)) < 0
        made[shape] = _outline(mask, _centre(mask))
    return made


def _direction(centres: dict[int, tuple[float, float]], frames: int) -> str | None:
    """Where the thing goes: by a straight line through its centres; None where it is seen too rarely or goes askew."""
    if len(centres) < max(2, frames // 2):
        return None
    times = np.asarray(list(centres), float)
    x, y = (np.polyfit(times, [centre[axis] for centre in centres.values()], 1)[0] * (frames - 1) for axis in (0, 1))
    if np.hypot(x, y) <= STILL:
        return "still"
    along, across = (x, y) if abs(x) > abs(y) else (y, x)
    if abs(along) < STEEP * abs(across):
        return None
    return next(
        name
        for name, (dx, dy) in DIRECTIONS.items()
        if (dx * x > 0 and abs(x) > abs(y)) or (dy * y > 0 and abs(y) > abs(x))
    )
