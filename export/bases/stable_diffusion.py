"""The graphs as modules: any diffusers InstructPix2Pix-type checkpoint, with the anchor bank as arguments.

`UNetGraph` runs a `UNet2DConditionModel` as its `GraphSpec` says. Keys and values of other frames come in as inputs
and go out as outputs; nothing of a call is stored on a module, so one UNet serves several graphs at once.

Legend of shape suffixes: G groups (guidance branches), F frames, S tokens, C channels.
"""

from typing import Any

from torch import Tensor, nn

from fairy.export.bases.attention_hook import Call, hook_attention
from fairy.export.bases.control import added_inputs
from fairy.export.control import build_control, control_graphs, control_part
from fairy.export.graphs import (
    GraphSpec,
    added_conditions,
    anchor_layers,
    continued_anchor_layers,
    frame_layers,
    self_attention_layers,
    source_layers,
    text_encoder_spec,
    unet_spec,
    vae_decoder_spec,
    vae_encoder_spec,
)
from fairy.export.ip_adapter import styled_graphs
from fairy.export.model import Attend
from fairy.kernels.anchor_attention import anchor_attention
from fairy.kernels.errors import InputError

EDIT_GRAPHS = ("text_encoder", "vae_encoder", "vae_decoder", "unet_anchor", "unet_frame")
"""Graphs that an edit with anchors uses."""

RARE_GRAPHS = ("unet_anchor_continued", "unet_no_sources", "unet_2_sources")
"""Graphs that are exported and built only where they are asked for by name."""


class UNetGraph(nn.Module):
    """A diffusers UNet that denoises a batch of frames in several guidance branches as its `spec` says.

    Inputs and outputs, in the order of `spec`:
        sample [groups, frames, in_channels, h, w], timestep [frames] float32, text [groups, tokens, channels],
        then, for an SDXL-class UNet, text_embeds [groups, channels] and time_ids [groups, 6] float32,
        then what ControlNets and adapters add, where the graph takes it (`bases/control.py`), and a picture's tokens
        with their scale, where it reads them (`ip_adapter.py`),
        then keys and values of every context segment [groups, frames or 1, length, heads·dim];
        output [groups, frames, out_channels, h, w], then emitted keys and values [groups, frames, h·w/4^L, heads·dim].

    `attend` computes every attention layer; an exporter passes one that leaves a node in the graph instead.
    """

    def __init__(self, unet: Any, spec: GraphSpec, attend: Attend = anchor_attention) -> None:
        super().__init__()
        self.unet = unet
        self.spec = spec
        self.attend = attend
        self.condition_names = [tensor.name for tensor in added_conditions(unet)]
        others = [tensor.name for tensor in spec.inputs[3 + len(self.condition_names) :]]
        self.added_names = [name for name in others if not name.startswith("context.")]
        self.context_names = others[len(self.added_names) :]
        hook_attention(unet)

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """One call of the graph; tensors as in the class's description and in the order of `spec`."""
        groups, frames = sample.shape[:2]
        after = others[len(self.condition_names) :]
        added, context = dict(zip(self.added_names, after, strict=False)), after[len(self.added_names) :]
        conditions = {
            name: t_GC.unsqueeze(1).expand(-1, frames, -1).flatten(0, 1)
            for name, t_GC in zip(self.condition_names, others, strict=False)
        }
        call = Call(
            self.attend,
            groups,
            frames,
            {layer.name: layer for layer in self.spec.layers},
            dict(zip(self.context_names, context, strict=True)),
            style=(added["style"], added["style_scale"]) if "style" in added else None,
        )
        output = self.unet(
            sample.flatten(0, 1),
            timestep.unsqueeze(0).expand(groups, frames).reshape(-1),
            text,
            added_cond_kwargs=conditions or None,
            cross_attention_kwargs={"fairy_call": call},
            return_dict=False,
            **added_inputs(added),
        )[0]
        emitted = (call.emitted[tensor.name] for tensor in self.spec.outputs[1:])
        return output.unflatten(0, (groups, frames)), *emitted


class TextEncoderGraph(nn.Module):
    """Token ids [batch, tokens] to the text encoder's last hidden states [batch, tokens, channels]."""

    def __init__(self, text_encoder: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        return (self.text_encoder(input_ids)[0],)


class VaeEncoderGraph(nn.Module):
    """Pictures [frames, 3, H, W] in −1…1 to the mode of their latent distribution [frames, c, h, w], not scaled."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (self.vae.encode(image).latent_dist.mode(),)


class VaeDecoderGraph(nn.Module):
    """Scaled latents [frames, c, h, w] to pictures [frames, 3, H, W] around −1…1, by an autoencoder's decoder.

    An `AutoencoderTiny` says in the same way how it wants latents: its factor is 1, they are taken as they come.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> tuple[Tensor]:
        scaled = latents / self.vae.config.scaling_factor
        shift = getattr(self.vae.config, "shift_factor", None)
        return (self.vae.decode(scaled if shift is None else scaled + shift, return_dict=False)[0],)


def graph_specs(checkpoint: Any, *, layers: str = "all") -> dict[str, GraphSpec]:
    """The graphs of a checkpoint by name, with anchors in the chosen self-attention layers ("all" or "decoder").

    text_encoder, vae_encoder, vae_decoder; unet_anchor (phase A), unet_anchor_continued (phase A that also attends to
    an anchor of the segment before), unet_frame (phase B), and unet, the same network without anchors. Pix2Video's
    are unet_no_sources (its first frame) and unet_2_sources (frames that read two others and not themselves).
    """
    unet, latent_channels = checkpoint.unet, checkpoint.vae.config.latent_channels
    plain = self_attention_layers(unet)
    channels: dict[str, Any] = {
        "in_channels": unet.config.in_channels,
        "out_channels": unet.config.out_channels,
        "text_channels": checkpoint.text_channels,
        "conditions": added_conditions(unet),
        "multiple": checkpoint.size_multiple // checkpoint.vae_factor,
    }
    specs = (
        text_encoder_spec(checkpoint.tokenizer.model_max_length, checkpoint.text_channels),
        vae_encoder_spec(latent_channels),
        vae_decoder_spec(latent_channels),
        unet_spec("unet", plain, **channels),
        unet_spec("unet_anchor", anchor_layers(plain, layers), **channels),
        unet_spec("unet_anchor_continued", continued_anchor_layers(plain, layers), **channels),
        unet_spec("unet_frame", frame_layers(plain, layers), **channels),
        unet_spec("unet_no_sources", source_layers(plain, layers, 0, own=False), **channels),
        unet_spec("unet_2_sources", source_layers(plain, layers, 2, own=False), **channels),
    )
    graphs = [*specs, *control_graphs(checkpoint, specs)]
    return {spec.name: spec for spec in (*graphs, *styled_graphs(checkpoint, graphs))}


def build_graph(checkpoint: Any, spec: GraphSpec, attend: Attend = anchor_attention) -> nn.Module:
    """The module that computes `spec` with the checkpoint's networks; weights are shared, not copied."""
    if spec.layers:
        return UNetGraph(checkpoint.unet, spec, attend)
    if spec.name == "text_encoder":
        return TextEncoderGraph(checkpoint.text_encoder)
    if spec.name == "vae_encoder":
        return VaeEncoderGraph(checkpoint.vae)
    if spec.name == "vae_decoder":
        return VaeDecoderGraph(checkpoint.decoder)
    if control_part(spec.name) is not None:
        return build_control(checkpoint, spec, attend)
    raise InputError(f"There is no graph named {spec.name!r}.")


__all__ = [
    "EDIT_GRAPHS",
    "RARE_GRAPHS",
    "TextEncoderGraph",
    "UNetGraph",
    "VaeDecoderGraph",
    "VaeEncoderGraph",
    "build_graph",
    "graph_specs",
]
