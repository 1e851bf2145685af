"""What ControlNets, T2I adapters and a picture as a prompt add to the UNet, step by step, for the frames of one task.

Adapters' features are made once a frame, ControlNets are asked at every step and for every branch whose text, or
picture, is another. As in diffusers, several are summed up, and each may be used in a part of the steps alone.

Legend of shapes: G branches, F frames, C·h·w one residual.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairy.engines.engine import Engine
from fairy.export.shapes import shape_of
from fairy.runtime.denoise.guidance import Guidance
from fairy.runtime.denoise.task_context import StepsOfCall
from fairy.runtime.plan.controls import ControlUse

Condition = Mapping[str, Tensor]
"""Of one frame and one control: an embedded picture "condition" [C, h, w], or features by name."""


@dataclass(frozen=True, slots=True)
class Guides:
    """The controls of the frames of a task.

    Attributes:
        uses: the controls.
        conditions: by control and name, of the frames of a call [F, C, h, w].
        engines: (name of a graph, precision) to what runs it.
        text: [branches, tokens, channels].
        times: of the schedule's steps.
        style: a picture's tokens of every branch [branches, tokens, channels], and their scale.
        first, last: the shares of the steps between which controls are used.
    """

    uses: tuple[ControlUse, ...]
    conditions: tuple[Condition, ...]
    engines: Callable[[str, torch.dtype], Engine]
    text: Tensor
    times: Sequence[float]
    style: tuple[Tensor, float] | None = None
    first: float = 0.0
    last: float = 1.0

    def inputs(self, guidance: Guidance, steps: StepsOfCall, scaled: Tensor, sample: Tensor) -> dict[str, Tensor]:
        """The UNet's inputs of one call, [G, F, C, h, w] by name.

        Args:
            scaled: latents [F, c, h, w] as the network expects them.
            sample: the UNet's own input, of G groups or one fewer, of which the first then serves two branches.
        """
        total: dict[str, Tensor] = {}
        for use, condition in zip(self.uses, self.conditions, strict=True):
            weight = self._weight(use, steps, sample)
            if use.kind == "adapter":
                found = {n: t.to(sample.dtype).expand(guidance.groups, *t.shape) for n, t in condition.items()}
            elif isinstance(weight, float) and not weight:
                found = self._nothing(use, guidance.groups, sample)
            else:
                found = self._ask(use, condition["condition"], guidance, steps, scaled, sample)
            for name, t in found.items():
                weighted = t * weight
                total[name] = weighted if name not in total else total[name] + weighted
        return total | self._style(guidance.groups, sample)

    def _style(self, groups: int, sample: Tensor) -> dict[str, Tensor]:
        if self.style is None:
            return {}
        tokens, scale = self.style
        scales = torch.full((groups,), scale, dtype=torch.float32, device=sample.device)
        return {"style": tokens[:groups].to(sample), "style_scale": scales}

    def _ask(
        self,
        use: ControlUse,
        condition: Tensor,
        guidance: Guidance,
        steps: StepsOfCall,
        scaled: Tensor,
        sample: Tensor,
    ) -> dict[str, Tensor]:
        """A ControlNet's residuals of every branch."""
        engine, precision = self.engines(f"controlnet_{use.number}", sample.dtype), sample.dtype
        groups = guidance.groups
        seen, rows = scaled.to(precision).expand(groups, *scaled.shape), list(range(groups))
        if engine.spec.graph.inputs[0].dims[2] != scaled.shape[1]:  # it sees the picture too
            seen = sample if len(sample) == groups else torch.cat([sample[:1], sample])
        elif guidance.branches[-2:] == (1, 2):  # nothing tells these two apart
            rows = [*rows[:-1], rows[-2]]
        most = max(rows) + 1
        times = torch.tensor([self.times[k] for k in steps], dtype=torch.float32, device=scaled.device)
        asked = {"sample": seen[:most], "timestep": times, "text": self.text[:most].to(precision)}
        found = engine({**asked, "condition": condition.to(precision)})
        return dict(found) if most == groups else {name: t[rows] for name, t in found.items()}

    def _nothing(self, use: ControlUse, groups: int, sample: Tensor) -> dict[str, Tensor]:
        """What a ControlNet that is not used adds."""
        outputs = self.engines(f"controlnet_{use.number}", sample.dtype).spec.graph.outputs
        sizes = dict(zip(("frames", "height", "width"), (sample.shape[1], *sample.shape[-2:]), strict=True))
        return {t.name: sample.new_zeros(shape_of(t, {"groups": groups, **sizes})) for t in outputs}

    def _weight(self, use: ControlUse, steps: StepsOfCall, like: Tensor) -> float | Tensor:
        """How much is added: one number, or one for each of the frames where their steps differ."""
        weights = [use.scale if self._is_used(k) else 0.0 for k in steps]
        if len(set(weights)) == 1:
            return weights[0]
        return torch.tensor(weights, dtype=like.dtype, device=like.device)[:, None, None, None]

    def _is_used(self, step: int) -> bool:
        """As diffusers has it, for its `control_guidance_start` and `control_guidance_end`."""
        return step / len(self.times) >= self.first and (step + 1) / len(self.times) <= self.last
