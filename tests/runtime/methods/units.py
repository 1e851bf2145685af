"""The loop on units alone: no job, no pictures, no retries."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fairy.engines.engine import Engine
from fairy.export.graphs import GraphSpec
from fairy.runtime.bank.units import SourceBank
from fairy.runtime.denoise.denoiser import Denoiser
from fairy.runtime.denoise.guidance import Guidance
from fairy.runtime.denoise.sampler import Schedule
from fairy.runtime.denoise.task_context import UnitContext
from fairy.runtime.denoise.unit_rule import unit_rule
from fairy.runtime.methods.method import Method, Update
from fairy.runtime.plan.order import Order, Unit
from fairy.runtime.plan.segments import Segment
from fairy.runtime.plan.tasks import unit_tasks


@dataclass
class Units:
    """Frames that read each other, each at a step of its own."""

    method: Method
    schedule: Schedule
    guidance: Guidance
    update: Update
    text: Tensor
    graphs: Mapping[str, GraphSpec]
    engines: Callable[[str, torch.dtype], Engine]
    noise: Callable[[Unit], Tensor]
    calls: list[int] = field(default_factory=list)

    def denoise(self, first: Tensor, beside: Tensor, order: Order, at_once: int) -> tuple[Tensor, SourceBank]:
        """Latents of all frames from unit noise [N, c, h, w] and what the network sees beside them."""
        frames = len(first)
        bank = SourceBank(self.method.all_sources(frames, (0,)))
        latents = list(first * self.schedule.init_noise_sigma)
        denoiser = Denoiser(self.schedule, self.guidance, self.text, self.engines)
        for task in unit_tasks(self.method, order, Segment(0, frames, "", (0,), ()), len(self.schedule), at_once):
            context = UnitContext(bank, task.frames, self.graphs[task.graph])
            rule = unit_rule(self.schedule, self.guidance, self.method, self.update, context, self.noise)
            x = torch.stack([latents[i] for i in task.frames])
            seen = torch.stack([beside[i] for i in task.frames])
            with torch.inference_mode():
                x = denoiser.run(task.graph, task.steps(), x, seen, context, noise=lambda k: first, rule=rule)
            context.commit()
            self.calls.append(len(task.frames))
            for place, i in enumerate(task.frames):
                latents[i] = x[place]
        return torch.stack(latents), bank
