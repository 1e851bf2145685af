"""What is known about a video: its frames' clock, its colours, its streams."""

from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairy.kernels.errors import InputError

MAX_PIXELS = 36_000_000
"""Default limit on width × height; also sizes the memory that a decoding helper may take."""


@dataclass(frozen=True, slots=True)
class ColorTags:
    """How YUV values stand for colours; the integers of ISO/IEC 23091-2 (H.273), 2 = unspecified."""

    matrix: int
    primaries: int
    transfer: int
    full: bool = False
    """True: luma 0…255 (JPEG); False: 16…235 (video)."""


BT709 = ColorTags(matrix=1, primaries=1, transfer=1)
BT601 = ColorTags(matrix=6, primaries=6, transfer=6)


@dataclass(frozen=True, slots=True)
class Reading:
    """How a file is read.

    Attributes:
        deinterlace: make whole pictures of the fields of interlaced video, as many as there are frames.
        tonemap: bring high dynamic range to BT.709; it is refused otherwise.
        strict: refuse a file in which anything is damaged.
        start_s, end_s: seconds from the first frame between which damage matters; beyond `end_s` little is looked at.
    """

    deinterlace: bool = False
    tonemap: bool = False
    strict: bool = False
    start_s: float = 0.0
    end_s: float | None = None


AS_IT_IS = Reading()


@dataclass(frozen=True, slots=True, eq=False)
class Clock:
    """When each frame is shown: pts [N] int64, strictly increasing, in units of `time_base` seconds."""

    pts: NDArray[np.int64]
    time_base: Fraction
    last_duration: int = 0
    """How long the last frame stays, in units of `time_base`; 0: as long as the one before it."""

    def __post_init__(self) -> None:
        pts = np.array(self.pts, dtype=np.int64)
        steps = np.diff(pts)
        if not pts.size or np.any(steps < 1) or self.time_base <= 0 or self.last_duration < 0:
            raise InputError("A clock needs strictly increasing time stamps and a time base above 0.")
        pts.flags.writeable = False
        object.__setattr__(self, "pts", pts)
        usual = int(steps[-1]) if steps.size else 1
        object.__setattr__(self, "last_duration", self.last_duration or usual)

    @classmethod
    def constant(cls, num_frames: int, fps: Fraction | float) -> "Clock":
        """Frame i at i / fps seconds."""
        return cls(np.arange(num_frames, dtype=np.int64), 1 / exact_rate(fps), 1)

    def cut(self, start: int, stop: int) -> "Clock":
        """The clock of frames start … stop − 1, unshifted."""
        last = self.pts[stop] - self.pts[stop - 1] if stop < len(self.pts) else self.last_duration
        return Clock(self.pts[start:stop], self.time_base, int(last))

    def shifted(self) -> "Clock":
        """The same clock with its first frame at 0."""
        return Clock(self.pts - self.pts[0], self.time_base, self.last_duration)

    @property
    def end(self) -> int:
        """When the last frame ends, in units of `time_base`."""
        return int(self.pts[-1]) + self.last_duration


def exact_rate(fps: Fraction | float) -> Fraction:
    """Frames per second as a fraction; 29.97 and its kin are meant as n·1000/1001."""
    if isinstance(fps, Fraction | int):
        return Fraction(fps)
    ntsc = Fraction(round(fps * 1.001) * 1000, 1001)
    return ntsc if fps != round(fps) and abs(float(ntsc) - fps) < 0.005 else Fraction(fps).limit_denominator(1001)


@dataclass(frozen=True, slots=True, eq=False)
class VideoInfo:
    """What one full decoding pass found in a video file."""

    path: Path
    container: str
    codec: str
    pix_fmt: str
    bit_depth: int
    width: int
    """As shown: after rotation."""
    height: int
    rotation: int
    """Degrees counter-clockwise that reading bakes into the frames: 0, 90, 180 or 270."""
    flipped: bool
    """True where the file also asks for a mirror image, which reading bakes in before the rotation."""
    num_frames: int
    pts: NDArray[np.int64]
    time_base: Fraction
    last_duration: int
    frame_rate: Fraction | None
    """The constant rate, else the mean one; None where a single frame leaves it unknown."""
    variable_frame_rate: bool
    color: ColorTags
    color_assumed: bool
    """True where the file leaves its colour matrix unsaid and the 601/709 rule was applied."""
    sample_aspect_ratio: Fraction
    """Width : height of one pixel as shown."""
    audio: tuple[str, ...]
    other: tuple[str, ...]
    notes: tuple[str, ...]
    zero_s: Fraction = Fraction(0)
    """The time in the file's own clock that is 0 of `pts`, in seconds: where MPEG-TS began to count."""
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Pixels at the left, right, top and bottom of the coded picture that the container asks not to show."""
    reading: Reading = AS_IT_IS
    ends_early: bool = False
    """True where the file goes on after the last frame that was looked at."""
    mended: bool = False
    """True where something could not be decoded: one thread reads it, for several mend by chance."""
    has_alpha: bool = False
    """Whether its pictures may be transparent."""
    keys: tuple[int, ...] = ()
    """Frames at which decoding can begin, where the container finds them exactly."""

    @property
    def clock(self) -> Clock:
        return Clock(self.pts, self.time_base, self.last_duration)

    @property
    def halves_colour(self) -> bool:
        """Whether the pictures are 4:2:0 with even sides: what every player shows, and what is kept so."""
        is_420 = self.pix_fmt.startswith(("yuv420", "yuvj420", "yuva420", "nv12", "nv21", "p010", "p016"))
        return is_420 and not (self.width % 2 or self.height % 2)

    @property
    def start_s(self) -> float:
        return float(int(self.pts[0]) * self.time_base)

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return float((self.clock.end - int(self.pts[0])) * self.time_base)

    def to_json(self) -> dict[str, Any]:
        """Everything but the single time stamps, in JSON's types."""
        plain = {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name not in _INNER}
        return plain | {"start_s": self.start_s, "duration_s": self.duration_s}


_INNER = ("pts", "zero_s", "crop", "reading", "ends_early", "keys")


def _plain(value: Any) -> Any:
    if isinstance(value, Fraction | Path):
        return str(value)
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, ColorTags):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    return value
