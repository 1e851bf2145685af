"""Writes a video file through the encoding helper; the file appears under its name only when it is whole."""

import os
import secrets
import threading
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fairy.kernels.errors import InputError, MachineError
from fairy.runtime.files import WholeOrNothing, settled, temporary_name
from fairy.runtime.video import formats, output_checks
from fairy.runtime.video.codecs import Encoding
from fairy.runtime.video.helper_process import DEADLINE_S, Worker
from fairy.runtime.video.info import MAX_PIXELS, Clock, ColorTags, VideoInfo
from fairy.runtime.video.wire import Message

_SLOWEST_DISK_BYTES_PER_S = 20e6


class VideoWriter(WholeOrNothing):
    """Encodes frames in order into `path`; a context manager that leaves nothing behind after an exception.

    The clock is `clock`, else `fps`, else that of the source's frames `source_range` = (start, stop). With a
    source its sound, subtitles and titles are copied; a proper part of it starts at 0. How pictures are
    encoded is `Encoding`'s to explain; `alpha`: frames are [H, W, 4] and say how opaque they are. Whatever can
    be refused is refused by the constructor: InputError for what the user can mend, MachineError for the machine.
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
        lossless: bool = False,
        pixel_format: str | None = None,
        bit_depth: int = 8,
        alpha: bool = False,
        max_pixels: int = MAX_PIXELS,
        cancel: threading.Event | None = None,
    ) -> None:
        self.path, self._shape, self._written = Path(path), (height, width, 4 if alpha else 3), 0
        self._worker: Worker | None = None
        self._format = formats.output_format(self.path)
        encoding = Encoding(codec, crf, lossless, pixel_format, bit_depth)
        encoder, pixels = encoding.settle(self._format, width, height)
        pixels = (encoding.clear(self._format, width, height) if alpha else None) or pixels
        output_checks.check_numbers(width, height, crf)
        output_checks.check_place(self.path, source)
        span = output_checks.proper_part(source, source_range)
        clock = clock if clock is not None or fps is not None else output_checks.source_clock(source, span)
        rate = output_checks.frame_rate(clock, fps, source, self.path)
        self._ticks, self.notes = output_checks.fit_clock(clock, rate, self._format, self.path)
        self.notes += output_checks.pixel_notes(width, height, source, pixels)
        self.notes += output_checks.company_notes(source, self._format)
        self.notes += output_checks.shape_notes(source, encoder, self._format)
        self._num_frames = None if clock is None else len(clock.pts)
        output_checks.check_space(self.path, width * height * (self._num_frames or 1))
        request = {
            "path": str(self.path),
            "width": width,
            "height": height,
            "encoder": encoder,
            "pixels": pixels,
            "channels": self._shape[2],
            "lossless": lossless,
            "crf": crf,
            "rate": str(rate.limit_denominator(1 << 16)),
            "steady": clock is None or output_checks.is_steady(clock, rate),
            "time_base": str(output_checks.container_time_base(clock, rate, self._format)),
            "color": asdict(output_checks.choose_color(color, source, height)),
            "sample_aspect_ratio": str(source.sample_aspect_ratio if source else 1),
            "source": str(source.path) if source and output_checks.has_company(source, self._format) else None,
            "span": [str(t) for t in output_checks.seconds(source, span)] if source and span else None,
            "zero_s": str(source.zero_s if source else 0),
            "max_pixels": max_pixels,
        }
        self._target = settled(self.path)
        self._part = _make_part(self._target)
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
        """The next frames, uint8 RGB [N, H, W, 3] or one [H, W, 3]; with `alpha` four channels."""
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
        patience_s = DEADLINE_S + _size_bytes(self._part) / _SLOWEST_DISK_BYTES_PER_S
        told = self._worker.receive(deadline_s=patience_s)[0]
        done = told.get("done")
        self.notes += told.get("notes", [])
        if done != self._written:
            raise MachineError(f"The encoder took {done} of {self._written} frames for {self.path}; nothing was kept.")
        _publish(self._part, self._target)


def _size_bytes(part: Path) -> int:
    """0 where the helper has failed and removed it; its own sentence is about to be read."""
    try:
        return part.stat().st_size
    except OSError:
        return 0


def _make_part(path: Path) -> Path:
    part = path.with_name(temporary_name(path, f".{secrets.token_hex(4)}.part{path.suffix}"))
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
