"""In which order a job's frames are read."""

from collections.abc import Collection, Generator, Iterator
from contextlib import closing
from itertools import islice

from fairy.kernels.errors import MachineError
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
    """The source's frames, with their masks where there are some."""
    frames = plan.source.read(indices)
    return frames if plan.mask is None else with_masks(frames, plan.mask.read(indices, plan.source.num_frames))


def _take(reader: Iterator[Frames], count: int) -> list[Frames]:
    pictures = list(islice(reader, count))
    if len(pictures) < count:
        raise MachineError(f"The video ended {count - len(pictures)} frames early; it was changed, edit it again.")
    return pictures
