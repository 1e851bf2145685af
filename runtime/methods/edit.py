"""One segment of a video edited unit by unit: frames are read as they begin and leave as they are done."""

from collections import deque
from collections.abc import Generator, Iterator, Sequence

import torch
from torch import Tensor

from fairy.runtime.batches import Part
from fairy.runtime.device import cpu_threads
from fairy.runtime.job import Job
from fairy.runtime.methods.conditions import Conditions
from fairy.runtime.methods.denoise import UnitDenoiser
from fairy.runtime.methods.graphs import graph_name
from fairy.runtime.methods.options import update_of
from fairy.runtime.networks import Networks, finite, halve_batch
from fairy.runtime.schedule import Batch, alike, ready_units
from fairy.runtime.segments import Segment
from fairy.runtime.source import Frames


def edit_units(
    networks: Networks, job: Job, segment: Segment, reads: Iterator[list[Frames]], threads: int
) -> Generator[tuple[list[Frames], dict[int, Frames]], None, None]:
    """The first frame as soon as it is done, then the parts of a segment in order; see `Executor.edit`."""
    with cpu_threads(threads):
        run = UnitEdit(networks, job, segment)
    first = next(reads)
    with cpu_threads(threads):
        run.begin(segment.anchors, first)
    waiting: deque[tuple[Part, list[Frames]]] = deque()
    parts = iter(segment.parts)
    done: dict[int, Frames] = {}
    told = False
    for units in run.order():
        while run.lacks(units):
            part, pictures = next(parts), next(reads)
            waiting.append((part, pictures))
            with cpu_threads(threads):
                run.begin(part.frames, [pictures[i - part.start] for i in part.frames])
        with cpu_threads(threads):
            done |= run.compute(units)
        if not told and segment.start in done:
            told = True
            job.segments_done += 1
            yield first, {segment.start: done.pop(segment.start)}
        while told and waiting and all(i in done for i in waiting[0][0].frames):
            part, pictures = waiting.popleft()
            yield pictures, {i: done.pop(i) for i in part.frames}
    for _ in parts:  # a single frame, which is there already
        yield next(reads), {}


class UnitEdit:
    """The networks at work on one segment. Frames are numbered as in the video; the denoiser counts the segment's."""

    def __init__(self, networks: Networks, job: Job, segment: Segment) -> None:
        """Encode the text and decide who reads whom."""
        self._networks, self._job, self._segment = networks, job, segment
        job.precision = job.asked_precision
        self._method = method = job.method
        self._sources = method.all_sources(segment.stop - segment.start, (0,))
        self._conditions = Conditions(networks, job)
        c, h, w = job.latent_shape
        self._denoiser = UnitDenoiser(
            method,
            self._sources,
            job.schedule,
            job.guidance,
            update_of(job.params, c * h * w),
            lambda width, precision: networks.engine(job, graph_name(method, width), precision),
            networks.encode_text(job, segment.prompt),
            lambda step, frame: networks.noise(job, step, [segment.start + frame])[0],
        )

    def order(self) -> Iterator[Batch]:
        """The units of the segment, those together that are ready together."""
        return ready_units(self._job.order, self._sources, len(self._job.schedule))

    def lacks(self, units: Batch) -> bool:
        """Whether one of the frames of these units has not begun."""
        return any(i not in self._denoiser.latents for i, _ in units)

    @torch.inference_mode()
    def begin(self, frames: Sequence[int], pictures: list[Frames]) -> None:
        """Take frames in."""
        if not frames:
            return
        latents, conditions = self._conditions(frames, pictures)
        for place, frame in enumerate(frames):
            self._denoiser.begin(frame - self._segment.start, latents[place], conditions[place])

    @torch.inference_mode()
    def compute(self, units: Batch) -> dict[int, Frames]:
        """Compute units that are ready, and return the frames that are done with it."""
        with self._job.monitor.timed("frames"):
            rest = units
            while rest:
                rest = self._some(rest)
        last = len(self._job.schedule) - 1
        finished = [i for i, k in units if k == last]
        if not finished:
            return {}
        latents = torch.stack([self._denoiser.take(i) for i in finished])
        numbers = [self._segment.start + i for i in finished]
        return dict(zip(numbers, self._networks.decode(self._job, latents), strict=True))

    def _some(self, units: Batch) -> Batch:
        """Compute the first of these units, as many as fit into one call, and return the others.

        Where the memory does not suffice, the rest of the job goes on with half as many at once.
        """
        batch = next(alike(units, self._sources, self._job.frames_at_once))
        try:
            outputs = self._outputs(batch)
        except (RuntimeError, MemoryError) as error:
            halve_batch(self._job, error)
            return units
        self._denoiser.advance(batch, outputs)
        self._job.bank_bytes = max(self._job.bank_bytes, self._denoiser.bank.most_bytes)
        self._tell(batch)
        return units[len(batch) :]

    def _outputs(self, batch: Batch) -> dict[str, Tensor]:
        """What the network says, in float32 from the moment 16 bit did not suffice, for keys and values as well."""
        found: dict[torch.dtype, dict[str, Tensor]] = {}

        def run(precision: torch.dtype) -> Tensor:
            found.clear()
            found[precision] = outputs = self._denoiser.outputs(batch, precision)
            fine = torch.stack([torch.isfinite(tensor).all() for tensor in outputs.values()]).all()
            return torch.where(fine, outputs["output"], torch.nan)

        frames = [self._segment.start + i for i, _ in batch]
        finite(self._job, run, f"Frames {frames[0]} to {frames[-1]}")
        ((self._job.precision, outputs),) = found.items()
        return outputs

    def _tell(self, batch: Batch) -> None:
        """Report progress: of the first frame's steps, and of all units of the other frames. Raises Cancelled."""
        job, steps = self._job, len(self._job.schedule)
        for i, k in batch:
            if i == 0:
                job.tell_step("anchors", k)
        job.steps_told += sum(1 for i, _ in batch if i)
        total = steps * (job.source.num_frames - len(job.segments))
        if total:
            job.monitor.tell("frames", job.steps_told, total)
