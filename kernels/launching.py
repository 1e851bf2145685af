"""What the launchers of the elementwise kernels share."""

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def wants_triton(x: Tensor) -> bool:
    """Whether a tensor is computed by a Triton kernel: it lies on a CUDA GPU in a type of at most 32 bit."""
    return x.is_cuda and x.dtype in FLOATS


def unit_columns(t: Tensor) -> Tensor:
    """A matrix whose rows are contiguous: `t` itself, whatever the distance of its rows, else a copy."""
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def pixel_rows(x: Tensor) -> Tensor:
    """[N, C, H, W] as [N, H·W, C] with contiguous channels: a view of channels-last memory, else a copy."""
    return unit_columns(x.permute(0, 2, 3, 1).flatten(1, 2))


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n and at least 1."""
    return 1 << max(n - 1, 0).bit_length()
