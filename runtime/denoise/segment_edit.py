"""One segment at work: frames begin, tasks are computed, frames leave. Here and in every worker, by every method.

A task is a transaction: what it computed counts when all of it is finite. Where it is not, it is computed once more in
float32; where the memory does not suffice, in pieces of half as many frames.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from fairy.runtime.bank.anchor_bank import CarriedAnchor, Context, StepBank
from fairy.runtime.bank.units import SourceBank
from fairy.runtime.denoise.control import Condition, Guides
from fairy.runtime.denoise.denoiser import Denoiser, Rule
from fairy.runtime.denoise.kept import Kept, Origin
from fairy.runtime.denoise.networks import Networks, SourceFrame, halve_batch, precisions
from fairy.runtime.denoise.noise import PlanNoise
from fairy.runtime.denoise.sampler import noise_in, noised
from fairy.runtime.denoise.task_context import BankReader, BankWriter, NoContext, OnBank, TaskContext, UnitContext
from fairy.runtime.denoise.unit_rule import unit_rule
from fairy.runtime.inputs.beginnings import Beginnings
from fairy.runtime.inputs.frames import Frames
from fairy.runtime.inputs.looks import load_look
from fairy.runtime.inputs.masks import colours, latent_mask
from fairy.runtime.inputs.texts import SegmentTexts
from fairy.runtime.methods.fits import runs_in_parts, update_of
from fairy.runtime.plan.order import Unit
from fairy.runtime.plan.segments import Segment
from fairy.runtime.plan.tasks import Task
from fairy.runtime.record.run import Run


def _nobody(bank: StepBank, step: int) -> None:
    """The bank is sent to nobody."""


@dataclass(slots=True)
class _Frame:
    """A frame that has begun: latents [c, h, w] in the sampler's scale, what the network sees beside them, what is kept
    of its source, what each control sees of it, and the features of the instruction where they are not everybody's."""

    latents: Tensor
    beside: Tensor
    origin: Origin | None
    conditions: tuple[Condition, ...]
    text: Tensor | None = None


class SegmentEdit:
    """See this file's head."""

    def __init__(
        self,
        networks: Networks,
        run: Run,
        segment: Segment,
        carried: CarriedAnchor | None = None,
        *,
        text: Tensor | None = None,
        anchor_pictures: Sequence[Frames] = (),
    ) -> None:
        """Encode the text, unless it is given.

        Args:
            carried: an anchor of the segment before, which the anchors and all others read as well.
            anchor_pictures: the anchors' source frames, where the model's text sees pictures.
        """
        run.pace.precision = run.plan.precision
        self.run, self.segment, self.carried = run, segment, carried
        self.bank: Context | None = None
        self._networks = networks
        self._texts = SegmentTexts(networks, run, segment, anchor_pictures, text)
        self._denoiser = Denoiser(
            run.plan.schedule,
            run.plan.guidance,
            self._texts.shared,
            lambda graph, precision: networks.engine(run, graph, precision),
            run.plan.guided_steps,
            networks.backend.steps,
            alike=run.plan.alike,
            source_graph="unet_source" if "unet_source" in run.plan.graphs else None,
        )
        self._style = networks.style(run)
        self.noise = PlanNoise(run.plan, networks.device)
        self._beginnings = Beginnings(networks, run, self.noise)
        self._frames: dict[int, _Frame] = {}
        self._done: dict[int, Tensor] = {}
        self._sources: dict[int, SourceFrame] = {}  # where their details are kept
        sources = (
            [] if runs_in_parts(run.plan.method) else run.plan.method.all_sources(segment.stop - segment.start, (0,))
        )
        self._left = SourceBank(sources)

    @torch.inference_mode()
    def begin(self, frames: Sequence[int], pictures: list[Frames], *, anchors: bool = False) -> None:
        """Take frames in; `anchors`: they are to fill the bank."""
        if frames:
            colour = [colours(picture) for picture in pictures]
            latents, beside, encoded = self._beginnings(frames, colour)
            self._remember(frames, colour, encoded)
            origins = self._origins(frames, pictures, latents, encoded, anchors=anchors) if self.run.plan.keeps else ()
            conditions = [self._networks.conditions(self.run, picture) for picture in pictures]
            self.begin_with(frames, latents, beside, origins, conditions)
            for frame, picture in zip(frames, pictures, strict=True):
                self._frames[frame].text = self._texts.own(frame, picture)

    def begin_with(
        self,
        frames: Sequence[int],
        latents: Tensor,
        beside: Tensor,
        origins: Sequence[Origin] = (),
        conditions: Sequence[tuple[Condition, ...]] = (),
    ) -> None:
        """Take frames in that begin with unit noise [n, c, h, w] and have `beside` [n, c', h, w] beside them.

        `origins`: what is kept of each; none = nothing. `conditions`: what controls see of each.
        """
        schedule = self.run.plan.schedule
        scaled = latents * schedule.init_noise_sigma
        for place, frame in enumerate(frames):
            origin, first = origins[place] if origins else None, scaled[place]
            if origin is not None and (origin.start or schedule.skipped):
                first = noised(schedule, 0, origin.latents, origin.noise)
            seen = conditions[place] if conditions else ()
            self._frames[frame] = _Frame(first, beside[place], origin, seen)

    def _origins(
        self, frames: Sequence[int], pictures: Sequence[Frames], latents: Tensor, encoded: Tensor, *, anchors: bool
    ) -> list[Origin]:
        """What is kept of frames that would begin with `latents` and whose encoder's latents are `encoded`."""
        plan, networks, segment = self.run.plan, self._networks, self.segment
        sources, noise = networks.as_edited(encoded), latents
        if networks.checkpoint.condition == "depth" and plan.initial is None:  # they are the frames', inverted
            noise = noise_in(plan.schedule, 0, latents, sources)
        origins = []
        for frame, picture, source, fresh in zip(frames, pictures, sources, noise, strict=True):
            start = plan.begins_at(max(segment.strengths) if anchors else segment.strength_at(frame))
            if frame in plan.params.looks:  # nothing of it is left to the network
                look = networks.encode(self.run, [load_look(plan.params, frame)])
                source, start = networks.as_edited(look)[0], len(plan.schedule)
            mask = None
            if plan.params.masked:
                mask = latent_mask(picture[..., 3], plan.geometry, networks.checkpoint.vae_factor).to(networks.device)
            origins.append(Origin(source, fresh, start, mask))
        return origins

    @contextmanager
    def aside(self, frames: Sequence[int]) -> Iterator[None]:
        """Put away what was begun or done of frames, and drop at the end what was meanwhile."""
        places: tuple[dict[int, Any], ...] = (self._frames, self._done, self._sources)
        kept = [{f: place.pop(f) for f in frames if f in place} for place in places]
        yield
        self.forget(frames)
        for place, before in zip(places, kept, strict=True):
            place |= before

    def restore(self, frames: Sequence[int], latents: Tensor, pictures: Sequence[Frames]) -> None:
        """Take frames in whose latents [n, c, h, w] an interrupted edit had finished."""
        self._remember(frames, [colours(picture) for picture in pictures])
        self._done |= dict(zip(frames, latents.to(self._networks.device), strict=True))

    def lacks(self, frames: Sequence[int]) -> bool:
        """Whether some of these frames have not begun."""
        return any(frame not in self._frames and frame not in self._done for frame in frames)

    def has(self, frames: Sequence[int]) -> bool:
        """Whether all of these frames are done."""
        return all(frame in self._done for frame in frames)

    def forget(self, frames: Sequence[int]) -> None:
        """Drop frames that will not be done here."""
        for frame in frames:
            self._frames.pop(frame, None)
            self._done.pop(frame, None)
            self._sources.pop(frame, None)

    def latents(self, frames: Sequence[int]) -> Tensor:
        """Latents [n, c, h, w], float32, of frames that are done."""
        return torch.stack([self._done[frame] for frame in frames])

    @torch.inference_mode()
    def take(self, frames: Sequence[int]) -> dict[int, Frames]:
        """Decode those of these frames that are done, and let them go: pictures by frame number."""
        done = [frame for frame in frames if frame in self._done]
        if not done:
            return {}
        latents = torch.stack([self._done.pop(frame) for frame in done])
        if self.run.plan.params.keep_details:
            sources = [self._sources.pop(frame) for frame in done]
            return dict(zip(done, self._networks.decode_with_details(self.run, latents, sources), strict=True))
        return dict(zip(done, self._networks.decode(self.run, latents), strict=True))

    def _remember(self, frames: Sequence[int], pictures: Sequence[Frames], latents: Tensor | None = None) -> None:
        """Keep source frames until their edits are decoded, where their details are kept."""
        if self.run.plan.params.keep_details:
            each = [None] * len(frames) if latents is None else latents.split(1)
            self._sources |= {
                f: SourceFrame(*pair) for f, pair in zip(frames, zip(pictures, each, strict=True), strict=True)
            }

    @torch.inference_mode()
    def compute(self, task: Task, on_bank: OnBank = _nobody) -> None:
        """Compute a task whose frames have begun, and what it reads is there.

        Where the memory does not suffice, the rest of the job goes on with half as many frames at once, and the report
        says so. `on_bank` hears of every step of a bank; one that comes after another replaces it.
        """
        run, rest = self.run, cast(Task | None, task)
        with run.monitor.timed("anchors" if task.role == "anchors" else "frames"):
            while rest is not None:
                piece, others = rest.split(run.pace.frames_at_once)
                try:
                    self._compute(piece, on_bank)
                except (RuntimeError, MemoryError) as error:
                    if task.role == "anchors":
                        raise
                    halve_batch(run, error)
                else:
                    rest = others
        if task.role == "frames":
            run.count.batches += 1

    def _compute(self, task: Task, on_bank: OnBank) -> None:
        """One piece of a task, in the job's precision or, where that is not finite, in float32."""
        run, what = self.run, f"Frames {task.frames[0]} to {task.frames[-1]}"
        run.monitor.check()
        frames, calls = task.filled(task.frames), list(task.steps())
        latents_Fchw = torch.stack([self._frames[f].latents for f in frames])
        beside_Fchw = torch.stack([self._frames[f].beside for f in frames])
        origins = [origin for f in frames if (origin := self._frames[f].origin) is not None]
        guides = self._guides(frames)
        texts = [text for f in frames if (text := self._frames[f].text) is not None]
        for precision in precisions(run, "The anchors" if task.role == "anchors" else what):
            context, rule = self._context(task, precision, on_bank)
            x_Fchw = self._denoiser.run(
                task.graph,
                calls,
                latents_Fchw,
                beside_Fchw.to(precision),
                context,
                noise=lambda k: self.noise.at(run.plan.schedule.skipped + k, frames),
                rule=rule,
                kept=Kept(run.plan.schedule, origins) if origins else None,
                guides=guides,
                text=torch.cat(texts, dim=1) if texts else None,
                tell=lambda call: self._tell_step(task, call),
            )
            if bool(torch.isfinite(x_Fchw).all()) and (not isinstance(context, UnitContext) or context.fine()):
                self._commit(task, x_Fchw, context, precision)
                return
            del context, rule  # a bank that failed is of no use and may be large

    def _guides(self, frames: Sequence[int]) -> Guides | None:
        """What controls, and a picture as a prompt, add to these frames; None where there are none."""
        run, uses = self.run, self.run.plan.controls
        if not uses and self._style is None:
            return None
        each = [self._frames[frame].conditions for frame in frames]
        stacked = tuple(
            {name: torch.stack([seen[i][name] for seen in each]) for name in each[0][i]} for i in range(len(uses))
        )
        start, end = run.plan.params.control_guidance_start, run.plan.params.control_guidance_end
        engines, text = self._denoiser.engines, self._denoiser.text
        assert text is not None  # networks that take controls are told the same for every frame
        times = run.plan.schedule.timesteps
        return Guides(uses, stacked, engines, text, times, self._style, start, end)

    def _context(self, task: Task, precision: torch.dtype, on_bank: OnBank) -> tuple[TaskContext, Rule | None]:
        """What a task reads and writes, and the rule of frames at steps of their own."""
        run = self.run
        if task.role == "anchors":
            self.bank = None  # the one of a try that failed
            bank = self._networks.new_bank(run, len(task.frames), precision, self.carried)
            return BankWriter(bank, on_bank), None
        if task.role == "frames":
            return NoContext() if self.bank is None else BankReader(self.bank), None
        places = tuple(frame - self.segment.start for frame in task.frames)
        context = UnitContext(self._left, places, run.plan.graphs[task.graph])

        def noise(unit: Unit) -> Tensor:
            return self.noise.at(run.plan.schedule.skipped + unit.step, [self.segment.start + unit.frame])[0]

        update = update_of(run.plan.params)
        return context, unit_rule(run.plan.schedule, run.plan.guidance, run.plan.method, update, context, noise)

    def _commit(self, task: Task, x_Fchw: Tensor, context: TaskContext, precision: torch.dtype) -> None:
        """Make a piece's results count: where 16 bit did not suffice for what others read, it will not again."""
        run, last = self.run, len(self.run.plan.schedule)
        if isinstance(context, BankWriter):
            self.bank, run.pace.precision = context.bank, precision
            run.tally.bank_bytes = max(run.tally.bank_bytes, context.bank.num_bytes)
        elif isinstance(context, UnitContext):
            context.commit()
            run.pace.precision = precision
            run.tally.bank_bytes = max(run.tally.bank_bytes, self._left.most_bytes)
            self._tell_units(task)
        for place, (frame, first) in enumerate(zip(task.frames, task.first, strict=True)):
            if first + task.calls < last:
                self._frames[frame].latents = x_Fchw[place]
            else:
                del self._frames[frame]
                self._done[frame] = x_Fchw[place]

    def _tell_step(self, task: Task, call: int) -> None:
        """Report progress of anchors and of frames. Raises Cancelled."""
        if task.role != "units":
            self.run.tell_step(task.role, call)

    def _tell_units(self, task: Task) -> None:
        """Report progress: of the first frame's steps, and of all units of the other frames. Raises Cancelled."""
        run, steps, first = self.run, len(self.run.plan.schedule), self.segment.start
        for frame, k in zip(task.frames, task.first, strict=True):
            if frame == first:
                run.tell_step("anchors", k)
        run.count.steps += sum(1 for frame in task.frames if frame != first)
        total = steps * (run.plan.source.num_frames - len(run.plan.segments))
        if total:
            run.monitor.tell("frames", run.count.steps, total)
