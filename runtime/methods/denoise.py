"""Denoising unit by unit: frames that read each other's keys and values, each at a step of its own.

The loop over batches is the caller's; what is between two steps of a frame lies here, and nothing of it on a module.
Legend of shapes: u units of a batch, c·h·w one frame's latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fairy.engines.engine import Engine
from fairy.runtime.guidance import Guidance, branch_image, guide
from fairy.runtime.methods.bank import SourceBank
from fairy.runtime.methods.method import Method, Stepped, Update
from fairy.runtime.sampler import Schedule, needs_noise, predicted_original, scale_after, scale_model_input, step
from fairy.runtime.schedule import Batch, Unit

Engines = Callable[[int, torch.dtype], Engine]
"""(number of frames that each frame reads, precision) to the UNet graph that serves them."""


@dataclass(slots=True)
class UnitDenoiser:
    """The frames of one video on their way from noise to latents.

    Attributes:
        method: its hook follows every step.
        sources: S(i) of every frame.
        schedule, guidance: of the job.
        update: what the hook is told.
        engines: the UNet's graphs.
        text: [branches, tokens, channels].
        noise: (step, frame) to unit noise [c, h, w], asked only where the sampler draws some.
        latents: of every frame that has begun and was not taken, [c, h, w], in the sampler's scale.
        conditions: what the network sees beside its latents: image latents or depth [c', h, w].
    """

    method: Method
    sources: Sequence[tuple[int, ...]]
    schedule: Schedule
    guidance: Guidance
    update: Update
    engines: Engines
    text: Tensor
    noise: Callable[[int, int], Tensor]
    latents: dict[int, Tensor] = field(default_factory=dict)
    conditions: dict[int, Tensor] = field(default_factory=dict)
    bank: SourceBank = field(init=False)

    def __post_init__(self) -> None:
        self.bank = SourceBank(self.sources)

    def begin(self, frame: int, latents: Tensor, condition: Tensor) -> None:
        """Take a frame in: unit noise (or inverted latents) [c, h, w] and its condition [c', h, w]."""
        self.latents[frame] = latents * self.schedule.init_noise_sigma
        self.conditions[frame] = condition

    def take(self, frame: int) -> Tensor:
        """Let a frame go that has done all its steps: [c, h, w], scaled as the VAE's decoder graph expects it."""
        del self.conditions[frame]
        return self.latents.pop(frame)

    def outputs(self, batch: Batch, precision: torch.dtype) -> dict[str, Tensor]:
        """Run the network on units that read equally many frames; nothing is kept yet."""
        engine = self.engines(len(self.sources[batch[0].frame]), precision)
        x_uchw = torch.stack([scale_model_input(self.schedule, k, self.latents[i]) for i, k in batch])
        image = branch_image(self.guidance, torch.stack([self.conditions[i] for i, _ in batch]))
        scaled = x_uchw.expand(self.guidance.groups, -1, -1, -1, -1)
        times = [self.schedule.timesteps[k] for _, k in batch]
        inputs = {
            "sample": torch.cat([scaled.to(precision), image.to(precision)], dim=2),
            "timestep": torch.tensor(times, dtype=torch.float32, device=x_uchw.device),
            "text": self.text.to(precision),
            **self.bank.context(batch, engine.spec.graph, precision),
        }
        return engine(inputs)

    def advance(self, batch: Batch, outputs: dict[str, Tensor]) -> None:
        """Take the step that `outputs` belong to, and keep the keys and values that later units read."""
        guided = guide(self.guidance, outputs["output"])
        originals = torch.stack(
            [predicted_original(self.schedule, k, self.latents[i], g) for (i, k), g in zip(batch, guided, strict=True)]
        )
        for unit, output, original in zip(batch, guided, originals, strict=True):
            self.latents[unit.frame] = self._stepped(unit, output, original)
        self.bank.add(batch, {name: t for name, t in outputs.items() if name != "output"}, originals)

    def _stepped(self, unit: Unit, output: Tensor, original: Tensor) -> Tensor:
        """The latents after a unit's step and the method's hook."""
        i, k = unit
        fresh = self.noise(k, i) if needs_noise(self.schedule, k) else None
        latents = step(self.schedule, k, self.latents[i], output, fresh)
        if self.method.after_step is None:
            return latents
        scale = scale_after(self.schedule, k)
        return self.method.after_step(Stepped(unit, latents, scale, original, self.bank.originals(unit)), self.update)
