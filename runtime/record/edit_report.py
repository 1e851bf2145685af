"""What an edit gives back: frames, and a report of how they came about."""

import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from fairy.runtime.files import check_outputs, user_path, write_atomically
from fairy.runtime.inputs.frames import Frames, Source
from fairy.runtime.plan.file_request import DEFAULT_CRF, check_clock, check_encoding, check_fps
from fairy.runtime.record.transparency import WithAlpha
from fairy.runtime.video import Clock, VideoWriter
from fairy.runtime.video.codecs import FOLDERS, Encoding
from fairy.runtime.video.formats import output_format
from fairy.runtime.video.picture_folder import PictureFolder

_GAP = 4  # pixels of the line between pictures beside each other


class FrameWriter(Protocol):
    """What takes edited frames: a context manager, whose end makes the file or the folder appear."""

    notes: list[str]

    def write(self, frames: Frames) -> None:
        """The next frames, uint8 [n, height, width, 3]."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class EditPart:
    """Consecutive edited frames.

    Attributes:
        start: number of the first one, counted from the first edited frame.
        frames: uint8 [n, height, width, 3], RGB.
        pts: their time stamps in units of the source's time base; None where the source has no clock.
    """

    start: int
    frames: Frames
    pts: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class EditReport:
    """How an edit was done.

    Attributes:
        source: what the input was found to be.
        params: every parameter as it was really used.
        model, backend, device, precision, threads: what ran, where and how; threads are those of the CPU.
        workers: how many processes computed; lost_workers: those that ended before the job did, and why, in sentences;
            redone_batches: micro-batches that others did again for them. resumed_batches: those that an interrupted
            edit had finished.
        anchors: frame numbers of the anchors, counted from the first edited frame.
        micro_batch: frames denoised at once.
        segments: what was edited by one instruction against its own anchors: start, stop, prompt, anchors (in frames).
        num_frames, width, height: of the result, in pixels.
        times_ms: wall time by stage, that of several workers added up; "first_frame" is the time until the first
            edited frame was ready.
        bank_bytes: size of the anchor bank.
        fallbacks: what could not be done as asked and was done otherwise, in sentences.
        notes: what else the user should know about input and output, in sentences.
        engine_digests: digest of every built engine that ran, by graph; empty where none was built beforehand.
        steps: names of the steps of the compiled path that ran; none with other backends.
        frames_sha256: of the edited frames' bytes, in order.
        versions: of fairy and the libraries that decide the result.
        controls: ControlNets, adapters and an IP-Adapter that guided: name, kind, digest of the weights, what it saw,
            scale.
    """

    source: dict[str, Any]
    params: dict[str, Any]
    model: str
    backend: str
    device: str
    precision: str
    threads: int
    workers: int
    lost_workers: tuple[str, ...]
    redone_batches: int
    resumed_batches: int
    anchors: tuple[int, ...]
    micro_batch: int
    segments: tuple[dict[str, Any], ...]
    num_frames: int
    width: int
    height: int
    times_ms: dict[str, float]
    bank_bytes: int
    fallbacks: tuple[str, ...]
    notes: tuple[str, ...]
    engine_digests: dict[str, str]
    steps: tuple[str, ...]
    frames_sha256: str
    versions: dict[str, str]
    controls: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)

    def save(self, path: str | Path) -> None:
        """Write the report as a JSON file, whole or not at all."""
        text = json.dumps(self.to_json(), indent=2, default=str) + "\n"
        write_atomically(user_path(path), text.encode())


@dataclass(frozen=True, slots=True)
class EditResult:
    """A whole edited video in memory.

    Attributes:
        frames: uint8 [T, height, width, 3], RGB.
        report: how it was done.
        source: where it came from; what `save` takes sound, time stamps and colour tags from.
    """

    frames: Frames
    report: EditReport
    source: Source

    def save(
        self,
        path: str | Path,
        *,
        fps: float | Fraction | None = None,
        crf: int = DEFAULT_CRF,
        codec: str | None = None,
        lossless: bool = False,
        pixel_format: str | None = None,
        bit_depth: int = 8,
    ) -> Path:
        """Write a video file, with the source's sound, time stamps and colour tags where it has some.

        Args:
            path: the file; its ending says the container.
            fps: frames per second; required where the source has no clock, refused where it has one.
            crf: constant rate factor of the encoder, 0 (best) to 51.
            codec, lossless, pixel_format, bit_depth: as in `Editor.edit_file`.

        Raises:
            InputError: the file cannot be written as asked; MachineError: the disk is full. No partial file is left.
        """
        target, rate = user_path(path), check_fps(fps)
        encoding = check_encoding(codec, crf, lossless, pixel_format, bit_depth)
        if codec not in FOLDERS or rate is not None:
            check_clock(has_clock=self.source.clock is not None, fps=rate)
        video = self.source.video
        check_outputs({"out": target}, None if video is None else video.path)
        height, width = self.frames.shape[1:3]
        how: dict[str, Any] = {"width": width, "height": height, "fps": rate, "encoding": encoding, "alpha": True}
        with open_writer(target, self.source, **how) as writer:
            for start in range(0, len(self.frames), 16):
                writer.write(self.frames[start : start + 16])
        return target


def open_writer(
    path: Path,
    source: Source,
    *,
    width: int,
    height: int,
    fps: Fraction | None,
    encoding: Encoding,
    cancel: threading.Event | None = None,
    clock: Clock | None = None,
    alpha: bool = False,
) -> FrameWriter:
    """A writer for the edited frames of `source`; refuses, before anything is computed, what cannot be written.

    Args:
        clock: when the frames are shown, if they are others than the source's.
        alpha: also carry the source's transparency, where it has some and the target can hold it.
    """
    clear = alpha and source.has_alpha and clock is None
    holds = encoding.codec in FOLDERS or (clear and encoding.clear(output_format(path), width, height) is not None)
    how: dict[str, Any] = {"width": width, "height": height, "fps": fps, "encoding": encoding, "cancel": cancel}
    writer = _open(path, source, **how, clock=clock, alpha=clear and holds)
    if clear and holds:
        return WithAlpha(writer, source)
    if alpha and source.has_alpha:
        writer.notes.append(f"The source's transparency is not carried into {path.name}.")
    return writer


def _open(
    path: Path,
    source: Source,
    *,
    width: int,
    height: int,
    fps: Fraction | None,
    encoding: Encoding,
    cancel: threading.Event | None,
    clock: Clock | None,
    alpha: bool,
) -> PictureFolder | VideoWriter:
    """What writes frames of three channels, or with `alpha` of four."""
    video, times = source.video, clock or source.clock or Clock.constant(source.num_frames, fps or 1)
    if encoding.codec in FOLDERS:
        return PictureFolder(path, kind=str(encoding.codec), num_frames=len(times.pts), cancel=cancel)
    return VideoWriter(
        path,
        width=width,
        height=height,
        clock=times,
        source=video,
        source_range=None if video is None else (source.first, source.first + source.num_frames),
        crf=encoding.crf,
        codec=encoding.codec,
        lossless=encoding.lossless,
        pixel_format=encoding.pixel_format,
        bit_depth=encoding.bit_depth,
        alpha=alpha,
        max_pixels=source.max_pixels,
        cancel=cancel,
    )


def side_by_side(source: Frames, edited: Frames) -> Frames:
    """Source and result with a black line between: two times uint8 [n, H, W, 3] to [n, H, side_by_side_width(W), 3]."""
    gap = side_by_side_width(edited.shape[2]) - 2 * edited.shape[2]
    line = np.zeros((*edited.shape[:2], gap, 3), dtype=np.uint8)
    return np.concatenate([source, line, edited], axis=2)


def side_by_side_width(width: int) -> int:
    """Pixels of two pictures of that width beside each other, with the line between them."""
    return 2 * width + _GAP


def contact_sheet(rows: Sequence[Sequence[Frames]]) -> Frames:
    """Rows of pictures [H, W, 3] of one size, with black lines between and where a row is shorter."""
    height, width = rows[0][0].shape[:2]
    most = max(map(len, rows))
    sheet = np.zeros((len(rows) * (height + _GAP) - _GAP, most * (width + _GAP) - _GAP, 3), dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + _GAP), j * (width + _GAP)
            sheet[top : top + height, left : left + width] = picture
    return sheet


def installed_versions() -> dict[str, str]:
    """Of fairy and the libraries that decide the result."""
    return {name: _version(name) for name in ("fairy-runtime", "torch", "diffusers", "av")}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
