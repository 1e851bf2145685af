"""A UNet of Stable Diffusion's kind, written out so that every exact saving has a place; see `steps.py`.

`FastUNet` walks through the same layers as diffusers' `UNet2DConditionModel` and computes the same numbers but for
rounding. It knows no method: a `GraphSpec` says which layers read and emit anchors, as for `UNetGraph`. What is the
same for a whole job (the text's keys and values) or a whole step (time embeddings) is computed by `prepare` and comes
back as arguments; nothing of a call is stored on a module.

Arguments are tensors by name, as in the graph's spec, with two liberties:
    text        or, for every cross-attention layer L, `text.L.k` and `text.L.v` [groups, 1, tokens, heads·dim]
    timestep    or, for every residual block R, `time.R` [channels]
    sample      [groups, frames, …], or one group fewer: the first picture then serves the first two branches

Legend of shape suffixes: N samples, G groups, F frames, S tokens, C channels, H height, W width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairy.export.bases.attention_hook import add_style
from fairy.export.bases.fast_blocks import (
    Downsample,
    FeedForward,
    NormSilu,
    NotServed,
    Projections,
    ResBlock,
    Upsample,
    as_channels_last,
    convolution,
    linear,
    picture,
    tokens,
)
from fairy.export.graphs import GraphSpec, SelfAttention
from fairy.export.model import Attend
from fairy.export.steps import Steps

_BLOCKS = {"CrossAttnDownBlock2D", "DownBlock2D", "UNetMidBlock2DCrossAttn", "UpBlock2D", "CrossAttnUpBlock2D"}


@dataclass(slots=True)
class _Call:
    """What one call hands down to the layers and gets back from them."""

    attend: Attend
    groups: int
    frames: int
    layers: dict[str, SelfAttention]
    inputs: Mapping[str, Tensor]
    activated: Tensor | None  # SiLU of the time embedding [F, C], where times were not prepared
    emitted: dict[str, Tensor] = field(default_factory=dict)

    def groups_of(self, x: Tensor) -> int:
        """Groups among the samples of x: one fewer than branches as long as the first two share a picture."""
        return self.groups if x.shape[0] == self.groups * self.frames else self.groups - 1

    def spread(self, x: Tensor) -> Tensor:
        """Samples of all groups, [G·F, …]: where the first two share a picture so far, they part here."""
        return x if self.groups_of(x) == self.groups else torch.cat([x[: self.frames], x])

    def time(self, block: ResBlock, x: Tensor) -> Tensor:
        """What the time step adds in a residual block: as prepared, else for every sample of its input x."""
        if self.activated is None:
            return self.inputs[f"time.{block.name}"]
        shift_FC = block.time(self.activated)
        return cast(Tensor, shift_FC.repeat(self.groups_of(x), 1))


class _Attention(nn.Module):
    """One attention layer: projections, attention, output projection."""

    def __init__(self, name: str, attention: Any, steps: Steps) -> None:
        super().__init__()
        self.name, self.heads = name, attention.heads
        self.out = linear(attention.to_out[0], steps)


class _FastSelfAttention(_Attention):
    def __init__(self, name: str, attention: Any, steps: Steps) -> None:
        super().__init__(name, attention, steps)
        self.projections = Projections(attention, steps)

    def forward(self, x_NSC: Tensor, call: _Call) -> Tensor:
        groups = call.groups_of(x_NSC)
        q, k, v = (t.unflatten(0, (groups, call.frames)) for t in self.projections(x_NSC))
        layer = call.layers.get(self.name) or SelfAttention(self.name, 0, self.heads, q.shape[-1])
        names = [layer.context(s) for s in range(len(layer.segments))]
        # Where the first two branches are still one, so are their anchors; the second's stand for both.
        first = call.groups - groups
        keys = [call.inputs[name][first:] for name, _ in names]
        values = [call.inputs[name][first:] for _, name in names]
        if layer.emits:
            for name, t in zip(layer.emitted, (k, v), strict=True):
                call.emitted[name] = torch.cat([t[:1], t]) if first else t
        if layer.own == "batch":
            keys.insert(0, k.flatten(1, 2).unsqueeze(1))
            values.insert(0, v.flatten(1, 2).unsqueeze(1))
        own_k, own_v = (k, v) if layer.own == "frame" else (None, None)
        out = call.attend(q, own_k, own_v, keys, values, heads=self.heads)
        return cast(Tensor, self.out(out.flatten(0, 1)))


class _CrossAttention(_Attention):
    def __init__(self, name: str, attention: Any, steps: Steps) -> None:
        super().__init__(name, attention, steps)
        self.to_q, self.to_k, self.to_v = linear(attention.to_q, steps), attention.to_k, attention.to_v
        self.to_k_ip, self.to_v_ip = getattr(attention, "to_k_ip", None), getattr(attention, "to_v_ip", None)

    def forward(self, x_NSC: Tensor, call: _Call) -> Tensor:
        q = self.to_q(x_NSC).unflatten(0, (call.groups, call.frames))
        text = call.inputs.get("text")
        if text is None:
            k, v = (call.inputs[name] for name in self.names)
        else:
            k, v = self.keys_and_values(text)
        out = call.attend(q, None, None, [k], [v], heads=self.heads)
        if "style" in call.inputs:
            style, attend = (call.inputs["style"], call.inputs["style_scale"]), partial(call.attend, heads=self.heads)
            out = add_style(self, out, *style, attend, q)
        return cast(Tensor, self.out(out.flatten(0, 1)))

    @property
    def names(self) -> tuple[str, str]:
        """What its prepared keys and values are called."""
        return f"text.{self.name}.k", f"text.{self.name}.v"

    def keys_and_values(self, text_GTC: Tensor) -> tuple[Tensor, Tensor]:
        """Of the text, for all frames of a group: two of [groups, 1, tokens, heads·dim]."""
        return self.to_k(text_GTC).unsqueeze(1), self.to_v(text_GTC).unsqueeze(1)


class _TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward, each after a norm and beside a shortcut."""

    def __init__(self, name: str, block: Any, steps: Steps) -> None:
        super().__init__()
        if block.norm_type != "layer_norm" or block.pos_embed is not None or block.only_cross_attention:
            raise NotServed(f"{name} is a transformer block of another kind.")
        if block.attn2 is None or block._chunk_size is not None or hasattr(block, "fuser"):
            raise NotServed(f"{name} is a transformer block of another kind.")
        self.norm1, self.norm2, self.norm3 = block.norm1, block.norm2, block.norm3
        self.attn1 = _FastSelfAttention(f"{name}.attn1", block.attn1, steps)
        self.attn2 = _CrossAttention(f"{name}.attn2", block.attn2, steps)
        self.ff = FeedForward(f"{name}.ff", block.ff, steps)

    def forward(self, x_NSC: Tensor, call: _Call) -> Tensor:
        x_NSC = call.spread(x_NSC + self.attn1(self.norm1(x_NSC), call))
        x_NSC = x_NSC + self.attn2(self.norm2(x_NSC), call)
        return cast(Tensor, x_NSC + self.ff(self.norm3(x_NSC)))


class _Transformer(nn.Module):
    """Transformer blocks over the pixels of a picture: diffusers' `Transformer2DModel`."""

    def __init__(self, name: str, transformer: Any, steps: Steps) -> None:
        super().__init__()
        if type(transformer).__name__ != "Transformer2DModel" or not transformer.is_input_continuous:
            raise NotServed(f"{name} is a transformer of another kind.")
        self.norm = NormSilu(transformer.norm, steps, silu=False)
        self.proj_in, self.proj_out = transformer.proj_in, transformer.proj_out
        blocks = enumerate(transformer.transformer_blocks)
        self.blocks = nn.ModuleList(_TransformerBlock(f"{name}.transformer_blocks.{i}", b, steps) for i, b in blocks)
        self.channels_last = "channels-last" in steps

    def forward(self, x: Tensor, call: _Call) -> Tensor:
        t = _linear(self.proj_in, tokens(self.norm(x)))
        for block in self.blocks:
            t = block(t, call)
        return picture(_linear(self.proj_out, t), x, last=self.channels_last) + call.spread(x)


class _Level(nn.Module):
    """Residual blocks, each with a transformer or none behind it, at one resolution, and what leads to the next."""

    def __init__(self, name: str, block: Any, steps: Steps) -> None:
        super().__init__()
        if type(block).__name__ not in _BLOCKS:
            raise NotServed(f"{name} is a {type(block).__name__}.")
        self.resnets = nn.ModuleList(ResBlock(f"{name}.resnets.{i}", r, steps) for i, r in enumerate(block.resnets))
        transformers = enumerate(getattr(block, "attentions", ()))
        self.attentions = nn.ModuleList(_Transformer(f"{name}.attentions.{i}", t, steps) for i, t in transformers)
        down, up = getattr(block, "downsamplers", None), getattr(block, "upsamplers", None)
        self.down = Downsample(f"{name}.downsamplers.0", down[0], steps) if down else None
        self.up = Upsample(f"{name}.upsamplers.0", up[0], steps) if up else None

    def unit(self, i: int, x: Tensor, call: _Call) -> Tensor:
        """The i-th residual block, and its transformer where there is one."""
        block = cast(ResBlock, self.resnets[i])
        x = block(x, call.time(block, x))
        return cast(Tensor, self.attentions[i](x, call)) if self.attentions else x


class FastUNet(nn.Module):
    """A diffusers UNet with its steps applied; weights are shared or rearranged copies, the UNet is not changed.

    Raises:
        NotServed: the UNet has a part that is not known here.
    """

    def __init__(self, unet: Any, steps: Steps, attend: Attend) -> None:
        super().__init__()
        _check_unet(unet)
        self.steps, self.attend = steps, attend
        self.time_proj, self.time_embedding = unet.time_proj, unet.time_embedding
        self.conv_in, self.conv_out = convolution(unet.conv_in, steps), convolution(unet.conv_out, steps)
        self.norm_out = NormSilu(unet.conv_norm_out, steps)
        self.down = nn.ModuleList(_Level(f"down_blocks.{i}", b, steps) for i, b in enumerate(unet.down_blocks))
        self.mid = None if unet.mid_block is None else _Level("mid_block", unet.mid_block, steps)
        self.up = nn.ModuleList(_Level(f"up_blocks.{i}", b, steps) for i, b in enumerate(unet.up_blocks))

    def forward(self, inputs: Mapping[str, Tensor], spec: GraphSpec) -> tuple[Tensor, ...]:
        """One call of a graph: tensors by name, as in this file's description, to the graph's outputs in order."""
        sample = inputs["sample"]
        frames, groups = sample.shape[1], self._groups(inputs)
        layers = {layer.name: layer for layer in spec.layers}
        activated = None
        if "timestep" in inputs:
            activated = self._activated(inputs["timestep"], sample.dtype)
        call = _Call(self.attend, groups, frames, layers, inputs, activated)
        x = self.conv_in(as_channels_last(sample.flatten(0, 1), self.steps))
        x = self._up(*_guided(*self._down(x, call), call), call)
        output = self.conv_out(self.norm_out(x)).unflatten(0, (groups, frames))
        return output, *(call.emitted[tensor.name] for tensor in spec.outputs[1:])

    def prepare_text(self, text: Tensor) -> dict[str, Tensor]:
        """Keys and values of every cross-attention layer by name, of text [groups, tokens, channels]."""
        layers = [module for module in self.modules() if isinstance(module, _CrossAttention)]
        return {name: t for layer in layers for name, t in zip(layer.names, layer.keys_and_values(text), strict=True)}

    def prepare_times(self, timesteps: Tensor, dtype: torch.dtype) -> list[dict[str, Tensor]]:
        """By step, what every residual block adds, by name; timesteps [steps] float32."""
        activated = self._activated(timesteps, dtype)
        blocks = [module for module in self.modules() if isinstance(module, ResBlock)]
        biases = {f"time.{block.name}": block.time_bias(activated) for block in blocks}
        return [{name: bias_SC[i] for name, bias_SC in biases.items()} for i in range(len(timesteps))]

    def _groups(self, inputs: Mapping[str, Tensor]) -> int:
        """How many branches there are: as many as texts."""
        return next(t for name, t in inputs.items() if name.startswith("text")).shape[0]

    def _activated(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        return F.silu(self.time_embedding(self.time_proj(timesteps).to(dtype)))

    def _down(self, x: Tensor, call: _Call) -> tuple[Tensor, list[Tensor]]:
        """The way down and through the middle; what the way up is given besides, in order."""
        skips = [x]
        for number, level in enumerate(cast(list[_Level], self.down)):
            for i in range(len(level.resnets)):
                x = level.unit(i, x, call)
                skips.append(x)
            added = call.inputs.get(f"control.block.{number}")
            if added is not None:
                x = skips[-1] = call.spread(x) + added.flatten(0, 1)
            if level.down is not None:
                x = level.down(x)
                skips.append(x)
        if self.mid is not None:
            first, *others = cast(list[ResBlock], self.mid.resnets)
            x = first(x, call.time(first, x))
            for attention, block in zip(self.mid.attentions, others, strict=True):
                x = attention(x, call)
                x = block(x, call.time(block, x))
        return x, skips

    def _up(self, x: Tensor, skips: list[Tensor], call: _Call) -> Tensor:
        for level in cast(list[_Level], self.up):
            for i in range(len(level.resnets)):
                x = level.unit(i, torch.cat([call.spread(x), call.spread(skips.pop())], 1), call)
            if level.up is not None:
                x = level.up(x)
        return x


class FastUNetGraph(nn.Module):
    """A `FastUNet` with the inputs and outputs of a graph in the order of its spec, for compilers of whole graphs."""

    def __init__(self, unet: FastUNet, spec: GraphSpec) -> None:
        super().__init__()
        self.unet, self.spec = unet, spec

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor, *context: Tensor) -> tuple[Tensor, ...]:
        """One call; tensors as of `UNetGraph`."""
        names = [tensor.name for tensor in self.spec.inputs]
        inputs = dict(zip(names, (sample, timestep, text, *context), strict=True))
        return cast(tuple[Tensor, ...], self.unet(inputs, self.spec))


def _guided(x: Tensor, skips: list[Tensor], call: _Call) -> tuple[Tensor, list[Tensor]]:
    """The middle and the skips with what ControlNets add to them."""
    if "control.mid" not in call.inputs:
        return x, skips
    added = (call.inputs[f"control.down.{i}"].flatten(0, 1) for i in range(len(skips)))
    skips = [call.spread(skip) + t for skip, t in zip(skips, added, strict=True)]
    return call.spread(x) + call.inputs["control.mid"].flatten(0, 1), skips


def _linear(layer: Any, t_NSC: Tensor) -> Tensor:
    """A linear layer, or a 1×1 convolution taken as one."""
    return F.linear(t_NSC, layer.weight.flatten(1), layer.bias)


def _check_unet(unet: Any) -> None:
    from diffusers import UNet2DConditionModel

    if not isinstance(unet, UNet2DConditionModel):
        raise NotServed(f"{type(unet).__name__} is not known to the fast path, which serves UNet2DConditionModel.")
    config = unet.config
    wanted: dict[str, tuple[Any, ...]] = {
        "center_input_sample": (False,),
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "addition_embed_type": (None,),
        "encoder_hid_dim_type": (None,),
        "time_embedding_type": ("positional",),
        "time_embedding_act_fn": (None,),
        "time_cond_proj_dim": (None,),
        "act_fn": ("silu", "swish"),
        "dual_cross_attention": (False,),
        "cross_attention_norm": (None,),
        "upcast_attention": (False,),
    }
    for name, choices in wanted.items():
        if config.get(name) not in choices:
            raise NotServed(f"A UNet with {name} = {config.get(name)!r} is not known to the fast path.")


__all__ = ["FastUNet", "FastUNetGraph"]
