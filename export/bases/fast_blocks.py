"""The parts that the fast UNet and the fast VAE are made of, taken from diffusers' modules.

Weights are shared with the network they come from wherever their layout allows; what is rearranged (channels-last
convolutions, joined projections, folded upsampling) is a copy, so that the network itself is never changed.

Legend of shape suffixes: N samples (groups·frames), S tokens, C channels, H height, W width.
"""

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairy.export.steps import FP8_LINEARS, Steps
from fairy.kernels.errors import InputError
from fairy.kernels.upsample_conv import fold_weight, upsample_conv_folded


class NotServed(InputError):
    """A network has a part that the fast path does not know; eager's graph runs it."""


class NormSilu(nn.Module):
    """GroupNorm, with SiLU unless it is left out; [N, C, H, W] to the same."""

    def __init__(self, norm: Any, steps: Steps, *, silu: bool = True) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.groups, self.eps, self.silu = norm.num_groups, norm.eps, silu
        self.fused = _fused_norm() if "group-norm-silu" in steps else None

    def forward(self, x: Tensor) -> Tensor:
        if self.fused is not None:
            return self.fused(x, self.weight, self.bias, self.groups, eps=self.eps, silu=self.silu)
        y = F.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        return F.silu(y) if self.silu else y


class ResBlock(nn.Module):
    """norm, SiLU, convolution, twice, beside a shortcut: diffusers' `ResnetBlock2D`."""

    def __init__(self, name: str, block: Any, steps: Steps, *, divide_by_one: bool = False) -> None:
        """`divide_by_one`: divide by the block's factor even where it is 1, as diffusers does."""
        super().__init__()
        _check_resnet(name, block)
        self.name = name
        self.norm1, self.norm2 = NormSilu(block.norm1, steps), NormSilu(block.norm2, steps)
        self.conv1, self.conv2 = convolution(block.conv1, steps), convolution(block.conv2, steps)
        self.time = block.time_emb_proj
        self.shortcut = None if block.conv_shortcut is None else convolution(block.conv_shortcut, steps)
        self.scale = float(block.output_scale_factor)
        self.divide = divide_by_one or self.scale != 1.0

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """[N, C, H, W] to [N, C', H, W].

        `time`: what the time step adds after the first convolution: [N, C'], or [C'] with that convolution's bias added
        to it already.
        """
        conv = self.conv1
        bias = time if time is not None and time.dim() == 1 else conv.bias
        h: Tensor = F.conv2d(self.norm1(x), conv.weight, bias, padding=1)
        if time is not None and time.dim() == 2:
            h = h + time[:, :, None, None]
        h = self.conv2(self.norm2(h))
        h = (x if self.shortcut is None else self.shortcut(x)) + h
        return h / self.scale if self.divide else h

    def time_bias(self, activated: Tensor) -> Tensor:
        """The first convolution's bias at every step: SiLU of time embeddings [steps, channels] to [steps, C']."""
        assert self.conv1.bias is not None
        bias: Tensor = self.time(activated) + self.conv1.bias
        return bias


class Upsample(nn.Module):
    """Nearest upsampling by two and a 3×3 convolution: [N, C, H, W] to [N, C', 2H, 2W]."""

    def __init__(self, name: str, upsampler: Any, steps: Steps) -> None:
        super().__init__()
        conv = upsampler.conv
        if not upsampler.use_conv or upsampler.norm is not None or conv is None or conv.kernel_size != (3, 3):
            raise NotServed(f"{name} does not upsample by a 3×3 convolution.")
        folded = "folded-upsampling" in steps
        self.conv = None if folded else convolution(conv, steps)
        self.folded = nn.Parameter(fold_weight(conv.weight.detach()), requires_grad=False) if folded else None
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        if self.folded is not None:
            return upsample_conv_folded(x, self.folded, self.bias)
        assert self.conv is not None
        return cast(Tensor, self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))


class Downsample(nn.Module):
    """A 3×3 convolution of stride 2, padded on both sides (UNet) or after the end (VAE)."""

    def __init__(self, name: str, downsampler: Any, steps: Steps) -> None:
        super().__init__()
        if not downsampler.use_conv or downsampler.norm is not None:
            raise NotServed(f"{name} does not downsample by a convolution.")
        self.conv = convolution(downsampler.conv, steps)
        self.pad_end = downsampler.padding == 0

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(F.pad(x, (0, 1, 0, 1)) if self.pad_end else x))


class FeedForward(nn.Module):
    """Projection, gate, projection: [N, S, C] to the same."""

    def __init__(self, name: str, block: Any, steps: Steps) -> None:
        super().__init__()
        gate, _, out = block.net[:3]
        if type(gate).__name__ != "GEGLU":
            raise NotServed(f"{name} has a gate of the kind {type(gate).__name__}.")
        self.gate, self.out = linear(gate.proj, steps), linear(out, steps)
        self.fused = _fused_geglu() if "geglu" in steps else None

    def forward(self, x: Tensor) -> Tensor:
        both = self.gate(x)
        if self.fused is not None:
            return cast(Tensor, self.out(self.fused(both)))
        hidden, gate = both.chunk(2, dim=-1)
        return cast(Tensor, self.out(hidden * F.gelu(gate)))


class Projections(nn.Module):
    """Queries, keys and values of the same tokens: [N, S, C] to three of [N, S, heads·dim]."""

    def __init__(self, attention: Any, steps: Steps) -> None:
        super().__init__()
        parts = (attention.to_q, attention.to_k, attention.to_v)
        joined = "fused-qkv" in steps
        self.parts = nn.ModuleList(() if joined else (linear(part, steps) for part in parts))
        self.joined = linear(linear_of(parts), steps) if joined else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.joined is not None:
            return tuple(self.joined(x).chunk(3, dim=-1))
        return tuple(part(x) for part in self.parts)


class Float8Linear(nn.Module):
    """A linear layer in 8 bit, its weight quantised now; [..., I] to [..., O]."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        from fairy.kernels.fp8_linear import fp8_linear, quantise_rows  # needs triton, which is not everywhere

        weight, scale = quantise_rows(layer.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias, self.run = layer.bias, fp8_linear

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, cast(Tensor, self.weight), cast(Tensor, self.scale), self.bias)


def linear(layer: Any, steps: Steps) -> nn.Module:
    """A large linear layer as it is, or in 8 bit where that was asked for."""
    return Float8Linear(layer) if FP8_LINEARS in steps else cast(nn.Module, layer)


def convolution(conv: Any, steps: Steps) -> nn.Conv2d:
    """A convolution whose weights lie as the steps want them; a copy where that is another way than its own."""
    if "channels-last" not in steps:
        return cast(nn.Conv2d, conv)
    made = cast(nn.Conv2d, copy.deepcopy(conv))
    made.weight.data = made.weight.data.contiguous(memory_format=torch.channels_last)
    return made


def linear_of(parts: tuple[Any, ...]) -> nn.Linear:
    """One linear layer that gives what several give, one after another along the channels."""
    biased = parts[0].bias is not None
    made = nn.Linear(1, 1, bias=biased, device="meta")
    made.in_features, made.out_features = parts[0].in_features, sum(part.out_features for part in parts)
    made.weight = nn.Parameter(torch.cat([part.weight.detach() for part in parts]), requires_grad=False)
    if biased:
        made.bias = nn.Parameter(torch.cat([part.bias.detach() for part in parts]), requires_grad=False)
    return made


def tokens(x_NCHW: Tensor) -> Tensor:
    """Pixels as tokens [N, H·W, C]; a view of channels-last memory."""
    return x_NCHW.permute(0, 2, 3, 1).flatten(1, 2)


def picture(t_NSC: Tensor, like: Tensor, *, last: bool) -> Tensor:
    """Tokens as pixels of the size of `like`; a view in channels-last memory unless `last` is False."""
    x: Tensor = t_NSC.transpose(1, 2).unflatten(2, like.shape[-2:])
    return x if last else x.contiguous()


def as_channels_last(x: Tensor, steps: Steps) -> Tensor:
    """What a network starts with, in the layout that the steps want."""
    return x.contiguous(memory_format=torch.channels_last) if "channels-last" in steps else x


def _check_resnet(name: str, block: Any) -> None:
    plain = (
        type(block).__name__ == "ResnetBlock2D"
        and isinstance(block.nonlinearity, nn.SiLU)
        and (block.time_embedding_norm == "default" or block.time_emb_proj is None)
        and block.upsample is None
        and block.downsample is None
        and not block.skip_time_act
    )
    if not plain:
        raise NotServed(f"{name} is a residual block of another kind.")


def _fused_norm() -> Callable[..., Tensor]:
    from fairy.kernels.group_norm_silu import group_norm_silu  # needs triton, which is not everywhere

    return group_norm_silu


def _fused_geglu() -> Callable[[Tensor], Tensor]:
    from fairy.kernels.geglu import geglu

    return geglu
