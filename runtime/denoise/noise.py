"""Noise that depends on the seed, the step and, if asked for, the frame, and on nothing else.

Every sample is drawn in float32 on the CPU from a generator seeded with the first eight bytes of
SHA-256("seed/step") (or "seed/step/frame"), so that batches, workers and devices cannot change it.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

INITIAL = -1  # the step whose noise the job starts from


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
        return torch.stack([_sample(f"{seed}/{step}/{frame}", shape) for frame in frames])
    return _sample(f"{seed}/{step}", shape).unsqueeze(0)


def _sample(key: str, shape: tuple[int, int, int]) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
