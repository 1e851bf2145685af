"""Sizes: how a frame becomes what the networks take, and how their output becomes a frame again.

A frame is scaled so that its long side is `long_side`, padded at the right and the bottom by repeated reflection up
to a multiple the network can halve, and cropped again after decoding.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fairy.kernels.errors import InputError


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of one job, in pixels as (height, width): of the source, of the result before and after padding."""

    source: tuple[int, int]
    scaled: tuple[int, int]
    padded: tuple[int, int]

    def latent(self, vae_factor: int) -> tuple[int, int]:
        """(h, w) of the latents."""
        return self.padded[0] // vae_factor, self.padded[1] // vae_factor


def make_geometry(
    height: int, width: int, *, long_side: int, upscale: bool, multiple: int, even: bool = False
) -> Geometry:
    """The sizes of a job.

    Args:
        height, width: of the source.
        long_side: the long side of the result; a smaller source keeps its size unless `upscale`.
        multiple: what padded sides are a multiple of (the VAE's factor times 2^(UNet levels − 1)).
        even: round scaled sides to even numbers, as video with halved colour (4:2:0) needs them.
    """
    long, short = max(height, width), min(height, width)
    if long > long_side or upscale:
        if even:
            long_side -= long_side % 2
        short_scaled = round(short * long_side / long)
        if even and short_scaled:
            short_scaled = max(2, 2 * round(short * long_side / long / 2))
        if short_scaled < 1:
            raise InputError(
                f"A {width}×{height} picture at long side {long_side} would be less than one pixel thin; "
                "choose a larger long side."
            )
        scaled = (long_side, short_scaled) if height >= width else (short_scaled, long_side)
    else:
        scaled = (height, width)
    padded = (math.ceil(scaled[0] / multiple) * multiple, math.ceil(scaled[1] / multiple) * multiple)
    return Geometry((height, width), scaled, padded)


def scale_frames(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic with antialiasing: float [frames, 3, H, W] in 0…255 to the given (height, width), clamped to 0…255."""
    if tuple(frames.shape[-2:]) == size:
        return frames
    return F.interpolate(frames, size, mode="bicubic", antialias=True, align_corners=False).clamp(0.0, 255.0)


def pad_by_reflection(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Pad [..., H, W] at the right and the bottom to (height, width), reflecting as often as it takes."""
    for dim, length in ((-2, size[0]), (-1, size[1])):
        if length > frames.shape[dim]:
            index = torch.tensor(_reflected(frames.shape[dim], length), device=frames.device)
            frames = frames.index_select(dim, index)
    return frames


def _reflected(length: int, padded: int) -> list[int]:
    period = max(2 * length - 2, 1)
    return [min(i % period, (period - i % period) % period) if length > 1 else 0 for i in range(padded)]
