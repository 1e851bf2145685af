"""Reads video files through the decoding helper: `probe` once, then `read_frames` as often as needed."""

import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fairy.kernels.errors import InputError, MachineError
from fairy.runtime.video import timing
from fairy.runtime.video.helper_process import Worker
from fairy.runtime.video.info import AS_IT_IS, MAX_PIXELS, ColorTags, Reading, VideoInfo
from fairy.runtime.video.wire import Message

_LEAD_FRAMES, _WORTH_FRAMES = 2, 50
"""Filters look at neighbours; fewer frames are decoded sooner than skipped."""
_PTS_LIMIT_BYTES = 1 << 31
_MOST_FPS, _USUAL_FPS = 1000, 25
"""Of a single frame some containers tell the rate of their clock, 90 000; then it stays as long as is usual."""


def probe(
    path: str | Path,
    *,
    max_pixels: int = MAX_PIXELS,
    cancel: threading.Event | None = None,
    on_progress: Callable[[int], None] | None = None,
    reading: Reading = AS_IT_IS,
) -> VideoInfo:
    """Decodes the whole file once, because headers lie, and says what is in it.

    `on_progress` is called now and then with the number of frames found so far; `reading` says how the file is read,
    by `read_frames` too. Raises InputError, in one
    sentence, for whatever is not a whole video that can be edited.
    """
    path = Path(path)
    worker = _start(path, max_pixels, cancel, {"do": "probe", "reading": asdict(reading)})
    try:
        while True:
            message, payload = worker.receive(_PTS_LIMIT_BYTES)
            if "found" in message:
                return _info(path, message["found"], np.frombuffer(payload, dtype=np.int64), reading)
            if on_progress is not None:
                on_progress(int(message["at"]))
    finally:
        worker.kill()


def read_frames(
    info: VideoInfo,
    start: int = 0,
    stop: int | None = None,
    *,
    indices: Collection[int] | None = None,
    max_pixels: int = MAX_PIXELS,
    cancel: threading.Event | None = None,
    alpha: bool = False,
) -> Iterator[NDArray[np.uint8]]:
    """The frames start … stop − 1, or those of `indices`, in ascending order: uint8 RGB [H, W, 3], as shown.

    `alpha`: how opaque they are instead, [H, W, 1].
    A few frames are in memory at a time; closing the generator ends the helper.
    """
    wanted = choose(info.num_frames, start, stop, indices)
    if not wanted.size:
        return
    request = {
        "do": "read",
        "alpha": alpha,
        "color": asdict(info.color),
        "rotation": info.rotation,
        "flipped": info.flipped,
        "crop": info.crop,
        "mended": info.mended,
        "reading": asdict(info.reading),
        "zero": int(info.zero_s / info.time_base),
        "seek": _seek(info, int(wanted[0])),
    }
    worker = _start(info.path, max_pixels, cancel, request, wanted)
    try:
        for index in wanted:
            yield _picture(worker, info, int(index), 1 if alpha else 3)
    finally:
        worker.kill()


def _seek(info: VideoInfo, first: int) -> tuple[int, int, int] | None:
    """Number and time of the frame at which decoding may begin, and the time of the first one that is wanted.

    A frame can refer to pictures before the last one that is complete in itself, so it is the one before that.
    """
    before = [key for key in info.keys if key <= first - _LEAD_FRAMES]
    if len(before) < 2 or before[-2] < _WORTH_FRAMES:
        return None
    zero = int(info.zero_s / info.time_base)
    return before[-2], int(info.pts[before[-2]]) + zero, int(info.pts[first]) + zero


def choose(num_frames: int, start: int, stop: int | None, indices: Collection[int] | None) -> NDArray[np.int64]:
    """The wanted frames in ascending order, checked against the number there is."""
    if indices is not None:
        wanted = np.unique(np.asarray(list(indices), dtype=np.int64))
    else:
        wanted = np.arange(start, num_frames if stop is None else stop, dtype=np.int64)
    for index in wanted[:1], wanted[-1:]:
        if index.size and not 0 <= index[0] < num_frames:
            raise InputError(f"Frame {index[0]} was asked for, but the video has frames 0 to {num_frames - 1}.")
    return wanted


def _start(
    path: Path,
    max_pixels: int,
    cancel: threading.Event | None,
    request: Message,
    payload: NDArray[np.int64] | bytes = b"",
) -> Worker:
    worker = Worker("decoder", f"reading {path}", cancel)
    try:
        worker.send(request | {"path": str(path), "max_pixels": max_pixels}, payload)
    except BaseException:
        worker.kill()
        raise
    return worker


def _picture(worker: Worker, info: VideoInfo, index: int, channels: int) -> NDArray[np.uint8]:
    changed = f"{info.path} changed while it was being read (frame {index} is not what it was); start again."
    shape = (info.height, info.width, channels)
    while True:
        message, payload = worker.receive(int(np.prod(shape)))
        if "at" in message:
            continue
        if (message.get("frame"), message.get("pts")) != (index, int(info.pts[index])):
            raise MachineError(changed)
        if tuple(message["shape"]) != shape or len(payload) != np.prod(shape):
            raise MachineError(changed)
        return np.frombuffer(payload, dtype=np.uint8).reshape(shape)


def _info(path: Path, found: Message, numbers: NDArray[np.int64], reading: Reading) -> VideoInfo:
    pts, keys = np.split(numbers, [len(numbers) - found.pop("keys")])
    pts.flags.writeable = False
    time_base = Fraction(found.pop("time_base"))
    hints = tuple(rate for rate in map(Fraction, found.pop("rates")) if rate <= _MOST_FPS)
    constant = timing.constant_rate(pts, time_base, hints)
    last = int(found.pop("last_duration"))
    if not last or (len(pts) == 1 and last * time_base * _MOST_FPS < 1 and found["container"] == "mpegts"):
        last = _usual_step(pts, time_base, constant)
    return VideoInfo(
        path=path,
        num_frames=len(pts),
        pts=pts,
        time_base=time_base,
        zero_s=int(found.pop("zero")) * time_base,
        last_duration=last,
        frame_rate=constant or timing.mean_rate(pts, time_base),
        variable_frame_rate=constant is None and len(pts) > 1,
        color=ColorTags(**found.pop("color")),
        sample_aspect_ratio=Fraction(found.pop("sample_aspect_ratio")),
        audio=tuple(found.pop("audio")),
        other=tuple(found.pop("other")),
        notes=tuple(found.pop("notes")),
        crop=tuple(found.pop("crop")),
        reading=reading,
        keys=tuple(map(int, keys)),
        **found,
    )


def _usual_step(pts: NDArray[np.int64], time_base: Fraction, rate: Fraction | None) -> int:
    """How long a frame stays where the file does not say it of the last one."""
    if rate:
        return max(1, round(1 / (rate * time_base)))
    return max(1, int(np.median(np.diff(pts))) if len(pts) > 1 else round(1 / (_USUAL_FPS * time_base)))
