"""Parallel decoding of masked codes, as published with MaskGIT (Chang et al., arXiv 2202.04200) and used by Phenaki.

At every step all masked codes are drawn from the network's distribution; those that it is surest of stay, and the rest
is masked again. How many are masked follows a cosine. The temperature is that of the choice who stays: it adds Gumbel
noise to the logarithms of the probabilities, less at every step and none at the last.

Everything is float32 on the CPU (in 16 bit, codes that must stay were seen to change), and noise is a function of its
key alone.

Legend of shape suffixes: N codes, K possible ones.
"""

import math

import torch
from torch import Tensor

from fairy.runtime.denoise.noise import keyed_generator


def masked_after(step: int, steps: int, unknown: int, masked: int) -> int:
    """How many codes are masked again after a step that is not the last.

    Args:
        unknown: codes that the first step began with masked; masked: those that this one did.
    """
    count = math.floor(unknown * math.cos(math.pi / 2 * (step + 1) / steps))
    return max(1, min(masked - 1, count))


def gumbel_noise(key: str, shape: tuple[int, ...]) -> Tensor:
    """Standard Gumbel noise of that name, float32 on the CPU."""
    uniform = torch.rand(shape, generator=keyed_generator(key), dtype=torch.float32)
    tiny = torch.finfo(torch.float32).tiny
    return -torch.log((-torch.log(uniform.clamp(min=tiny))).clamp(min=tiny))


def draw_codes(logits_NK: Tensor, codes_N: Tensor, is_masked_N: Tensor, key: str) -> Tensor:
    """The codes, with a draw from the logits where they are masked: int64 [N]."""
    drawn_N = (logits_NK + gumbel_noise(key, tuple(logits_NK.shape))).argmax(dim=1)
    return torch.where(is_masked_N, drawn_N, codes_N)


def mask_again(
    logits_NK: Tensor, codes_N: Tensor, is_masked_N: Tensor, count: int, temperature: float, key: str
) -> Tensor:
    """Which of the codes that were just drawn are masked again: bool [N], true `count` times at those least sure.

    Args:
        is_masked_N: those that were drawn; the others stay.
        temperature: of the choice at this step.
    """
    log_p_N = torch.log_softmax(logits_NK, dim=1).gather(1, codes_N[:, None])[:, 0]
    sure_N = log_p_N + temperature * gumbel_noise(key, tuple(codes_N.shape))
    order = sure_N.masked_fill(~is_masked_N, math.inf).argsort(stable=True)
    again = torch.zeros_like(is_masked_N)
    again[order[:count]] = True
    return again & is_masked_N
