"""Noise that depends on the seed, the step and, if asked for, the frame, and on nothing else.

Every sample is drawn in float32 on the CPU from a generator seeded with the first eight bytes of
SHA-256("seed/step") (or "seed/step/frame"), so that batches, workers and devices cannot change it.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from fairy.runtime.plan.plan import Plan

INITIAL = -1  # the step whose noise an edit starts from


def draw_noise(seed: int, step: int, frames: Sequence[int], shape: tuple[int, int, int], *, per_frame: bool) -> Tensor:
    """Unit normal noise of one step, float32 on the CPU.

    Args:
        seed, step: what it is a function of; step `INITIAL` is the noise the latents start as.
        frames: numbers of the frames in the video; they matter only with `per_frame`.
        shape: [channels, h, w].

    Returns:
        [1, channels, h, w], one sample for all frames; with `per_frame` [frames, channels, h, w].
    """
    if per_frame:
        return torch.stack([sample_noise(f"{seed}/{step}/{frame}", shape) for frame in frames])
    return sample_noise(f"{seed}/{step}", shape).unsqueeze(0)


class PlanNoise:
    """All noise of a plan, on the device that computes it; what all frames share is drawn once."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self._plan, self._device = plan, device
        self._shared: dict[int, Tensor] = {}

    def initial(self, frames: Sequence[int]) -> Tensor:
        """Unit noise the latents start as: float32 [1 or frames, c, h, w]."""
        given = self._plan.initial
        if given is None:
            return self.at(INITIAL, frames)
        return (given[list(frames)] if len(given) > 1 else given).to(self._device)

    def at(self, step: int, frames: Sequence[int]) -> Tensor:
        """Unit noise of one step: float32 [1 or frames, c, h, w]."""
        params, shape = self._plan.params, self._plan.latent_shape
        if params.noise == "per-frame":
            return draw_noise(params.seed, step, frames, shape, per_frame=True).to(self._device)
        if step not in self._shared:
            self._shared[step] = draw_noise(params.seed, step, frames, shape, per_frame=False).to(self._device)
        return self._shared[step]


def sample_noise(key: str, shape: tuple[int, ...]) -> Tensor:
    """Unit normal noise of that name, float32 on the CPU."""
    return torch.randn(shape, generator=keyed_generator(key), dtype=torch.float32)


def keyed_generator(key: str) -> torch.Generator:
    """A generator on the CPU whose numbers are a function of a name alone."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return torch.Generator().manual_seed(seed)
