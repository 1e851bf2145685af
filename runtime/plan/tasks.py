"""What a segment's edit consists of: tasks, in an order in which each finds what it reads.

A task is some frames through some consecutive calls of one graph. It is the unit of order, of retry (its results count
when all of it is finite, or not at all), of what a worker is handed and of what a journal keeps. The one loop that runs
tasks is `denoiser.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fairy.runtime.methods.fits import runs_in_parts
from fairy.runtime.methods.method import Method
from fairy.runtime.methods.method_graphs import graph_name
from fairy.runtime.plan.order import Order, alike, ready_units
from fairy.runtime.plan.plan import Plan
from fairy.runtime.plan.segments import Segment

Role = Literal["anchors", "frames", "units"]


@dataclass(frozen=True, slots=True)
class Task:
    """Some frames through some calls of one graph; at call c frame i is at step first[i] + c.

    Attributes:
        frames: numbers in the video.
        first: the step of every frame at the first call.
        calls: how many there are.
        graph: name of the UNet's graph.
        role: "anchors" read each other and fill the bank; "frames" read the bank, or nothing; "units" read what single
            frames left at the same step.
        size: frames of a call, whose shape never varies: the last one is repeated. 0 = as many as there are.
    """

    frames: tuple[int, ...]
    first: tuple[int, ...]
    calls: int
    graph: str
    role: Role
    size: int = 0

    def steps(self) -> Iterator[tuple[int, ...]]:
        """The step of every place of a call, call by call."""
        for call in range(self.calls):
            yield tuple(k + call for k in self.filled(self.first))

    def filled(self, values: Sequence[int]) -> tuple[int, ...]:
        """One value for every frame, filled up to the size of a call."""
        return tuple(values[min(i, len(values) - 1)] for i in range(max(self.size, len(values))))

    def split(self, at_once: int) -> tuple["Task", "Task | None"]:
        """The first frames, as many as fit into one call, and the others; those that read each other stay together."""
        if self.role == "anchors":
            return self, None
        size = at_once if self.role == "frames" else 0
        now, later = slice(0, at_once), slice(at_once, None)
        first = replace(self, frames=self.frames[now], first=self.first[now], size=size)
        rest = replace(self, frames=self.frames[later], first=self.first[later])
        return first, rest if rest.frames else None


def tasks_of(plan: Plan, segment: Segment, *, carried: bool = False) -> Iterator[Task]:
    """The tasks of a segment, in the order of its method; `carried`: its anchors read one of the segment before."""
    steps = len(plan.schedule)
    if not runs_in_parts(plan.method):
        yield from unit_tasks(plan.method, plan.order, segment, steps, plan.micro_batch)
        return
    if segment.anchors:
        yield anchor_task(segment, steps, carried=carried)
    for part in segment.parts:
        if part.frames:
            yield frame_task(part.frames, steps, anchors=bool(segment.anchors))


def anchor_task(segment: Segment, steps: int, *, carried: bool = False) -> Task:
    """A segment's anchors; `carried`: they also read one of the segment before."""
    graph = "unet_anchor_continued" if carried else "unet_anchor"
    return Task(segment.anchors, (0,) * len(segment.anchors), steps, graph, "anchors")


def frame_task(frames: tuple[int, ...], steps: int, *, anchors: bool) -> Task:
    """Frames that are independent of each other."""
    return Task(frames, (0,) * len(frames), steps, "unet_frame" if anchors else "unet", "frames")


def unit_tasks(method: Method, order: Order, segment: Segment, steps: int, at_once: int) -> Iterator[Task]:
    """Single steps of single frames, those together that are ready together and read equally many others."""
    sources = method.all_sources(segment.stop - segment.start, (0,))
    for ready in ready_units(order, sources, steps):
        for batch in alike(ready, sources, at_once):
            frames = tuple(segment.start + unit.frame for unit in batch)
            graph = graph_name(method, len(sources[batch[0].frame]))
            yield Task(frames, tuple(unit.step for unit in batch), 1, graph, "units")
