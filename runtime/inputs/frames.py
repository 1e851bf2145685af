"""Where frames come from: a video file, a folder of images, or an array."""

import threading
from collections.abc import Collection, Generator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from fairy.kernels.errors import InputError
from fairy.runtime.files import user_path
from fairy.runtime.record.progress import Monitor
from fairy.runtime.video import (
    MAX_PIXELS,
    Clock,
    ImageFolderInfo,
    Reading,
    VideoInfo,
    probe,
    probe_images,
    read_frames,
    read_images,
)
from fairy.runtime.video.images import TRANSPARENT, read_alphas

Frames = np.ndarray[Any, np.dtype[np.uint8]]
VideoInput = str | Path | Frames | torch.Tensor


class Source(Protocol):
    """A sequence of frames of one size that can be read again and again."""

    @property
    def num_frames(self) -> int:
        """How many frames are edited."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as shown, in pixels."""
        ...

    @property
    def clock(self) -> Clock | None:
        """Time stamps of the frames; None where the source has none."""
        ...

    @property
    def video(self) -> VideoInfo | None:
        """What is known of the file they come from; None for folders and arrays."""
        ...

    @property
    def first(self) -> int:
        """Number of the first edited frame in that file."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the report."""
        ...

    @property
    def max_pixels(self) -> int:
        """The largest picture that is read, width times height."""
        ...

    @property
    def has_alpha(self) -> bool:
        """Whether its frames may be transparent."""
        ...

    def read(self, indices: Collection[int] | None = None) -> Generator[Frames, None, None]:
        """All frames, or those of the given numbers, in order: uint8 [height, width, 3], RGB. Close it when done."""
        ...

    def read_alpha(self) -> Generator[Frames, None, None]:
        """How opaque all frames are, in order: uint8 [height, width, 1]. Close it when done."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the report says about it."""
        ...


class ReadParams(Protocol):
    """What of a job's parameters says how its input is read."""

    @property
    def start(self) -> float | None:
        """Seconds at which the part begins that is read; None = at the beginning."""
        ...

    @property
    def end(self) -> float | None:
        """Seconds before which it ends; None = at the end."""
        ...

    @property
    def deinterlace(self) -> bool:
        """Whether whole pictures are made of fields."""
        ...

    @property
    def hdr(self) -> str:
        """What becomes of high dynamic range: refuse or tonemap."""
        ...

    @property
    def strict(self) -> bool:
        """Whether damage is refused."""
        ...

    @property
    def max_pixels(self) -> int:
        """The largest picture that is decoded, width times height."""
        ...


def open_source(video: VideoInput, params: ReadParams, monitor: Monitor) -> Source:
    """Look through the input once and say what it is.

    Raises:
        InputError: it is none of the three kinds, cannot be read, or has no frames in the asked-for range.
    """
    if isinstance(video, (str, Path)):
        path = user_path(video)
        if path.is_dir():
            images = probe_images(path, max_pixels=params.max_pixels, cancel=monitor.cancel)
            return _without_range(_FolderSource(images, params.max_pixels, monitor.cancel), params)
        info = probe(
            path,
            max_pixels=params.max_pixels,
            cancel=monitor.cancel,
            on_progress=lambda done: monitor.tell("probe", done, 0),
            reading=Reading(
                deinterlace=params.deinterlace,
                tonemap=params.hdr == "tonemap",
                strict=params.strict,
                start_s=params.start or 0.0,
                end_s=params.end,
            ),
        )
        monitor.tell("probe", info.num_frames, info.num_frames)
        return _FileSource(info, _frame_range(info, params), params.max_pixels, monitor.cancel)
    if isinstance(video, torch.Tensor):
        if video.dtype != torch.uint8:
            raise InputError(f"Frames must be uint8 [T, H, W, 3], not {video.dtype} {list(video.shape)}.")
        video = video.detach().cpu().numpy()
    if not isinstance(video, np.ndarray):
        raise InputError(f"The video must be a path or uint8 frames [T, H, W, 3], not {type(video).__name__}.")
    return _without_range(_ArraySource(video), params)


class _FileSource:
    """The frames of a video file, or some consecutive ones of them."""

    def __init__(self, info: VideoInfo, kept: range, max_pixels: int, cancel: threading.Event | None) -> None:
        self.video = info
        self.num_frames, self.size, self.first = len(kept), (info.height, info.width), kept.start
        clock = info.clock.cut(kept.start, kept.stop)
        whole = len(kept) == info.num_frames and not info.ends_early
        self.clock = clock if whole else clock.shifted()
        self.notes = info.notes
        self.max_pixels, self._cancel = max_pixels, cancel

    def read(self, indices: Collection[int] | None = None) -> Generator[Frames, None, None]:
        stop = self.first + self.num_frames
        shifted = None if indices is None else [self.first + i for i in indices]
        limits = {"max_pixels": self.max_pixels, "cancel": self._cancel}
        yield from read_frames(self.video, self.first, stop, indices=shifted, **limits)  # type: ignore[arg-type]

    @property
    def has_alpha(self) -> bool:
        return self.video.has_alpha

    def read_alpha(self) -> Generator[Frames, None, None]:
        limits = {"max_pixels": self.max_pixels, "cancel": self._cancel}
        yield from read_frames(self.video, self.first, self.first + self.num_frames, alpha=True, **limits)  # type: ignore[arg-type]

    def describe(self) -> dict[str, Any]:
        return self.video.to_json() | {"first_frame": self.first}


class _ClocklessSource:
    """What folders and arrays have in common."""

    clock = None
    video = None
    first = 0
    notes: tuple[str, ...] = ()
    max_pixels = MAX_PIXELS
    has_alpha = False

    def __init__(self, path: Path | None, num_frames: int, size: tuple[int, int]) -> None:
        self.path, self.num_frames, self.size = path, num_frames, size

    def read_alpha(self) -> Generator[Frames, None, None]:
        """Nothing: all is opaque."""
        yield from ()

    def describe(self) -> dict[str, Any]:
        path = None if self.path is None else str(self.path)
        return {"path": path, "num_frames": self.num_frames, "height": self.size[0], "width": self.size[1]}


class _FolderSource(_ClocklessSource):
    def __init__(self, info: ImageFolderInfo, max_pixels: int, cancel: threading.Event | None) -> None:
        super().__init__(info.path, info.num_frames, (info.height, info.width))
        self._info, self.max_pixels, self._cancel = info, max_pixels, cancel
        self.notes = info.notes
        self.has_alpha = TRANSPARENT in info.notes

    def read(self, indices: Collection[int] | None = None) -> Generator[Frames, None, None]:
        yield from read_images(self._info, indices=indices, max_pixels=self.max_pixels, cancel=self._cancel)

    def read_alpha(self) -> Generator[Frames, None, None]:
        yield from read_alphas(self._info, self._cancel)


class _ArraySource(_ClocklessSource):
    def __init__(self, frames: Frames) -> None:
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise InputError(f"Frames must be uint8 [T, H, W, 3], not {frames.dtype} {list(frames.shape)}.")
        if 0 in frames.shape:
            raise InputError(f"The video has no frames or no pixels: its shape is {list(frames.shape)}.")
        super().__init__(None, len(frames), (frames.shape[1], frames.shape[2]))
        self._frames = frames

    def read(self, indices: Collection[int] | None = None) -> Generator[Frames, None, None]:
        yield from self._frames if indices is None else self._frames[sorted(indices)]


def _frame_range(info: VideoInfo, params: ReadParams) -> range:
    """The frames shown from `start` to before `end`, in seconds from the first frame."""
    if params.start is None and params.end is None:
        return range(info.num_frames)
    seconds = (info.pts - info.pts[0]) * float(info.time_base)
    start = int(np.searchsorted(seconds, (params.start or 0.0) - 1e-9))
    stop = info.num_frames if params.end is None else int(np.searchsorted(seconds, params.end - 1e-9))
    if start >= stop:
        raise InputError(
            f"No frame is shown between start = {params.start or 0:g} s and end = "
            f"{'the end' if params.end is None else f'{params.end:g} s'}; the video lasts {info.duration_s:.2f} s."
        )
    return range(start, stop)


def _without_range(source: Source, params: ReadParams) -> Source:
    if params.start is not None or params.end is not None:
        raise InputError("start and end are seconds, and a folder of images or an array has no clock; leave them out.")
    return source
