"""Which frames of a clip are computed together: a function of the clip's length alone, never of who computes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from fairy.runtime.generation.cascade import Stage


@dataclass(frozen=True, slots=True)
class Window:
    """Frames that are computed together.

    Attributes:
        reads: numbers of the frames it needs, [start, stop), of the clip that the stage takes.
        makes: numbers of the frames that come of it, [start, stop), of the clip that the stage makes.
        places: where those lie, counted in frames of the clip that the stage takes.
    """

    reads: tuple[int, int]
    makes: tuple[int, int]
    places: tuple[Fraction, ...]


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage's windows over the clip that it takes; `fps`: of what it makes, 0 where nobody says."""

    stage: Stage
    windows: tuple[Window, ...]
    fps: float = 0.0


def base_windows(stage: Stage, frames: int) -> tuple[tuple[int, int], ...]:
    """Windows [start, stop) of the base stage: each overlaps the one before by `stage.overlap` frames, the last by
    more.

    What several windows predict for a frame at a step is averaged (`blend_weights`).
    """
    size = min(stage.window, frames)
    stride = max(1, size - stage.overlap)
    starts = [*range(0, max(1, frames - size), stride), frames - size]
    return tuple((start, start + size) for start in dict.fromkeys(starts))


def blend_weights(window: tuple[int, int], overlap: int, frames: int) -> list[float]:
    """What a window's prediction of each of its frames weighs: less towards an edge that is not the clip's own."""
    start, stop = window
    weights = []
    for frame in range(start, stop):
        rising = 1.0 if start == 0 else min(1.0, (frame - start + 1) / (overlap + 1))
        falling = 1.0 if stop == frames else min(1.0, (stop - frame) / (overlap + 1))
        weights.append(min(rising, falling))
    return weights


def interpolation_windows(places: Sequence[Fraction], frames: int, cuts: Sequence[int] = ()) -> tuple[Window, ...]:
    """One window between each two neighbours of a clip of `frames` frames.

    Args:
        places: of the frames to make, rising, counted in frames of the clip; a whole number is a frame itself.
        cuts: numbers of frames before which another shot begins; what lies before one is the frame before it.
    """
    windows, done, is_cut = [], 0, set(cuts)
    for left in range(frames):
        stop = done
        while stop < len(places) and (places[stop] < left + 1 or left + 1 >= frames):
            stop += 1
        if stop > done:
            alone = left + 1 >= frames or left + 1 in is_cut or all(p == left for p in places[done:stop])
            inside = tuple(Fraction(left) if alone else place for place in places[done:stop])
            windows.append(Window((left, left + (1 if alone else 2)), (done, stop), inside))
        done = stop
    return tuple(windows)


def super_resolution_windows(stage: Stage, frames: int, cuts: Sequence[int] = ()) -> tuple[Window, ...]:
    """Windows that make `stage.window` frames less the `stage.overlap` beside them; none reads across a cut.

    Without layers over time each frame is a window of its own. A stage that makes several of a frame reads that frame.
    """
    margin = stage.overlap if stage.enable_time else 0
    size = max(1, stage.window - 2 * margin) if stage.enable_time else 1
    edges = [0, *sorted(c for c in set(cuts) if 0 < c < frames), frames]
    windows = []
    for first, end in pairwise(edges):
        for start in range(first, end, size):
            stop = min(start + size, end)
            reads = (max(first, start - margin), min(end, stop + margin))
            makes = (start * stage.times, stop * stage.times)
            windows.append(Window(reads, makes, tuple(Fraction(i, stage.times) for i in range(*makes))))
    return tuple(windows)


def regular_places(frames: int, times: int) -> tuple[Fraction, ...]:
    """`times` frames for each of `frames`, the last one alone: their places in frames of the clip."""
    return tuple(Fraction(i, times) for i in range((frames - 1) * times + 1))
