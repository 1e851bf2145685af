"""In which order a job's frames are read."""

from collections.abc import Collection, Generator, Iterator
from contextlib import closing
from itertools import islice

import numpy as np

from fairy.kernels.errors import MachineError
from fairy.runtime.inputs.conditions import resized
from fairy.runtime.inputs.frames import Frames
from fairy.runtime.inputs.masks import with_masks
from fairy.runtime.plan.plan import Plan
from fairy.runtime.record.run import Run


def read_frames_of(run: Run) -> Generator[list[Frames], None, None]:
    """For every segment its anchors' frames, then those of its parts.

    Two readers, one ahead of the other, so that nothing is decoded more than twice, however many segments there are.
    """
    with closing(_read(run.plan, run.plan.anchors)) as ahead, closing(_read(run.plan)) as reader:
        for segment in run.plan.segments:
            with run.monitor.timed("read"):
                pictures = _take(ahead, len(segment.anchors))
            yield pictures
            for part in segment.parts:
                with run.monitor.timed("read"):
                    pictures = _take(reader, part.stop - part.start)
                yield pictures


def _read(plan: Plan, indices: Collection[int] | None = None) -> Generator[Frames, None, None]:
    """The source's frames, with their masks where there are some, then what controls see where that is given."""
    frames, count = plan.source.read(indices), plan.source.num_frames
    if plan.mask is not None:
        frames = with_masks(frames, plan.mask.read(indices, count))
    for given in plan.given:
        frames = _beside(frames, given.read(indices, count), plan.source.size)
    return frames


def _beside(
    frames: Generator[Frames, None, None], given: Generator[Frames, None, None], size: tuple[int, int]
) -> Generator[Frames, None, None]:
    """Frames with three more channels: the picture that goes with each, at their size."""
    with closing(frames), closing(given):
        for frame, picture in zip(frames, given, strict=True):
            yield np.concatenate([frame, resized(picture, size)], axis=2)


def _take(reader: Iterator[Frames], count: int) -> list[Frames]:
    pictures = list(islice(reader, count))
    if len(pictures) < count:
        raise MachineError(f"The video ended {count - len(pictures)} frames early; it was changed, edit it again.")
    return pictures
