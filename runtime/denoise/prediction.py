"""What the denoising loop asks of a network, and how what is the same for a whole job is asked only once.

`Prediction` puts together the inputs of one call: pictures, text and time, anchors. With the steps of the compiled path
(`fairy.export.steps`) it hands engines what they computed ahead, writes the unchanging part of the input once, lets two
branches share a picture, and computes a branch whose frames are all alike for one of them. Without, it is plain.

Legend of shapes: G branches, F frames, c·h·w one frame's latents.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fairy.engines.conditions import Conditions, prepare
from fairy.engines.engine import Engine
from fairy.export.steps import Steps
from fairy.runtime.denoise.guidance import Guidance, branch_image
from fairy.runtime.denoise.sampler import Schedule, needs_noise, step
from fairy.runtime.denoise.task_context import StepsOfCall, TaskContext

Fused = Callable[[int, Tensor, Tensor, Tensor | None], Tensor]
"""Step, latents [F, c, h, w], the network's output [G, F, c, h, w] and fresh noise [F or 1, c, h, w] to the next
latents; all but the output float32."""

_NO_IMAGE = 2  # the branch that sees no picture, the last where it is computed


@dataclass(slots=True)
class Ahead:
    """What is computed once for all tasks of a segment; it is passed along.

    Attributes:
        conditions: of the text, by precision, number of frames and of branches.
        first_outputs: of the branch without picture at the first step, [1, 1, c, h, w], by precision.
    """

    conditions: dict[tuple[torch.dtype, int, int], Conditions] = field(default_factory=dict)
    first_outputs: dict[torch.dtype, Tensor] = field(default_factory=dict)

    def conditions_of(
        self, engine: Engine, text: Tensor, precision: torch.dtype, times: Tensor, frames: int
    ) -> Conditions:
        """The conditions of calls with so many frames, made at the first of them."""
        key = (precision, frames, len(text))
        if key not in self.conditions:
            self.conditions[key] = prepare(engine, text.to(precision), times, frames)
        return self.conditions[key]


@dataclass(frozen=True, slots=True)
class Prediction:
    """Questions to a UNet engine; call it with the steps of the places of a call and the scaled latents.

    Attributes:
        conditions: steps to text and time, by the engine's names.
        pictures: scaled latents [F or 1, c, h, w] to the engine's `sample`.
        context: whose keys and values are read, and where the network's own go; of `groups` branches.
        first: what computes the first step, where that is done otherwise.
        guides: steps, scaled latents and the engine's `sample` to what controls add; None = nothing.
    """

    engine: Engine
    conditions: Callable[[StepsOfCall], Mapping[str, Tensor]]
    pictures: Callable[[Tensor], Tensor]
    context: TaskContext
    groups: int
    precision: torch.dtype
    first: "FirstStep | None" = None
    guides: Callable[[StepsOfCall, Tensor, Tensor], Mapping[str, Tensor]] | None = None

    def __call__(self, steps: StepsOfCall, scaled: Tensor) -> Mapping[str, Tensor]:
        """What the network gives: "output" of every branch, [G, F, c, h, w], and keys and values by name."""
        # Branches that are not computed are the last.
        read = {name: t[: self.groups] for name, t in self.context.inputs(steps, self.precision).items()}
        targets = {name: t[: self.groups] for name, t in self.context.targets(steps).items()} or None
        sample = self.pictures(scaled)
        added = {} if self.guides is None else self.guides(steps, scaled, sample)
        inputs = {"sample": sample, **self.conditions(steps), **added, **read}
        if steps[0] == 0 and self.first is not None:
            return {"output": self.first(self.engine, inputs, targets)}
        return self.engine(inputs, targets)


class Pictures:
    """The network's pictures: the latents of this step beside the image latents, for every branch, or one fewer.

    Branches that differ only in their text may share one: the first two, where both see the image.
    """

    def __init__(self, guidance: Guidance, image_latents: Tensor, steps: Steps) -> None:
        """`image_latents`: [F, c, h, w], in the engine's precision, not scaled."""
        image = branch_image(guidance, image_latents)
        shares = "shared-first-block" in steps and guidance.branches[:2] == (0, 1)
        self._image = image[1:] if shares else image  # [G or G − 1, F, c, h, w]
        self._buffer: Tensor | None = None
        self._last = "channels-last" in steps
        self._static = "static-input" in steps

    def __call__(self, scaled: Tensor) -> Tensor:
        """[G or G − 1, F, c + c', h, w]; with a static input the same tensor every time."""
        image = self._image
        if not self._static:
            return torch.cat([scaled.to(image.dtype).expand(len(image), -1, -1, -1, -1), image], dim=2)
        if self._buffer is None:
            self._buffer = self._new_buffer(scaled.shape[1])
        self._buffer[:, :, : scaled.shape[1]].copy_(scaled)
        return self._buffer

    def _new_buffer(self, channels: int) -> Tensor:
        groups, frames, own, height, width = self._image.shape
        layout = torch.channels_last if self._last else torch.contiguous_format
        flat = self._image.new_empty((groups * frames, channels + own, height, width)).to(memory_format=layout)
        buffer: Tensor = flat.unflatten(0, (groups, frames))
        buffer[:, :, channels:].copy_(self._image)
        return buffer


@dataclass(frozen=True, slots=True)
class FirstStep:
    """The first step where all frames start from the same noise: without a picture they are all alike.

    The branch that sees none is then computed for one frame, once a job. Its anchors are copies of that frame too, and
    attention to copies of oneself is attention to oneself; so one call without anchors serves both phases.

    Attributes:
        alone: a graph that reads no anchors; it emits keys and values where phase A wants them.
        known: outputs that were computed before, by precision.
    """

    alone: Engine
    known: dict[torch.dtype, Tensor]

    def __call__(self, engine: Engine, inputs: Mapping[str, Tensor], targets: Mapping[str, Tensor] | None) -> Tensor:
        """The output of every branch, [G, F, c, h, w]; arguments as of an engine's call."""
        sample = inputs["sample"]
        own = {name: t for name, t in inputs.items() if not name.startswith("context.")}
        if targets or sample.dtype not in self.known:
            results = self.alone({name: _last_frame(name, t) for name, t in own.items()})
            self.known[sample.dtype] = results["output"]
            for name, target in (targets or {}).items():
                target[-1:].copy_(results[name])
        rest = {name: _but_last(name, t) for name, t in inputs.items()}
        others = engine(rest, targets and {name: t[:-1] for name, t in targets.items()})["output"]
        alike = self.known[sample.dtype].expand(1, sample.shape[1], -1, -1, -1)
        return torch.cat([others, alike])


def first_step(
    steps: Steps, guidance: Guidance, alike: bool, alone: Callable[[], Engine], ahead: Ahead
) -> FirstStep | None:
    """What computes the first step where all frames start `alike`, from the same noise; None = as any other."""
    serves = alike and guidance.groups > 1 and guidance.branches[-1] == _NO_IMAGE
    return FirstStep(alone(), ahead.first_outputs) if "shared-first-step" in steps and serves else None


def fused_update(schedule: Schedule, guidance: Guidance, steps: Steps, device: torch.device) -> Fused | None:
    """Guidance and the sampler's rule in one pass; None where that is not asked for or the rule is not linear."""
    if "guidance-step" not in steps or schedule.clip is not None or schedule.threshold is not None:
        return None
    from fairy.kernels.guidance_step import guidance_step  # needs triton, which is not everywhere

    rows = torch.tensor(step_coefficients(schedule, guidance), dtype=torch.float32, device=device)

    def update(i: int, x: Tensor, output: Tensor, fresh: Tensor | None) -> Tensor:
        return guidance_step(output, x, fresh, rows[i : i + 1])

    return update


def step_coefficients(schedule: Schedule, guidance: Guidance) -> list[list[float]]:
    """By step, what the latents, the noise and every branch's output are multiplied with and added up.

    Rules without clipping are linear, so each is asked for its coefficients: by unit vectors, in float64.
    """
    image = guidance.image_guidance_scale
    x, output, noise = torch.eye(3, dtype=torch.float64)
    rows = []
    for i in range(len(schedule)):
        fresh: Any = noise if needs_noise(schedule, i) else None
        text = guidance.at(i).guidance_scale
        weights = [(text, image - text, 1.0 - image)[branch] for branch in guidance.branches]
        of_x, of_output, of_noise = step(schedule, i, x, output, fresh).tolist()
        rows.append([of_x, of_noise, *(of_output * weight for weight in weights)])
    return rows


def _last_frame(name: str, t: Tensor) -> Tensor:
    """An input for the last branch and one frame."""
    if name.startswith("time"):
        return t[:1] if name == "timestep" else t
    return t[-1:, :1] if name == "sample" else t[-1:]


def _but_last(name: str, t: Tensor) -> Tensor:
    """An input for all branches but the last."""
    return t if name.startswith("time") else t[:-1]


__all__ = [
    "Ahead",
    "FirstStep",
    "Fused",
    "Pictures",
    "Prediction",
    "first_step",
    "fused_update",
    "step_coefficients",
]
