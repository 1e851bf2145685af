"""Writes a video file through the encoding helper; the file appears under its name only when it is whole."""

import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from dataclasses import asdict
from fractions import Fraction
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fairy.kernels.errors import InputError, MachineError
from fairy.runtime.video import formats, timing
from fairy.runtime.video.info import BT601, BT709, MAX_PIXELS, Clock, ColorTags, VideoInfo, exact_rate
from fairy.runtime.video.wire import Message
from fairy.runtime.video.worker import DEADLINE_S, Worker

_SLOWEST_DISK_BYTES_PER_S = 20e6
_TICKS = {"ms": Fraction(1, 1000), "90kHz": Fraction(1, 90000)}


class VideoWriter:
    """Encodes frames in order into `path`; a context manager that leaves nothing behind after an exception.

    The clock is `clock`, else `fps`, else that of the source's frames `source_range` = (start, stop). With a
    source its sound, subtitles and titles are copied; a proper part of it starts at 0. Whatever can be refused
    is refused by the constructor: InputError for what the user can mend, MachineError for the machine.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        width: int,
        height: int,
        clock: Clock | None = None,
        fps: Fraction | float | None = None,
        source: VideoInfo | None = None,
        source_range: tuple[int, int] | None = None,
        color: ColorTags | None = None,
        crf: int = 18,
        codec: str | None = None,
        max_pixels: int = MAX_PIXELS,
        cancel: threading.Event | None = None,
    ) -> None:
        self.path, self._shape, self._written = Path(path), (height, width, 3), 0
        self._worker: Worker | None = None
        self._format = formats.output_format(self.path)
        encoder = formats.encoder_for(codec, self._format)
        _check_numbers(width, height, crf)
        _check_place(self.path, source)
        span = _proper_part(source, source_range)
        clock = clock if clock is not None or fps is not None else _source_clock(source, span)
        rate = _rate(clock, fps, source, self.path)
        self._ticks, self.notes = _fit_clock(clock, rate, self._format, self.path)
        self._num_frames = None if clock is None else len(clock.pts)
        _check_space(self.path, width * height * (self._num_frames or 1))
        request = {
            "path": str(self.path),
            "width": width,
            "height": height,
            "encoder": encoder,
            "crf": crf,
            "rate": str(rate.limit_denominator(1 << 16)),
            "time_base": str(_time_base(clock, rate, self._format)),
            "color": asdict(_color(color, source, height)),
            "sample_aspect_ratio": str(source.sample_aspect_ratio if source else 1),
            "source": str(source.path) if source else None,
            "span": [str(t) for t in _seconds(source, span)] if source and span else None,
            "max_pixels": max_pixels,
        }
        self._part = _make_part(self.path)
        try:
            self._worker = self._start(request, cancel)
        except BaseException:
            self._part.unlink(missing_ok=True)
            raise

    @property
    def pid(self) -> int | None:
        """The helper's process, None once it has ended."""
        return None if self._worker is None else self._worker.pid

    def write(self, frames: NDArray[np.uint8]) -> None:
        """The next frames, uint8 RGB [N, H, W, 3] or one [H, W, 3]."""
        frames = frames[None] if frames.ndim == 3 else frames
        if frames.dtype != np.uint8 or frames.shape[1:] != self._shape:
            raise ValueError(f"frames must be uint8 [N, {self._shape}], not {frames.dtype} {frames.shape}")
        try:
            for frame in frames:
                self._write_one(np.ascontiguousarray(frame))
        except BaseException:
            self.abort()
            raise

    def close(self) -> Path:
        """Finishes the file, makes it durable and gives it its name."""
        if self._worker is None:
            return self.path
        try:
            self._finish()
        except BaseException:
            self.abort()
            raise
        self._worker.kill()
        self._worker = None
        return self.path

    def abort(self) -> None:
        """Ends the helper and removes what it wrote; does nothing after `close`."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None
            self._part.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _start(self, request: Message, cancel: threading.Event | None) -> Worker:
        worker = Worker("encoder", f"writing {self.path}", cancel)
        try:
            worker.send(request | {"part": str(self._part.absolute())})
            self.notes += worker.receive()[0]["ready"]
        except BaseException:
            worker.kill()
            raise
        return worker

    def _write_one(self, frame: NDArray[np.uint8]) -> None:
        if self._worker is None:
            raise ValueError(f"{self.path} is already closed")
        if self._worker.pending():
            self._worker.receive()
        if self._written == self._num_frames:
            raise ValueError(f"the clock has {self._num_frames} frames, and one more was written")
        pts, duration = next(self._ticks)
        self._worker.send({"pts": pts, "duration": duration}, frame)
        self._written += 1

    def _finish(self) -> None:
        assert self._worker is not None
        if self._written != (self._num_frames or self._written) or not self._written:
            expected = self._num_frames or "at least 1"
            raise MachineError(f"{self._written} of {expected} frames were written to {self.path}; nothing was kept.")
        self._worker.send({"finish": True})
        patience_s = DEADLINE_S + self._part.stat().st_size / _SLOWEST_DISK_BYTES_PER_S
        done = self._worker.receive(deadline_s=patience_s)[0].get("done")
        if done != self._written:
            raise MachineError(f"The encoder took {done} of {self._written} frames for {self.path}; nothing was kept.")
        _publish(self._part, self.path)


def _check_numbers(width: int, height: int, crf: int) -> None:
    if width < 1 or height < 1:
        raise InputError(f"A video cannot be {width}×{height} pixels.")
    if not 0 <= crf <= 51:
        raise InputError(f"The quality crf = {crf} is outside 0 (best) to 51 (smallest).")


def _check_place(path: Path, source: VideoInfo | None) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"The folder {folder} for {path.name} does not exist; make it first.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file.")
    if source is not None and path.exists() and path.samefile(source.path):
        raise InputError(f"{path} is the input file; write to another name.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"The folder {folder} cannot be written to: permission denied.")


def _check_space(path: Path, samples: int) -> None:
    """Against a low estimate, 0.04 bit per pixel: only what cannot fit is refused."""
    needed, free = (1 << 20) + samples // 200, shutil.disk_usage(path.parent).free
    if free < needed:
        raise MachineError(
            f"{path.parent} has {free / 1e6:.1f} MB free, and {path.name} needs at least {needed / 1e6:.1f} MB."
        )


def _proper_part(source: VideoInfo | None, span: tuple[int, int] | None) -> tuple[int, int] | None:
    """The range of the source's frames, None for all of them."""
    if span is None:
        return None
    if source is None:
        raise InputError("A range of frames needs the source that it is a range of.")
    start, stop = span
    if not 0 <= start < stop <= source.num_frames:
        raise InputError(f"Frames {start} to {stop} are not a part of the source's {source.num_frames} frames.")
    return None if (start, stop) == (0, source.num_frames) else span


def _source_clock(source: VideoInfo | None, span: tuple[int, int] | None) -> Clock:
    if source is None:
        raise InputError("The frames have no clock of their own; give fps.")
    return source.clock.cut(*span).shifted() if span else source.clock


def _seconds(source: VideoInfo, span: tuple[int, int]) -> tuple[Fraction, Fraction]:
    part = source.clock.cut(*span)
    return int(part.pts[0]) * part.time_base, part.end * part.time_base


def _rate(clock: Clock | None, fps: Fraction | float | None, source: VideoInfo | None, path: Path) -> Fraction:
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


def _time_base(clock: Clock | None, rate: Fraction, into: formats.Output) -> Fraction:
    if into.clock in _TICKS:
        return _TICKS[into.clock]
    return clock.time_base if clock is not None and into.clock == "any" else 1 / rate


def _fit_clock(
    clock: Clock | None, rate: Fraction, into: formats.Output, path: Path
) -> tuple[Iterator[tuple[int, int]], list[str]]:
    """Each frame's (pts, duration) in the container's clock, and what that changed."""
    base = _time_base(clock, rate, into)
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


def _color(color: ColorTags | None, source: VideoInfo | None, height: int) -> ColorTags:
    if color is not None:
        return color
    return source.color if source else (BT709 if height >= 720 else BT601)


def _make_part(path: Path) -> Path:
    part = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {(error.strerror or 'unknown reason').lower()}.") from None
    return part


def _publish(part: Path, path: Path) -> None:
    for place, rename in ((part, True), (path.parent, False)):
        fd = os.open(place, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        if rename:
            os.replace(part, path)
