"""From time stamps to frame rates."""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


def constant_rate(
    pts: NDArray[np.int64], time_base: Fraction, hints: tuple[Fraction | None, ...] = ()
) -> Fraction | None:
    """The rate at which frame i is due at pts[0] + i / rate, rounding apart, for all i; else None."""
    if len(pts) < 2:
        return next((hint for hint in hints if hint), None)
    steps = np.arange(len(pts), dtype=np.float64)
    for rate in [*hints, *_guesses(pts, time_base)]:
        if rate and _fits(pts - pts[0], steps, float(1 / (rate * time_base))):
            return rate
    return None


def _fits(elapsed: NDArray[np.int64], steps: NDArray[np.float64], interval: float) -> bool:
    """Within one tick, because containers round (30000/1001 frames/s in Matroska are 33 and 34 ms apart)…

    … and within a quarter of a frame, because in AVI one tick is a whole frame.
    """
    return bool(np.all(np.abs(elapsed - steps * interval) <= min(1.0, interval / 4) + 1e-6))


def mean_rate(pts: NDArray[np.int64], time_base: Fraction) -> Fraction | None:
    """Frames per second over the whole video."""
    if len(pts) < 2:
        return None
    return Fraction(len(pts) - 1) / (int(pts[-1] - pts[0]) * time_base)


def _guesses(pts: NDArray[np.int64], time_base: Fraction) -> list[Fraction]:
    mean = mean_rate(pts, time_base)
    assert mean is not None
    whole = round(mean)
    common = [Fraction(whole), Fraction(whole * 1000, 1001)] if whole else []
    return [*common, mean.limit_denominator(1001), mean]


def rescale(pts: NDArray[np.int64], source: Fraction, target: Fraction) -> tuple[NDArray[np.int64], bool]:
    """pts in units of `target`, rounded to nearest as FFmpeg does, and whether nothing was rounded."""
    ratio = source / target
    scaled = [value * ratio for value in map(int, pts)]
    rounded = [int(abs(value) + Fraction(1, 2)) * (1 if value >= 0 else -1) for value in scaled]
    return np.array(rounded, dtype=np.int64), all(a == b for a, b in zip(scaled, rounded, strict=True))
