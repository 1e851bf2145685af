"""The one loop: frames from step to step. It knows no method and no model.

What the network is asked is `prediction.py`, the sampler's rule `sampler.py`, whose keys and values are read and where
its own go `task_context.py`. Legend of shapes: G branches, F places of a call, c·h·w one frame's latents.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from fairy.engines.conditions import Preparing
from fairy.engines.engine import Engine
from fairy.export.steps import NO_STEPS, Steps
from fairy.runtime.denoise.control import Guides
from fairy.runtime.denoise.guidance import Guidance, branch_image, guide, unguided
from fairy.runtime.denoise.kept import Kept
from fairy.runtime.denoise.prediction import Ahead, Fused, Pictures, Prediction, first_step, fused_update
from fairy.runtime.denoise.sampler import Schedule, needs_noise, scale_model_input, step
from fairy.runtime.denoise.task_context import StepsOfCall, TaskContext

Rule = Callable[[StepsOfCall, Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""Steps [F], latents [F, c, h, w] and the network's output [G, F, c, h, w] to the next latents and, where frames are at
steps of their own, the predictions of x0 [F, c, h, w]."""

_OF_ANY_NETWORK: Steps = frozenset({"one-batch", "channels-last", "static-input", "guidance-step"})
"""Steps of a job that need nothing of the network; the others want one of the fast path."""


def _nothing(call: int) -> None:
    """Nobody is told."""


@dataclass(slots=True)
class Denoiser:
    """What the tasks of a segment have in common.

    Attributes:
        schedule, guidance: of the edit.
        text: [branches, …, tokens, channels]; None = every frame has its own.
        engines: (name of a graph, precision) to what runs it.
        guided_steps: steps with all branches, from the first on; later ones compute the first branch alone (None: all).
        steps: of the compiled path, which the engines know.
        alike: all frames start from the same noise.
        source_graph: what is computed once for the frames of a task, of the picture beside their latents, and given to
            every call; None = nothing.
        ahead: what is computed once for all tasks.
    """

    schedule: Schedule
    guidance: Guidance
    text: Tensor | None
    engines: Callable[[str, torch.dtype], Engine]
    guided_steps: int | None = None
    steps: Steps = NO_STEPS
    alike: bool = False
    source_graph: str | None = None
    ahead: Ahead = field(default_factory=Ahead)

    def run(
        self,
        graph: str,
        calls: Iterable[StepsOfCall],
        latents_Fchw: Tensor,
        beside_Fchw: Tensor,
        context: TaskContext,
        *,
        noise: Callable[[int], Tensor],
        rule: Rule | None = None,
        kept: Kept | None = None,
        guides: Guides | None = None,
        text: Tensor | None = None,
        tell: Callable[[int], None] = _nothing,
    ) -> Tensor:
        """Take frames through some steps.

        Args:
            graph: name of the UNet's graph.
            calls: for every call the step of every place.
            latents_Fchw: in the sampler's scale, float32.
            beside_Fchw: what the network sees beside them, image latents or depth, in its precision.
            context: whose keys and values are read, and where these frames' own go.
            noise: step to unit noise [1 or F, c, h, w], where the sampler draws some.
            rule: for frames at steps of their own; None = guidance and the sampler's rule, all frames at one step.
            kept: what is put back after every step; None = nothing.
            guides: what controls add to the network; None = nothing.
            text: of these frames, [branches, F, tokens, channels]; None = the one of all.
            tell: called after every call with its number; it may raise to stop.

        Returns:
            [F, c, h, w], float32, in the sampler's scale: after the last step as the VAE's decoder graph expects them.
        """
        x, schedule = latents_Fchw, self.schedule
        guided = len(schedule) if self.guided_steps is None else self.guided_steps
        stretch = partial(self._stretch, graph=graph, x=x, beside=beside_Fchw, context=context, noise=noise)
        stretch = partial(stretch, rule=rule, guides=guides, own_text=text)
        predict, update = stretch(self.guidance)
        for call, ks in enumerate(calls):
            if ks[0] == guided:
                predict, update = stretch(unguided(self.guidance))
            outputs = predict(ks, _scaled(schedule, ks, x))
            x, originals = update(ks, x, outputs["output"])
            x = x if kept is None else kept(ks, x)
            context.after(ks, outputs, originals)
            tell(call)
        return x

    def _stretch(
        self,
        guidance: Guidance,
        graph: str,
        x: Tensor,
        beside: Tensor,
        context: TaskContext,
        noise: Callable[[int], Tensor],
        rule: Rule | None,
        guides: Guides | None,
        own_text: Tensor | None,
    ) -> tuple[Prediction, Rule]:
        """What predicts and what updates, for consecutive steps with the same branches."""
        precision, frames = beside.dtype, len(beside)
        engine, told = self.engines(graph, precision), self.text if own_text is None else own_text
        assert told is not None
        text, sources = told[: guidance.groups], self._of_sources(guidance, beside)
        added = None if guides is None else partial(guides.inputs, guidance)
        if rule is not None:  # every frame has a time of its own: nothing is the same for all
            at = _at_their_own(self.schedule, {"text": text.to(precision), **sources}, x.device)
            pictures = Pictures(guidance, beside, NO_STEPS)
            return Prediction(engine, at, pictures, context, guidance.groups, precision, guides=added), rule
        steps = self.steps if isinstance(engine, Preparing) else self.steps & _OF_ANY_NETWORK
        times = torch.tensor(self.schedule.timesteps, dtype=torch.float32, device=x.device)
        ahead = self.ahead if own_text is None else Ahead()
        conditions = ahead.conditions_of(engine, text, precision, times, frames)
        first = None
        if guidance is self.guidance and own_text is None:
            alone = "unet" if graph == "unet" else "unet_anchor"
            alike = self.alike
            first = first_step(steps, guidance, alike, lambda: self.engines(alone, precision), self.ahead)
        pictures = Pictures(guidance, beside, steps)
        predict = Prediction(
            engine,
            lambda ks: {**conditions.at(ks[0]), **sources},
            pictures,
            context,
            guidance.groups,
            precision,
            first,
            added,
        )
        fused = fused_update(self.schedule, guidance, self.steps, x.device)
        return predict, _rule_of(self.schedule, guidance, noise, fused)

    def _of_sources(self, guidance: Guidance, beside: Tensor) -> Mapping[str, Tensor]:
        """What is the same at every step, by the names of the network's inputs."""
        if self.source_graph is None:
            return {}
        return self.engines(self.source_graph, beside.dtype)({"source": branch_image(guidance, beside)})


def _rule_of(
    schedule: Schedule,
    guidance: Guidance,
    noise: Callable[[int], Tensor],
    fused: Fused | None,
) -> Rule:
    """Guidance over the branches, then the sampler's own step; in one pass where that is to be had."""

    def update(ks: StepsOfCall, x: Tensor, output: Tensor) -> tuple[Tensor, None]:
        k = ks[0]
        fresh = noise(k) if needs_noise(schedule, k) else None
        if fused is not None:
            return fused(k, x, output, fresh), None
        return step(schedule, k, x, guide(guidance.at(k), output), fresh), None

    return update


def _at_their_own(
    schedule: Schedule, same: Mapping[str, Tensor], device: torch.device
) -> Callable[[StepsOfCall], dict[str, Tensor]]:
    """What is the `same` at all steps, and the times of frames at steps of their own."""

    def at(ks: StepsOfCall) -> dict[str, Tensor]:
        times = [schedule.timesteps[k] for k in ks]
        return {**same, "timestep": torch.tensor(times, dtype=torch.float32, device=device)}

    return at


def _scaled(schedule: Schedule, ks: StepsOfCall, x: Tensor) -> Tensor:
    """The latents as the network expects them."""
    if all(k == ks[0] for k in ks):
        return scale_model_input(schedule, ks[0], x)
    return torch.stack([scale_model_input(schedule, k, x[i]) for i, k in enumerate(ks)])
