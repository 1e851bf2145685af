"""An autoencoder of Stable Diffusion's kind, written out so that every exact saving has a place; see `steps.py`.

The same layers as diffusers' `AutoencoderKL`, the same numbers but for rounding. With `lean-vae` the encoder computes
the mean alone (the mode of its distribution), the decoder's factor is folded into its first weights, and nothing is
divided by 1.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairy.export.bases.fast_blocks import (
    Downsample,
    NormSilu,
    NotServed,
    Projections,
    ResBlock,
    Upsample,
    as_channels_last,
    convolution,
    picture,
    tokens,
)
from fairy.export.steps import EXACT_STEPS, Steps

_BLOCKS = {"DownEncoderBlock2D", "UpDecoderBlock2D", "UNetMidBlock2D"}


class FastVaeEncoder(nn.Module):
    """Pictures [N, 3, H, W] in −1…1 to image latents [N, c, H/8, W/8], the mode, not scaled; as `VaeEncoderGraph`.

    Raises:
        NotServed: the autoencoder has a part that is not known here.
    """

    def __init__(self, vae: Any, steps: Steps) -> None:
        super().__init__()
        _check_vae(vae)
        net = vae.encoder
        self.steps, self.channels = steps, vae.config.latent_channels
        self.conv_in = convolution(net.conv_in, steps)
        self.down = nn.ModuleList(_Level(f"encoder.down_blocks.{i}", b, steps) for i, b in enumerate(net.down_blocks))
        self.mid = _Middle("encoder.mid_block", net.mid_block, steps)
        self.norm_out, self.conv_out = NormSilu(net.conv_norm_out, steps), convolution(net.conv_out, steps)
        self.quant = vae.quant_conv

    def forward(self, image: Tensor) -> tuple[Tensor]:
        x = self.conv_in(as_channels_last(image, self.steps))
        for level in self.down:
            x = level(x)
        x = self.conv_out(self.norm_out(self.mid(x)))
        if self.quant is None:
            return (x[:, : self.channels],)
        if "lean-vae" in self.steps:  # the second half of the channels are variances
            return (F.conv2d(x, self.quant.weight[: self.channels], self.quant.bias[: self.channels]),)
        return (self.quant(x)[:, : self.channels],)


class FastVaeDecoder(nn.Module):
    """Scaled latents [N, c, h, w] to pictures [N, 3, 8h, 8w] around −1…1; as `VaeDecoderGraph`.

    Raises:
        NotServed: the autoencoder has a part that is not known here.
    """

    def __init__(self, vae: Any, steps: Steps) -> None:
        super().__init__()
        _check_vae(vae)
        net = vae.decoder
        self.steps = steps
        self.factor, self.shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None)
        self.quant = vae.post_quant_conv
        if "lean-vae" in steps and self.quant is not None and self.shift is None:
            self.quant, self.factor = _scaled(self.quant, 1 / self.factor), 1.0
        self.conv_in = convolution(net.conv_in, steps)
        self.mid = _Middle("decoder.mid_block", net.mid_block, steps)
        self.up = nn.ModuleList(_Level(f"decoder.up_blocks.{i}", b, steps) for i, b in enumerate(net.up_blocks))
        self.norm_out, self.conv_out = NormSilu(net.conv_norm_out, steps), convolution(net.conv_out, steps)

    def forward(self, latents: Tensor) -> tuple[Tensor]:
        x = latents if self.factor == 1.0 else latents / self.factor
        x = as_channels_last(x if self.shift is None else x + self.shift, self.steps)
        x = self.mid(self.conv_in(x if self.quant is None else self.quant(x)))
        for level in self.up:
            x = level(x)
        return (self.conv_out(self.norm_out(x)),)


class _Level(nn.Module):
    """Residual blocks at one resolution, and what leads to the next."""

    def __init__(self, name: str, block: Any, steps: Steps) -> None:
        super().__init__()
        if type(block).__name__ not in _BLOCKS:
            raise NotServed(f"{name} is a {type(block).__name__}.")
        self.resnets = nn.ModuleList(_resnet(f"{name}.resnets.{i}", r, steps) for i, r in enumerate(block.resnets))
        down, up = getattr(block, "downsamplers", None), getattr(block, "upsamplers", None)
        self.down = Downsample(f"{name}.downsamplers.0", down[0], steps) if down else None
        self.up = Upsample(f"{name}.upsamplers.0", up[0], steps) if up else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resnets:
            x = block(x)
        if self.down is not None:
            x = self.down(x)
        return x if self.up is None else cast(Tensor, self.up(x))


class _Middle(nn.Module):
    """Two residual blocks with attention between them, or without."""

    def __init__(self, name: str, block: Any, steps: Steps) -> None:
        super().__init__()
        if type(block).__name__ not in _BLOCKS or len(block.resnets) != 2:
            raise NotServed(f"{name} is a {type(block).__name__}.")
        self.first, self.last = (_resnet(f"{name}.resnets.{i}", r, steps) for i, r in enumerate(block.resnets))
        attention = block.attentions[0]
        self.attention = None if attention is None else _Attention(f"{name}.attentions.0", attention, steps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x if self.attention is None else self.attention(x)
        return cast(Tensor, self.last(x))


class _Attention(nn.Module):
    """Attention of all pixels to all pixels, beside a shortcut."""

    def __init__(self, name: str, attention: Any, steps: Steps) -> None:
        super().__init__()
        plain = attention.group_norm is not None and attention.spatial_norm is None and attention.residual_connection
        if not plain or attention.norm_q is not None or attention.norm_k is not None:
            raise NotServed(f"{name} is attention of another kind.")
        self.norm = NormSilu(attention.group_norm, steps, silu=False)
        self.projections = Projections(attention, steps & EXACT_STEPS)  # 8 bit is for the UNet
        self.out, self.heads = attention.to_out[0], attention.heads
        self.scale, self.channels_last = float(attention.rescale_output_factor), "channels-last" in steps
        self.divide = "lean-vae" not in steps or self.scale != 1.0

    def forward(self, x: Tensor) -> Tensor:
        by_head = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.projections(tokens(self.norm(x))))
        t = F.scaled_dot_product_attention(*by_head).transpose(1, 2).flatten(2)
        x = picture(self.out(t), x, last=self.channels_last) + x
        return x / self.scale if self.divide else x


def _resnet(name: str, block: Any, steps: Steps) -> ResBlock:
    return ResBlock(name, block, steps, divide_by_one="lean-vae" not in steps)


def _scaled(conv: Any, factor: float) -> nn.Conv2d:
    """A convolution that multiplies its input by a factor first."""
    made = nn.Conv2d(1, 1, 1, bias=conv.bias is not None, device="meta")
    wide = torch.promote_types(conv.weight.dtype, torch.float32)
    made.weight = nn.Parameter((conv.weight.detach().to(wide) * factor).to(conv.weight.dtype), requires_grad=False)
    made.bias = conv.bias
    return made


def _check_vae(vae: Any) -> None:
    if type(vae).__name__ != "AutoencoderKL":
        raise NotServed(f"An autoencoder of the kind {type(vae).__name__} is not known to the fast path.")
    if vae.use_tiling or vae.use_slicing or vae.config.act_fn not in ("silu", "swish"):
        raise NotServed("The autoencoder is tiled, sliced or has another activation.")


__all__ = ["FastVaeDecoder", "FastVaeEncoder"]
