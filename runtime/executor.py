"""Where the networks run: here in this process, or in worker processes (`workers/pool.py`)."""

from collections import deque
from collections.abc import Generator, Iterator
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from fairy.engines.engine import Usage
from fairy.runtime.bank.anchor_bank import CarriedAnchor
from fairy.runtime.denoise.networks import Networks
from fairy.runtime.denoise.segment_edit import SegmentEdit
from fairy.runtime.device import DTYPES, cpu_threads
from fairy.runtime.inputs.frames import Frames
from fairy.runtime.plan.batches import Part
from fairy.runtime.plan.segments import Segment
from fairy.runtime.plan.tasks import anchor_task, tasks_of
from fairy.runtime.record.run import Run

Edited = tuple[list[Frames], dict[int, Frames]]
"""Source frames as they were read, and those of them that were edited, by frame number."""


class Executor(Protocol):
    """Computes jobs, one at a time."""

    @property
    def workers(self) -> int:
        """How many processes compute."""
        ...

    def edit(self, run: Run, reads: Iterator[list[Frames]]) -> Generator[Edited, None, None]:
        """Both phases of a job.

        Args:
            reads: for every segment its anchors' frames (none without anchors), then those of every part, in order.

        Yields:
            for every segment its anchors, then every part in order; a part's anchors are not repeated.
        """
        ...

    def take_usage(self) -> Usage:
        """What ran since this was last asked."""
        ...

    def close(self) -> None:
        """Give back memory and processes."""
        ...


class InProcess:
    """The networks of this process."""

    workers = 1

    def __init__(self, networks: Networks, threads: int) -> None:
        self._networks = networks
        self._threads = threads

    def edit(self, run: Run, reads: Iterator[list[Frames]]) -> Generator[Edited, None, None]:
        """Task after task, in the order of the method; see `Executor`."""
        carried: CarriedAnchor | None = None
        number = 0
        for index, segment in enumerate(run.plan.segments):
            anchor_pictures = next(reads)
            edit = self._begin(run, segment, carried, anchor_pictures)
            bank = partial(fill_bank, edit, anchor_pictures)
            with cpu_threads(self._threads):
                begin_anchors(edit, index, anchor_pictures)
            leaving = Leaving(run, segment, anchor_pictures)
            yield from leaving.ready({})
            for task in tasks_of(run.plan, segment, carried=carried is not None):
                while edit.lacks(task.frames):
                    part, pictures = segment.parts[leaving.read], next(reads)
                    with cpu_threads(self._threads):
                        begin_part(edit, number, part, pictures)
                    leaving.wait(pictures)
                    number += 1
                with cpu_threads(self._threads):
                    if not edit.has(task.frames):
                        if task.role == "frames" and segment.anchors and edit.bank is None:
                            bank()  # the anchors were there, some others are not
                        edit.compute(task)
                        if task.role == "frames":
                            save_latents(run, number - 1, edit.latents(task.frames))
                        elif task.role == "anchors":
                            save_anchors(run, index, edit.latents(task.frames), run.pace.precision)
                    done = edit.take(task.frames)
                yield from leaving.ready(done)
            for _ in segment.parts[leaving.read :]:  # all of their frames are anchors
                leaving.wait(next(reads))
                number += 1
            yield from leaving.ready({})
            if run.plan.params.continue_look and segment.anchors and index + 1 < len(run.plan.segments):
                if edit.bank is None:
                    bank()
                carried = None if edit.bank is None else edit.bank.last_anchor()
            del edit, bank  # its keys and values, before the next ones are made

    def _begin(
        self, run: Run, segment: Segment, carried: CarriedAnchor | None, anchor_pictures: list[Frames]
    ) -> SegmentEdit:
        with cpu_threads(self._threads):
            return SegmentEdit(self._networks, run, segment, carried, anchor_pictures=anchor_pictures)

    def take_usage(self) -> Usage:
        """What the backend ran."""
        return self._networks.backend.take_usage()

    def close(self) -> None:
        """Close the backend."""
        self._networks.backend.close()


class Leaving:
    """The order in which a segment's frames leave: its anchors, then its parts, each when all of it is done."""

    def __init__(self, run: Run, segment: Segment, anchors: list[Frames]) -> None:
        """`anchors`: their source frames."""
        self._run, self._segment, self._anchors = run, segment, anchors
        self._pictures: deque[list[Frames]] = deque()
        self._done: dict[int, Frames] = {}
        self._told = False
        self._left = 0

    @property
    def read(self) -> int:
        """How many parts' source frames were read."""
        return self._left + len(self._pictures)

    def wait(self, pictures: list[Frames]) -> None:
        """The next part's source frames were read."""
        self._pictures.append(pictures)

    def ready(self, done: dict[int, Frames]) -> Iterator[Edited]:
        """What leaves now that these frames are done."""
        self._done |= done
        if not self._told and all(frame in self._done for frame in self._segment.anchors):
            self._told = True
            self._run.count.segments += 1
            yield self._anchors, {frame: self._done.pop(frame) for frame in self._segment.anchors}
        while self._told and self._pictures:
            frames = self._segment.parts[self._left].frames
            if not all(frame in self._done for frame in frames):
                return
            self._left += 1
            yield self._pictures.popleft(), {frame: self._done.pop(frame) for frame in frames}


def begin_anchors(edit: SegmentEdit, number: int, pictures: list[Frames]) -> None:
    """Take a segment's anchors in, or what an interrupted edit had made of them; without a bank then."""
    latents = load_anchors(edit.run, number)
    if latents is not None:
        edit.restore(edit.segment.anchors, latents, pictures)
    else:
        edit.begin(edit.segment.anchors, pictures, anchors=True)


def fill_bank(edit: SegmentEdit, pictures: list[Frames]) -> None:
    """Compute the keys and values of anchors whose latents were there."""
    anchors = edit.segment.anchors
    with edit.aside(anchors):
        edit.begin(anchors, pictures, anchors=True)
        edit.compute(anchor_task(edit.segment, len(edit.run.plan.schedule), carried=edit.carried is not None))


def begin_part(edit: SegmentEdit, number: int, part: Part, pictures: list[Frames]) -> None:
    """Take the frames of a part in, or what an interrupted edit had made of them."""
    latents = load_latents(edit.run, number)
    if latents is not None:
        edit.restore(part.frames, latents, frames_of(part, pictures))
    else:
        edit.begin(part.frames, frames_of(part, pictures))


def frames_of(part: Part, pictures: list[Frames]) -> list[Frames]:
    """Those of a part's frames that are not anchors."""
    return [pictures[i - part.start] for i in part.frames]


def load_latents(run: Run, number: int) -> Tensor | None:
    """The latents of a part that an interrupted edit had finished, if there are any; progress is told."""
    latents = None if run.journal is None else run.journal.load(number)
    part = run.plan.parts[number]
    if latents is None or not part.frames:
        return None
    if tuple(latents.shape) != (len(part.frames), *run.plan.latent_shape):
        return None
    run.tell_resumed()
    return latents


def load_anchors(run: Run, number: int) -> Tensor | None:
    """The latents of a segment's anchors that an interrupted edit had finished; the run goes on in their precision."""
    found = None if run.journal is None else run.journal.load_anchors(number)
    anchors = run.plan.segments[number].anchors
    if found is None or tuple(found[0].shape) != (len(anchors), *run.plan.latent_shape):
        return None
    run.pace.precision = DTYPES[found[1]]
    run.tell_step("anchors", len(run.plan.schedule) - 1)
    return found[0]


def save_anchors(run: Run, number: int, latents: Tensor, precision: torch.dtype) -> None:
    """Keep the latents of a segment's anchors and the precision that they needed, where there is a journal."""
    if run.journal is not None:
        run.journal.save_anchors(number, latents, str(precision).removeprefix("torch."))


def save_latents(run: Run, number: int, latents: Tensor) -> None:
    """Keep the latents of a finished part in the job's journal, where it has one."""
    if run.journal is not None and len(latents):
        run.journal.save(number, latents)
