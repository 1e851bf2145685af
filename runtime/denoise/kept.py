"""What a frame keeps while it is denoised: all of it before its first step, and in every step what its mask leaves out.

What is kept has the noise of the step at hand and none after the last. This is how masks (as in diffusers' inpainting),
a strength below 1 (as in SDEdit, Meng et al., arXiv 2108.01073) and anchors whose look is given are edited.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairy.runtime.denoise.sampler import Schedule, noised
from fairy.runtime.denoise.task_context import StepsOfCall


@dataclass(frozen=True, slots=True)
class Origin:
    """What is kept of one frame.

    Attributes:
        latents: [c, h, w], float32, as the VAE's decoder graph expects them.
        noise: of unit variance, [c, h, w], float32.
        start: the first step at which the frame is edited; the number of steps = never.
        mask: bool [1, h, w], where it is edited; None = everywhere.
    """

    latents: Tensor
    noise: Tensor
    start: int
    mask: Tensor | None = None


class Kept:
    """Puts what is kept of some frames back after a step."""

    def __init__(self, schedule: Schedule, origins: Sequence[Origin]) -> None:
        """`origins`: of every place of a call."""
        self._schedule, self._origins = schedule, origins
        like = origins[0].latents[:1]
        self._all = torch.ones_like(like, dtype=torch.bool)
        self._none = torch.zeros_like(like, dtype=torch.bool)

    def __call__(self, steps: StepsOfCall, x_Fchw: Tensor) -> Tensor:
        """Latents [F, c, h, w] after these steps of their places, in the sampler's scale, with what is kept."""
        pairs = list(zip(steps, self._origins, strict=True))
        kept = torch.stack([noised(self._schedule, k + 1, o.latents, o.noise) for k, o in pairs])
        edited = torch.stack([self._edited(k, o) for k, o in pairs])
        return torch.where(edited, x_Fchw, kept)

    def _edited(self, step: int, origin: Origin) -> Tensor:
        """Where a step changes a frame: bool [1, h, w]."""
        if step < origin.start:
            return self._none
        return self._all if origin.mask is None else origin.mask
