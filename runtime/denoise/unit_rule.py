"""The sampler's rule for frames at steps of their own, and the method's hook after it."""

from collections.abc import Callable

import torch
from torch import Tensor

from fairy.runtime.denoise.denoiser import Rule
from fairy.runtime.denoise.guidance import Guidance, guide
from fairy.runtime.denoise.sampler import Schedule, needs_noise, predicted_original, scale_after, step
from fairy.runtime.denoise.task_context import StepsOfCall, UnitContext
from fairy.runtime.methods.method import Method, Stepped, Update
from fairy.runtime.plan.order import Unit


def unit_rule(
    schedule: Schedule,
    guidance: Guidance,
    method: Method,
    update: Update,
    context: UnitContext,
    noise: Callable[[Unit], Tensor],
) -> Rule:
    """The rule for units, each a frame of the segment at a step of its own.

    Args:
        update: what the method's hook is told.
        context: of the units; it knows what the frames that they read have predicted.
        noise: unit noise [c, h, w] of a unit, asked only where the sampler draws some.
    """

    def stepped(unit: Unit, x: Tensor, guided: Tensor, original: Tensor) -> Tensor:
        fresh = noise(unit) if needs_noise(schedule, unit.step) else None
        latents = step(schedule, unit.step, x, guided, fresh)
        if method.after_step is None:
            return latents
        scale = scale_after(schedule, unit.step)
        return method.after_step(Stepped(unit, latents, scale, original, context.bank.originals(unit)), update)

    def rule(ks: StepsOfCall, x_Fchw: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        guided = torch.cat([guide(guidance.at(k), output[:, i : i + 1]) for i, k in enumerate(ks)])
        originals = torch.stack([predicted_original(schedule, k, x_Fchw[i], guided[i]) for i, k in enumerate(ks)])
        units = context.units(ks)
        latents = [stepped(unit, x_Fchw[i], guided[i], originals[i]) for i, unit in enumerate(units)]
        return torch.stack(latents), originals

    return rule
