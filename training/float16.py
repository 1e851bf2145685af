"""Brings an autoencoder's activations into float16's range without changing what it computes.

Its residual stream is only ever read through group normalisation, which takes every scale out again, and by the few
convolutions that lead from one resolution or width to the next. So each group of channels may have a scale of its own,
a power of two: what writes into the group is multiplied by it, and what reads it past the normalisation is divided.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

LARGEST = 1024.0  # of what is measured, a 64th of float16's largest number


@dataclass(slots=True)
class _Segment:
    """A convolution or block that begins a stream of its own scale, and the blocks that add to that stream."""

    first: nn.Module
    blocks: list[ResnetBlock2D] = field(default_factory=list)

    @property
    def writers(self) -> list[nn.Module]:
        """Everything whose output is the stream or is added to it."""
        every = [self.first, *self.blocks]
        return [part for module in every for part in (module, *_inner(module))]


@torch.no_grad()
def fit_float16(vae: AutoencoderKL, pictures_BCHW: Tensor) -> None:
    """Rescales ``vae`` in place so that no activation on these pictures (in [-1, 1]) is far from ``LARGEST``.

    The same pictures come out, but for the normalisation's small constant and for rounding.
    """
    largest: dict[nn.Module, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda module, _, out: _note(largest, module, out))
        for module in vae.modules()
        if isinstance(module, nn.Conv2d | ResnetBlock2D)
    ]
    for picture in pictures_BCHW.split(1):
        vae.decode(vae.encode(picture).latent_dist.mode())
    for hook in hooks:
        hook.remove()
    for part in (vae.encoder, vae.decoder):
        _rescale(list(_segments(part)), largest, part.conv_norm_out.num_groups)


def _note(largest: dict[nn.Module, Tensor], module: nn.Module, out: Tensor) -> None:
    """The largest value of each channel so far."""
    now = out.abs().amax(dim=(0, 2, 3))
    largest[module] = torch.maximum(largest[module], now) if module in largest else now


def _segments(part: Encoder | Decoder) -> Iterator[_Segment]:
    """From the first convolution to the last normalisation."""
    segment = _Segment(part.conv_in)
    for module in _stream(part):
        if isinstance(module, ResnetBlock2D) and module.conv_shortcut is None:
            segment.blocks.append(module)
        else:
            yield segment
            segment = _Segment(module)
    yield segment


def _stream(part: Encoder | Decoder) -> Iterator[nn.Module]:
    """Blocks, and convolutions between resolutions, in the order they are computed."""
    if isinstance(part, Decoder):
        yield from part.mid_block.resnets
    for block in part.down_blocks if isinstance(part, Encoder) else part.up_blocks:
        yield from block.resnets
        samplers = block.downsamplers if isinstance(part, Encoder) else block.upsamplers
        yield from (sampler.conv for sampler in samplers or ())
    if isinstance(part, Encoder):
        yield from part.mid_block.resnets


def _inner(module: nn.Module) -> list[nn.Module]:
    """The convolutions in a block whose sum it gives."""
    if not isinstance(module, ResnetBlock2D):
        return []
    return [conv for conv in (module.conv2, module.conv_shortcut) if conv is not None]


def _rescale(segments: list[_Segment], largest: dict[nn.Module, Tensor], groups: int) -> None:
    before: Tensor | None = None
    for segment in segments:
        scale = _scale(torch.stack([largest[writer] for writer in segment.writers]).amax(dim=0), groups)
        first = segment.first
        entry = first.conv_shortcut if isinstance(first, ResnetBlock2D) else first
        _multiply(entry, scale, before)
        for block in [b for b in (first, *segment.blocks) if isinstance(b, ResnetBlock2D)]:
            _multiply(block.conv2, scale)
            _multiply(block.conv1, _scale(largest[block.conv1], groups))
        before = scale


def _scale(largest_C: Tensor, groups: int) -> Tensor:
    """A power of two for each channel, the same within a group: 1 where nothing is too large."""
    largest_G = largest_C.view(groups, -1).amax(dim=1)
    return torch.exp2(-torch.ceil(torch.log2(largest_G / LARGEST)).clamp_min(0)).repeat_interleave(
        len(largest_C) // groups
    )


def _multiply(conv: nn.Conv2d, after: Tensor, before: Tensor | None = None) -> None:
    """Makes a convolution write in another scale and read what has one."""
    conv.weight *= after[:, None, None, None]
    if before is not None:
        conv.weight /= before[None, :, None, None]
    conv.bias *= after
