"""When frames between frames are shown."""

from fractions import Fraction

import numpy as np

from fairy.runtime.video import Clock


def finer_clock(clock: Clock, times: int) -> Clock:
    """`times` frames for each: equally far apart between two, and the last one stays as long as its source's did."""
    fine = clock.time_base / times
    pts = clock.pts * times
    steps = np.diff(clock.pts)
    between = (pts[:-1, None] + steps[:, None] * np.arange(times)).reshape(-1)
    return Clock(np.append(between, pts[-1]), fine, clock.last_duration * times)


def places_at_rate(clock: Clock, fps: Fraction) -> tuple[tuple[Fraction, ...], Clock]:
    """Frames at a constant rate from the first one to the last one's end: their places in frames of the clip.

    A frame of the clip that is due within a thousandth of a frame of the new clock is taken as it is.
    """
    first, last = int(clock.pts[0]), int(clock.pts[-1])
    interval = 1 / (fps * clock.time_base)  # in units of the clip's clock
    count = max(1, int((clock.end - first) / interval))
    places, left = [], 0
    for number in range(count):
        time = first + number * interval
        while left + 1 < len(clock.pts) and int(clock.pts[left + 1]) <= time:
            left += 1
        if time >= last:
            places.append(Fraction(len(clock.pts) - 1))
            continue
        share = Fraction(time - int(clock.pts[left])) / int(clock.pts[left + 1] - clock.pts[left])
        near = round(share)
        places.append(Fraction(left + near) if abs(share - near) < Fraction(1, 1000) else left + share)
    start = first * clock.time_base
    base = Fraction(1, fps.numerator * start.denominator)
    pts = [int((start + number / fps) / base) for number in range(count)]
    rest = round((clock.end * clock.time_base - start - (count - 1) / fps) / base)
    return tuple(places), Clock(np.array(pts, np.int64), base, max(1, rest))
