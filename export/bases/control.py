"""What guides a UNet beside its input: ControlNets (arXiv 2302.05543) and T2I adapters (arXiv 2302.08453).

A ControlNet is asked at every step, an adapter once for a picture; what they give is added inside the UNet, which takes
it as inputs of its graph. One that sees no picture twice embeds it once: `condition_N` before the loop, `controlnet_N`
in it, and `adapter_N` alone; N is the number among a model's controls.

    control.down.I   residual of the I-th skip connection     control.mid   of the middle
    control.block.I  added at the end of the I-th level of the way down

Legend of shape suffixes: G groups (guidance branches), F frames, C channels, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from fairy.export.bases.attention_hook import hook_attention, plain_call
from fairy.export.graphs import ControlKind, GraphSpec, TensorSpec
from fairy.export.model import Attend

SUFFIXES: dict[ControlKind, str] = {"controlnet": "_controlled", "adapter": "_adapted"}
"""What the names of UNet graphs that take such inputs end in."""
CONTROLLED = ("unet", "unet_anchor", "unet_anchor_continued", "unet_frame")
_PLACES = ("down", "block")
_PICTURE = ("frames", 3, "image_height", "image_width")
_FEW = (1, 63)


def condition_spec(network: Any, number: int, multiple: int) -> GraphSpec:
    """A picture in 0…1 to a ControlNet's embedding of it."""
    channels = network.config.block_out_channels[0]
    return GraphSpec(
        f"condition_{number}",
        (TensorSpec("image", "float", _PICTURE),),
        (TensorSpec("condition", "float", ("frames", channels, "height", "width")),),
        multiple=multiple,
        frames=_FEW,
    )


def controlnet_spec(network: Any, number: int, multiple: int, text_channels: int) -> GraphSpec:
    """Scaled latents, time, text and embedded pictures to residuals, not scaled yet."""
    channels = network.config.block_out_channels[0]
    sample = ("groups", "frames", network.config.in_channels, "height", "width")
    return GraphSpec(
        f"controlnet_{number}",
        (
            TensorSpec("sample", "float", sample),
            TensorSpec("timestep", "float32", ("frames",)),
            TensorSpec("text", "float", ("groups", "tokens", text_channels)),
            TensorSpec("condition", "float", ("frames", channels, "height", "width")),
        ),
        residuals(network),
        multiple=multiple,
    )


def adapter_spec(network: Any, unet: Any, number: int, multiple: int) -> GraphSpec:
    """A picture in 0…1 to what an adapter adds to every level, not scaled yet."""
    picture = ("frames", network.config.in_channels, "image_height", "image_width")
    outputs = tuple(replace(tensor, dims=tensor.dims[1:]) for tensor in features(unet))
    return GraphSpec(
        f"adapter_{number}", (TensorSpec("image", "float", picture),), outputs, multiple=multiple, frames=_FEW
    )


def residuals(unet: Any) -> tuple[TensorSpec, ...]:
    """What ControlNets add to a UNet of this layout (its own configuration will do): in the order of its skips."""
    widths, layers = unet.config.block_out_channels, unet.config.layers_per_block
    places = [(widths[0], 0)]
    for level, width in enumerate(widths):
        places += [(width, level)] * (layers if isinstance(layers, int) else layers[level])
        places += [(width, level + 1)] if level + 1 < len(widths) else []
    down = [_tensor(f"control.down.{i}", *place) for i, place in enumerate(places)]
    return *down, _tensor("control.mid", widths[-1], len(widths) - 1)


def features(unet: Any) -> tuple[TensorSpec, ...]:
    """What adapters add to a UNet."""
    widths = unet.config.block_out_channels
    return tuple(_tensor(f"control.block.{level}", width, level) for level, width in enumerate(widths))


def controlled(spec: GraphSpec, unet: Any, kinds: Sequence[ControlKind]) -> GraphSpec:
    """A UNet's graph with the inputs of these kinds of control after its conditions."""
    if not kinds:
        return spec
    added = {"controlnet": residuals, "adapter": features}
    ends = "".join(suffix for kind, suffix in SUFFIXES.items() if kind in kinds)
    tensors = [tensor for kind in SUFFIXES if kind in kinds for tensor in added[kind](unet)]
    own = [tensor for tensor in spec.inputs if not tensor.name.startswith("context.")]
    return replace(spec, name=spec.name + ends, inputs=(*own, *tensors, *spec.inputs[len(own) :]))


def added_inputs(inputs: dict[str, Tensor]) -> dict[str, Any]:
    """Control inputs [groups, frames, …] by name as the arguments of a diffusers UNet."""
    down, block = ([t.flatten(0, 1) for n, t in inputs.items() if n.startswith(f"control.{k}.")] for k in _PLACES)
    mid = inputs.get("control.mid")
    arguments: dict[str, Any] = {}
    if mid is not None:
        arguments["down_block_additional_residuals"] = tuple(down)
        arguments["mid_block_additional_residual"] = mid.flatten(0, 1)
    if block:
        arguments["down_intrablock_additional_residuals"] = block  # a list of this call's, which diffusers empties
    return arguments


class ConditionGraph(nn.Module):
    """Pictures [frames, 3, H, W] in 0…1 to a ControlNet's embedding [frames, C, h, w]."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """One call of the graph."""
        flipped = self.network.config.controlnet_conditioning_channel_order == "bgr"
        return (self.network.controlnet_cond_embedding(image.flip(1) if flipped else image),)


class ControlNetGraph(nn.Module):
    """A diffusers `ControlNetModel` whose picture is embedded already; it computes what its own `forward` does.

    Inputs: sample [groups, frames, c, h, w], timestep [frames] float32, text [groups, tokens, C], condition
    [frames, C, h, w], the same for all groups. Every frame attends to itself alone.
    """

    def __init__(self, network: Any, attend: Attend) -> None:
        super().__init__()
        self.network, self.attend = network, attend
        hook_attention(network)

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """One call of the graph: residuals [groups, frames, …] of the skips, in order, then of the middle."""
        (condition,) = others  # exporters take what follows the text for one argument
        network, (groups, frames) = self.network, sample.shape[:2]
        handed = {"cross_attention_kwargs": {"fairy_call": plain_call(self.attend, groups, frames)}}
        times = timestep.unsqueeze(0).expand(groups, frames).reshape(-1)
        emb = network.time_embedding(network.time_proj(times).to(sample.dtype))
        embedded = condition.unsqueeze(0).expand(groups, -1, -1, -1, -1).flatten(0, 1)
        x = network.conv_in(sample.flatten(0, 1)) + embedded
        skips: tuple[Tensor, ...] = (x,)

        def told(block: Any) -> dict[str, Any]:
            attends = getattr(block, "has_cross_attention", False)
            return {"encoder_hidden_states": text, **handed} if attends else {}

        for block in network.down_blocks:
            x, own = block(hidden_states=x, temb=emb, **told(block))
            skips += own
        x = network.mid_block(x, emb, **told(network.mid_block))
        down = [conv(skip) for skip, conv in zip(skips, network.controlnet_down_blocks, strict=True)]
        return tuple(t.unflatten(0, (groups, frames)) for t in (*down, network.controlnet_mid_block(x)))


class AdapterGraph(nn.Module):
    """Pictures [frames, c, H, W] in 0…1 to a `T2IAdapter`'s features of every level [frames, C, h/2^L, w/2^L]."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """One call of the graph."""
        return tuple(self.network(image))


def _tensor(name: str, channels: int, level: int) -> TensorSpec:
    sides = (f"height_{level}", f"width_{level}") if level else ("height", "width")
    return TensorSpec(name, "float", ("groups", "frames", channels, *sides))
