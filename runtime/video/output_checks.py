"""What can be known of an output file before anything is computed: its place, its clock, its colours.

Each check raises in one sentence: InputError for what the user can mend, MachineError for the machine.
"""

import os
import shutil
from collections.abc import Iterator
from fractions import Fraction
from itertools import count
from pathlib import Path

import numpy as np

from fairy.kernels.errors import InputError, MachineError
from fairy.runtime.files import settled
from fairy.runtime.video import formats, timing
from fairy.runtime.video.info import BT601, BT709, Clock, ColorTags, VideoInfo, exact_rate

_TICKS = {"ms": Fraction(1, 1000), "10ms": Fraction(1, 100), "90kHz": Fraction(1, 90000)}


def check_numbers(width: int, height: int, crf: int) -> None:
    if width < 1 or height < 1:
        raise InputError(f"A video cannot be {width}×{height} pixels.")
    if not 0 <= crf <= 51:
        raise InputError(f"The quality crf = {crf} is outside 0 (best) to 51 (smallest).")


def check_place(path: Path, source: VideoInfo | None) -> None:
    folder = settled(path).parent
    if not folder.is_dir():
        raise InputError(f"The folder {folder} for {path.name} does not exist; make it first.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file.")
    if source is not None and path.exists() and path.samefile(source.path):
        raise InputError(f"{path} is the input file; write to another name.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"The folder {folder} cannot be written to: permission denied.")


def check_space(path: Path, samples: int) -> None:
    """Against a low estimate, 0.04 bit per pixel: only what cannot fit is refused."""
    needed, free = (1 << 20) + samples // 200, shutil.disk_usage(settled(path).parent).free
    if free < needed:
        raise MachineError(
            f"{path.parent} has {free / 1e6:.1f} MB free, and {path.name} needs at least {needed / 1e6:.1f} MB."
        )


def proper_part(source: VideoInfo | None, span: tuple[int, int] | None) -> tuple[int, int] | None:
    """The range of the source's frames, None for all of them."""
    if span is None:
        return None
    if source is None:
        raise InputError("A range of frames needs the source that it is a range of.")
    start, stop = span
    if not 0 <= start < stop <= source.num_frames:
        raise InputError(f"Frames {start} to {stop} are not a part of the source's {source.num_frames} frames.")
    return None if (start, stop) == (0, source.num_frames) and not source.ends_early else span


def source_clock(source: VideoInfo | None, span: tuple[int, int] | None) -> Clock:
    if source is None:
        raise InputError("The frames have no clock of their own; give fps.")
    return source.clock.cut(*span).shifted() if span else source.clock


def seconds(source: VideoInfo, span: tuple[int, int]) -> tuple[Fraction, Fraction]:
    part = source.clock.cut(*span)
    return int(part.pts[0]) * part.time_base, part.end * part.time_base


def frame_rate(clock: Clock | None, fps: Fraction | float | None, source: VideoInfo | None, path: Path) -> Fraction:
    """The constant or mean rate; for a container that knows only rates the clock must have one."""
    if clock is None:
        if fps is None or not 0 < fps <= 1000:
            raise InputError(f"Fps must be above 0 and at most 1000, not {fps}.")
        return exact_rate(fps)
    hint = source.frame_rate if source else None
    constant = timing.constant_rate(clock.pts, clock.time_base, (hint,))
    if constant is None and formats.output_format(path).clock == "rate" and len(clock.pts) > 1:
        raise InputError(f"{path} cannot hold a variable frame rate; write .mp4 or .mkv instead.")
    mean = constant or timing.mean_rate(clock.pts, clock.time_base)
    return mean or 1 / (clock.last_duration * clock.time_base)


def is_steady(clock: Clock, rate: Fraction) -> bool:
    """Whether every frame, the last one too, stays equally long, rounding apart."""
    edges = np.append(clock.pts, clock.end)
    return timing.constant_rate(edges, clock.time_base, (rate,)) is not None


def container_time_base(clock: Clock | None, rate: Fraction, into: formats.Output) -> Fraction:
    if into.clock in _TICKS:
        return _TICKS[into.clock]
    return clock.time_base if clock is not None and into.clock == "any" else 1 / rate


def fit_clock(
    clock: Clock | None, rate: Fraction, into: formats.Output, path: Path
) -> tuple[Iterator[tuple[int, int]], list[str]]:
    """Each frame's (pts, duration) in the container's clock, and what that changed."""
    base = container_time_base(clock, rate, into)
    if clock is None:
        step = 1 / (rate * base)
        return ((round(i * step), round((i + 1) * step) - round(i * step)) for i in count()), []
    if into.clock == "rate":
        note = [] if clock.pts[0] == 0 else [f"{into.title} keeps no start time; the video begins at 0."]
        return ((i, 1) for i in range(len(clock.pts))), note
    edges, exact = timing.rescale(np.append(clock.pts, clock.end), clock.time_base, base)
    steps = np.diff(edges)
    if np.any(steps < 1):
        raise InputError(f"{path} cannot hold frames less than {float(base) * 1000:g} ms apart; write .mp4 instead.")
    notes = [] if exact else [f"{into.title} counts time in units of {base} s; the time stamps are rounded to it."]
    return zip(edges[:-1].tolist(), steps.tolist(), strict=True), notes


def has_company(source: VideoInfo, into: formats.Output) -> bool:
    """Whether a source has anything beside its pictures that the container could hold."""
    return source.container != "webp" and not into.pictures_only


def company_notes(source: VideoInfo | None, into: formats.Output) -> list[str]:
    """What of the source is left out because the container holds pictures alone."""
    lost = source is not None and into.pictures_only and (source.audio or source.other)
    return [f"{into.title} holds no sound and no subtitles; the source's are left out."] if lost else []


def pixel_notes(width: int, height: int, source: VideoInfo | None, pixels: str) -> list[str]:
    """What is worth knowing where the pictures are not, or no longer, what every player shows: 4:2:0."""
    if (width % 2 or height % 2) and pixels == "yuv444p":
        return [
            f"A side of {width}×{height} is odd, so the file is written as 4:4:4, which phones, Safari and QuickTime "
            "do not play; another long_side (--long-side), or size = source, may help."
        ]
    fuller = source is not None and any(kind in source.pix_fmt for kind in ("422", "444", "440", "rgb", "gbr", "bgr"))
    fewer = "420" in pixels
    return [f"The source's colours ({source.pix_fmt}) are written as 4:2:0."] if source and fuller and fewer else []


def shape_notes(source: VideoInfo | None, encoder: str, into: formats.Output) -> list[str]:
    """What codecs do not say of the shape of their pixels, Matroska's own field could, but not through PyAV."""
    shape = source.sample_aspect_ratio if source else Fraction(1)
    silent = {"libvpx-vp9": "VP9", "libsvtav1": "AV1", "prores_ks": "ProRes"}.get(encoder)
    if shape == 1 or silent is None or into.muxer not in ("webm", "matroska"):
        return []
    other = "write .mp4 or .mkv" if silent == "VP9" else "choose another codec or container"
    return [f"The shape of the source's pixels, {shape}, cannot be kept with {silent} in {into.title}; {other}."]


def choose_color(color: ColorTags | None, source: VideoInfo | None, height: int) -> ColorTags:
    if color is not None:
        return color
    return source.color if source else (BT709 if height >= 720 else BT601)
