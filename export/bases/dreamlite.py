"""DreamLite (arXiv 2603.28713): a small UNet that sees the source beside the target, on anchors.

The latents of the target and of the source lie side by side, and the prediction's left half counts. Self-attention is
in the lowest level only, with one head of keys and values for all heads of queries. What anchors hand out is, as
`anchor_tokens` says, the keys and values of their target, or of their source too. A source's own keys and values are
computed anew at every step: they see the target and the time, so that those of another step would be approximate.

The text is encoded by Qwen3-VL together with a picture.

Legend of shape suffixes: G groups (guidance branches), F frames, N = G·F, S tokens, C channels, L text tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fairy.export.bases.attention_hook import Hook, hook_attention
from fairy.export.bases.stable_diffusion import VaeDecoderGraph
from fairy.export.bases.vision_text import VisionText
from fairy.export.graphs import (
    GraphSpec,
    SelfAttention,
    TensorSpec,
    anchor_layers,
    continued_anchor_layers,
    frame_layers,
    self_attention_layers,
    vae_decoder_spec,
    vae_encoder_spec,
    with_layers,
)
from fairy.export.lora import Lora
from fairy.export.model import Attend, Picture, WithoutControls
from fairy.kernels.anchor_attention import anchor_attention
from fairy.kernels.errors import InputError

GRAPHS = ("vae_encoder", "vae_decoder", "unet_anchor", "unet_frame")
_BASE_TOKENS, _MOST_TOKENS = 256, 4096  # of the schedule's shift, where the configuration does not say
_BASE_SHIFT, _MOST_SHIFT = 0.5, 1.16
_PROMPT = (
    "[Edit]: A diptych with two side-by-side images of the same scene. Compared to the right side, the left one has {}"
)
_TEMPLATE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a new image "
    "that meets the user's requirements while maintaining consistency with the original input where appropriate."
    "<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"
)
_TEMPLATE_TOKENS = 64  # of the template's beginning, whose features are not used
_SEEN = 512  # pixels a side of the picture as the text encoder sees it
_MASKED = -10000.0  # added to the scores of what is no text, as diffusers does


@dataclass(frozen=True, slots=True)
class DreamLite(WithoutControls):
    """The networks of a DreamLite folder; see `fairy.export.model.EditModel`.

    Attributes:
        distilled: guidance was distilled away (DreamLite-mobile); else three branches, as InstructPix2Pix has them.
    """

    name: str
    unet: Any
    vae: Any
    text: VisionText
    scheduler_config: dict[str, Any]
    recommended: dict[str, Any]
    distilled: bool
    folder: Path | None = None
    variant: str | None = None
    weights: Mapping[str, list[Path]] = field(default_factory=dict)

    @property
    def vae_factor(self) -> int:
        return int(2 ** (len(self.vae.config.encoder_block_out_channels) - 1))

    @property
    def size_multiple(self) -> int:
        return int(self.vae_factor * 2 ** (len(self.unet.config.block_out_channels) - 1))

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    @property
    def condition(self) -> Literal["image", "depth"]:
        return "image"

    @property
    def usual(self) -> Mapping[str, Any]:
        """Four steps without guidance, or thirty with it, as the paper's pipelines have them."""
        few = {"num_inference_steps": 4, "guidance_scale": 1.0, "image_guidance_scale": 1.0}
        many = {"num_inference_steps": 30, "guidance_scale": 3.5, "image_guidance_scale": 1.5}
        own = {"sampler": "flow_match_euler", "text_picture": "shot", "anchor_tokens": "target"}
        return own | (few if self.distilled else many)

    @property
    def branches(self) -> int:
        return 1 if self.distilled else 3

    @property
    def text_sees(self) -> bool:
        return True

    @property
    def text_tokens(self) -> int:
        """Tokens of a picture and a few words, for which engines are built."""
        return 320

    @property
    def single_file(self) -> None:
        return None

    @property
    def loras(self) -> tuple[Lora, ...]:
        return ()

    @property
    def tiny_decoder_folder(self) -> None:
        return None

    @property
    def frames_at_once(self) -> int | None:
        return None

    @property
    def usual_graphs(self) -> tuple[str, ...]:
        return GRAPHS

    @property
    def rare_graphs(self) -> tuple[str, ...]:
        return ("unet_anchor_continued",)

    def graphs(
        self, *, layers: str = "all", anchor_tokens: str = "target", text_picture: str = "shot"
    ) -> dict[str, GraphSpec]:
        """The graphs by name; `anchor_tokens`: "target", or "both" = the source's too."""
        each = 2 if anchor_tokens == "both" else 1
        plain = tuple(
            replace(layer, heads=_kv_heads(self.unet.get_submodule(layer.name)), per_place=each)
            for layer in self_attention_layers(self.unet, _check_attention)
        )
        c = self.latent_channels
        texts: str | int = 1 if text_picture == "shot" else "frames"
        unet = GraphSpec(
            "unet",
            (
                TensorSpec("sample", "float", ("groups", "frames", 2 * c, "height", "width")),
                TensorSpec("timestep", "float32", ("frames",)),
                TensorSpec("text", "float", ("groups", texts, "tokens", self.text.channels)),
            ),
            (TensorSpec("output", "float", ("groups", "frames", c, "height", "width")),),
            plain,
            self.size_multiple // self.vae_factor,
        )
        specs = (
            vae_encoder_spec(c),
            vae_decoder_spec(c),
            unet,
            with_layers(unet, "unet_anchor", anchor_layers(plain, layers)),
            with_layers(unet, "unet_anchor_continued", continued_anchor_layers(plain, layers)),
            with_layers(unet, "unet_frame", frame_layers(plain, layers)),
        )
        return {spec.name: spec for spec in specs}

    def build(self, spec: GraphSpec, attend: Attend = anchor_attention) -> nn.Module:
        """The module that computes a graph. Raises InputError."""
        if spec.layers:
            return DreamLiteGraph(self.unet, spec, attend, factor=self.vae_factor, pads=self.branches > 1)
        if spec.name == "vae_encoder":
            return TinyEncoderGraph(self.vae)
        if spec.name == "vae_decoder":
            return VaeDecoderGraph(self.vae)
        raise InputError(f"There is no graph named {spec.name!r}.")

    def network_of(self, spec: GraphSpec) -> str:
        return "unet" if spec.layers else "vae"

    def network(self, part: str) -> nn.Module:
        module: nn.Module = getattr(self, part)
        return module

    def with_network(self, part: str, network: nn.Module) -> Self:
        """The model with another network for a part."""
        changes: dict[str, Any] = {part: network}
        return replace(self, **changes)

    def weight_files(self, part: str) -> list[Path] | None:
        """The safetensors files of a part's network; None where it was made in code."""
        return self.weights.get(part)

    def additions(self, part: str) -> list[tuple[Path, float]]:
        """Nothing is added to these weights."""
        return []

    def build_words(self, spec: GraphSpec) -> list[str]:
        """Options of `fairy build` that this very graph needs."""
        return ["--graphs", spec.name] if spec.name in ("unet", *self.rare_graphs) else []

    def text_ids(self, texts: Sequence[str]) -> tuple[Tensor, list[bool]]:
        """There is no text without a picture."""
        raise InputError(f"{self.name} encodes its text with a picture.")

    def encode_text(self, texts: Sequence[str], picture: Picture | None, device: Any) -> tuple[Tensor, list[bool]]:
        """[texts, 1, tokens, channels], zeros where a text is shorter; the first one is the instruction."""
        assert picture is not None
        seen = Image.fromarray(picture).resize((_SEEN, _SEEN), Image.Resampling.LANCZOS)
        prompts = [_PROMPT.format(text) if place == 0 else text for place, text in enumerate(texts)]
        features = self.text.features([_TEMPLATE.format(prompt) for prompt in prompts], seen, device)
        return pad_sequence([f[_TEMPLATE_TOKENS:] for f in features], batch_first=True)[:, None], [False] * len(texts)

    def as_edited(self, image_latents: Tensor) -> Tensor:
        """What the decoder's graph takes for the encoder's latents, in float32."""
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        return (image_latents.float() - shift) * float(self.vae.config.scaling_factor)

    def flow_shift(self, latent_size: tuple[int, int], num_inference_steps: int) -> float:
        """A straight line in the number of tokens, of four latents each (Esser et al., arXiv 2403.03206)."""
        config = self.scheduler_config
        few, many = config.get("base_image_seq_len", _BASE_TOKENS), config.get("max_image_seq_len", _MOST_TOKENS)
        low, high = config.get("base_shift", _BASE_SHIFT), config.get("max_shift", _MOST_SHIFT)
        slope = (high - low) / (many - few)
        return float(latent_size[0] * latent_size[1] // 4 * slope + (low - slope * few))

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of the UNet and the autoencoder; the text encoder leaves the device when the text is done."""
        return (parameter for network in (self.unet, self.vae) for parameter in network.parameters())


class TinyEncoderGraph(nn.Module):
    """Pictures [frames, 3, H, W] in −1…1 to the latents of an `AutoencoderTiny` [frames, c, h, w]."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (self.vae.encode(image).latents,)


@dataclass(slots=True)
class _Call:
    """What one call hands down to its attention layers and gets back from them; `size`: of one half's latents."""

    attend: Attend
    groups: int
    frames: int
    size: tuple[int, int]
    layers: dict[str, SelfAttention]
    context: dict[str, Tensor]
    text_mask: Tensor | None  # [G, 1 or F, 1, 1, L], added to scores
    emitted: dict[str, Tensor] = field(default_factory=dict)


class DreamLiteGraph(nn.Module):
    """A DreamLite UNet that denoises frames beside their sources as its `spec` says; see `EditModel` for its tensors.

    text: [groups, 1 or frames, tokens, channels]; `pads`: tokens that are zero throughout are none, and not read.
    """

    def __init__(self, unet: Any, spec: GraphSpec, attend: Attend, *, factor: int, pads: bool) -> None:
        super().__init__()
        self.unet, self.spec, self.attend, self.factor, self.pads = unet, spec, attend, factor, pads
        self.context_names = [tensor.name for tensor in spec.inputs[3:]]
        hook_attention(unet, _AttentionHook)

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor, *context: Tensor) -> tuple[Tensor, ...]:
        """One call of the graph; tensors in the order of `spec`."""
        groups, frames = sample.shape[:2]
        target, source = sample.chunk(2, dim=2)
        height, width = target.shape[-2:]
        mask = None
        if self.pads:
            is_text = text.ne(0).any(dim=-1)[:, :, None, None]
            mask = (1 - is_text.to(sample.dtype)) * _MASKED
        call = _Call(
            self.attend,
            groups,
            frames,
            (height, width),
            {layer.name: layer for layer in self.spec.layers},
            dict(zip(self.context_names, context, strict=True)),
            mask,
        )
        sides = [sample.new_full((1, 1), side * self.factor) for side in (width, height)]
        output = self.unet(
            torch.cat([target, source], dim=4).flatten(0, 1),
            timestep.unsqueeze(0).expand(groups, frames).reshape(-1).to(sample.dtype),
            text.flatten(0, 1),
            added_cond_kwargs={"time_ids": torch.cat(sides, dim=1)},
            cross_attention_kwargs={"fairy_call": call},
            return_dict=False,
        )[0][..., :width]
        emitted = (call.emitted[tensor.name] for tensor in self.spec.outputs[1:])
        return output.unflatten(0, (groups, frames)), *emitted


class _AttentionHook(Hook):
    """Into a layer with norms of queries and keys, whose keys several heads may share."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *,
        fairy_call: _Call,
    ) -> Tensor:
        call, read = fairy_call, hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q_GFSC, k, v = attn.to_q(hidden_states), attn.to_k(read), attn.to_v(read)
        dim = q_GFSC.shape[-1] // attn.heads
        kv_heads = k.shape[-1] // dim
        # [G, F or 1, tokens, heads·dim], queries with their norm as keys with theirs
        q_GFSC = _normed(attn.norm_q, q_GFSC, dim).unflatten(0, (call.groups, call.frames))
        k, v = (t.unflatten(0, (call.groups, -1)) for t in (_normed(attn.norm_k, k, dim), v))
        if encoder_hidden_states is None:
            out = self._self_attention(attn, _by_kv_head(q_GFSC, attn.heads, kv_heads), k, v, kv_heads, call)
        elif call.text_mask is None:
            out = call.attend(_by_kv_head(q_GFSC, attn.heads, kv_heads), None, None, [k], [v], heads=kv_heads)
        else:
            out = _masked(q_GFSC, k, v, attn.heads, kv_heads, call.text_mask)
            return attn.to_out[0](out.flatten(0, 1))  # type: ignore[no-any-return]
        return attn.to_out[0](_by_query_head(out, attn.heads, kv_heads).flatten(0, 1))  # type: ignore[no-any-return]

    def _self_attention(self, attn: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, call: _Call) -> Tensor:
        layer = call.layers[self.name]
        (target_k, source_k), (target_v, source_v) = (_halves(t, layer.level, call.size) for t in (k, v))
        handed_out = (k, v) if layer.per_place == 2 else (target_k, target_v)
        if layer.emits:
            call.emitted.update(zip(layer.emitted, handed_out, strict=True))
        names = [layer.context(s) for s in range(len(layer.segments))]
        context_k, context_v = ([call.context[name[i]] for name in names] for i in (0, 1))
        if layer.own == "batch":  # everybody's that is handed out
            context_k.insert(0, handed_out[0].flatten(1, 2).unsqueeze(1))
            context_v.insert(0, handed_out[1].flatten(1, 2).unsqueeze(1))
        if layer.own != "frame" and layer.per_place == 1:  # of one's own what is not handed out
            context_k.append(source_k)
            context_v.append(source_v)
        rows = attn.heads // heads
        if layer.own != "frame":
            return call.attend(q, None, None, context_k, context_v, heads=heads)
        if rows == 1:
            return call.attend(q, k, v, context_k, context_v, heads=heads)
        return call.attend(q, None, None, [k, *context_k], [v, *context_v], heads=heads)


def _normed(norm: Any, t: Tensor, dim: int) -> Tensor:
    """A norm over every head of [.., heads·dim], where the layer has one."""
    normed: Tensor = t if norm is None else norm(t.unflatten(-1, (-1, dim))).flatten(-2)
    return normed


def _by_kv_head(q_GFSC: Tensor, heads: int, kv_heads: int) -> Tensor:
    """Queries whose heads share keys as so many queries of the heads that keys have: [G, F, S·r, kv_heads·dim].

    That several heads read the same keys is the same as several queries reading them: keys are never repeated. With one
    head of keys this is a view.
    """
    if heads == kv_heads:
        return q_GFSC
    split = q_GFSC.unflatten(-1, (kv_heads, heads // kv_heads, -1)).transpose(3, 4)  # [G, F, S, r, kv_heads, dim]
    queries: Tensor = split.flatten(4).flatten(2, 3)
    return queries


def _by_query_head(out: Tensor, heads: int, kv_heads: int) -> Tensor:
    """The way back of `_by_kv_head`: [G, F, S, heads·dim]."""
    if heads == kv_heads:
        return out
    split = out.unflatten(2, (-1, heads // kv_heads)).unflatten(-1, (kv_heads, -1))
    joined: Tensor = split.transpose(3, 4).flatten(3)
    return joined


def _masked(q_GFSC: Tensor, k: Tensor, v: Tensor, heads: int, kv_heads: int, mask: Tensor) -> Tensor:
    """Attention to text of which some tokens are none; text is [G, 1 or F, L, kv_heads·dim]."""
    q = q_GFSC.unflatten(-1, (heads, -1)).transpose(2, 3)  # [G, F, heads, S, dim]
    k, v = (t.unflatten(-1, (kv_heads, -1)).transpose(2, 3) for t in (k, v))
    groups, frames = q.shape[:2]
    shape = (groups, frames, heads // kv_heads)

    def expanded(t: Tensor) -> Tensor:
        return t.expand(groups, frames, -1, -1, -1).repeat_interleave(shape[2], dim=2).flatten(0, 1)

    bias = mask.expand(groups, frames, 1, 1, -1).flatten(0, 1)
    out = F.scaled_dot_product_attention(q.flatten(0, 1), expanded(k), expanded(v), attn_mask=bias.to(q.dtype))
    joined: Tensor = out.unflatten(0, (groups, frames)).transpose(2, 3).flatten(3)
    return joined


def _halves(t_GFSC: Tensor, level: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The tokens of the left half and of the right one of what lies side by side, each [G, F, S / 2, C]."""
    height, width = size[0] // 2**level, size[1] // 2**level  # ONNX has no shift of sizes
    rows = t_GFSC.unflatten(2, (height, 2 * width))
    return rows[:, :, :, :width].flatten(2, 3), rows[:, :, :, width:].flatten(2, 3)


def _kv_heads(attention: Any) -> int:
    """Heads of keys and values, which several heads of queries share."""
    return int(attention.to_k.out_features * attention.heads // attention.to_q.out_features)


def _check_attention(name: str, module: Any) -> None:
    """Raise InputError for an attention layer with more to it than norms of queries and keys."""
    if module.group_norm is not None or module.spatial_norm is not None or module.residual_connection:
        raise InputError(
            f"The UNet's attention layer {name} has norms or residuals of its own, which is not supported."
        )


__all__ = ["GRAPHS", "DreamLite", "DreamLiteGraph", "TinyEncoderGraph"]
