"""How a video is cut into the parts that are edited one after another."""

from collections.abc import Collection
from dataclasses import dataclass

_SMALLEST, _LARGEST = 3, 8


@dataclass(frozen=True, slots=True)
class Part:
    """Frames `start` to before `stop` of the video; `frames` are those of them that are not anchors."""

    start: int
    stop: int
    frames: tuple[int, ...]


def default_micro_batch(num_anchors: int) -> int:
    """Frames denoised at once: near the number of anchors, so that phase A and a micro-batch cost alike.

    It must never depend on the length of the video, the number of workers or free memory: the bytes of the result
    depend on the shape of a batch.
    """
    return min(max(num_anchors, _SMALLEST), _LARGEST)


def cut_into_parts(stop: int, anchors: Collection[int], micro_batch: int, *, start: int = 0) -> tuple[Part, ...]:
    """Cut frames `start` to before `stop`, in order, into parts with at most `micro_batch` that are not anchors.

    Every frame is in exactly one part; every part but the last has exactly `micro_batch` such frames.
    """
    parts: list[Part] = []
    frames: list[int] = []
    for frame in range(start, stop):
        if frame in anchors:
            continue
        if len(frames) == micro_batch:
            parts.append(Part(start, frame, tuple(frames)))
            start, frames = frame, []
        frames.append(frame)
    return (*parts, Part(start, stop, tuple(frames)))
