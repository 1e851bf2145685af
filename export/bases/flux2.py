"""FLUX.2 [klein]: a transformer over the tokens of text, target and source, on anchors.

Two kinds of blocks: first some with weights of their own for text and pictures ("double stream"), then some with the
same for all tokens ("single stream"). Attention is joint over all tokens of a frame; what anchors hand out is, as
`anchor_tokens` says, the keys and values of their target tokens, or of their source's too. Keys are handed out rotated,
so that nobody who reads them has to know where they were.

*Positions.* A token's are (picture, row, column, word). The target is picture 0, its source picture 10, as diffusers'
pipeline has it. Anchors are read at the target's own places (`anchor_positions="shared"`: what a frame shows somewhere,
it finds at the same place of the anchors), or as pictures 20, 30, … (`"own"`), where an anchor reads itself twice.

*KV models* (`Flux2KleinKVPipeline`) were trained so that a source's tokens see only each other, at a fixed time: their
keys and values are the same at every step. A graph of its own computes them once (`unet_source`), and the others are
given them: a frame's tokens are then [text, target], three fifths of all at 512×384.

Legend of shape suffixes: G groups (guidance branches), F frames, N = G·F, S tokens, C channels, L text tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from fairy.export.bases.attention_hook import Hook
from fairy.export.graphs import (
    GraphSpec,
    SelfAttention,
    TensorSpec,
    anchor_layers,
    continued_anchor_layers,
    frame_layers,
    vae_decoder_spec,
    vae_encoder_spec,
    with_layers,
)
from fairy.export.lora import Lora
from fairy.export.model import Attend, Picture, WithoutControls
from fairy.kernels.anchor_attention import anchor_attention
from fairy.kernels.errors import InputError

GRAPHS = ("vae_encoder", "vae_decoder", "unet_anchor", "unet_frame")
SOURCE_GRAPH = "unet_source"
TEXT_LAYERS = (9, 18, 27)  # hidden states of the text encoder that are put side by side, as the models were trained
TEXT_TOKENS = 512
_PATCH = 2  # latents of the autoencoder a side that are one of ours
_SOURCE, _FIRST_ANCHOR, _APART = 10, 20, 10  # pictures' positions
_AXES = 4
_SOURCE_TOKENS = ("groups", "frames", "source_tokens")
_LONG = 4300  # tokens from which the shift no longer depends on the steps


@dataclass(frozen=True, slots=True)
class Flux2Klein(WithoutControls):
    """The networks of a FLUX.2 [klein] folder; see `fairy.export.model.EditModel`.

    Attributes:
        distilled: few steps without guidance; else two branches, of which both see the picture.
        cached_source: trained so that a source's tokens see only each other (the KV models).
    """

    name: str
    transformer: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler_config: dict[str, Any]
    recommended: dict[str, Any]
    distilled: bool
    cached_source: bool = False
    folder: Path | None = None
    variant: str | None = None
    weights: Mapping[str, list[Path]] = field(default_factory=dict)

    @property
    def vae_factor(self) -> int:
        return int(_PATCH * 2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def size_multiple(self) -> int:
        return self.vae_factor

    @property
    def latent_channels(self) -> int:
        return int(self.transformer.config.in_channels)

    @property
    def condition(self) -> Literal["image", "depth"]:
        return "image"

    @property
    def usual(self) -> Mapping[str, Any]:
        """Four steps without guidance, or fifty with it, as diffusers' pipelines have them."""
        few, many = (
            {"num_inference_steps": 4, "guidance_scale": 1.0},
            {"num_inference_steps": 50, "guidance_scale": 4.0},
        )
        own = {"anchor_tokens": "target", "anchor_positions": "shared"}
        return {"sampler": "flow_match_euler", "image_guidance_scale": 1.0} | own | (few if self.distilled else many)

    @property
    def branches(self) -> int:
        return 1 if self.distilled else 2

    @property
    def text_sees(self) -> bool:
        return False

    @property
    def text_tokens(self) -> int:
        """512, as the pipelines have it; fewer where the tokenizer says so."""
        return min(TEXT_TOKENS, int(self.tokenizer.model_max_length))

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
        return (*GRAPHS, SOURCE_GRAPH) if self.cached_source else GRAPHS

    @property
    def rare_graphs(self) -> tuple[str, ...]:
        return ("unet_anchor_continued",)

    def graphs(
        self, *, layers: str = "all", anchor_tokens: str = "target", anchor_positions: str = "shared"
    ) -> dict[str, GraphSpec]:
        """The graphs by name; `layers`: "all", or "decoder" = the blocks of a single stream.

        `anchor_tokens`, `anchor_positions`: see this file's head.
        """
        each = 2 if anchor_tokens == "both" else 1
        plain = tuple(replace(layer, per_place=each) for layer in _layers(self.transformer))
        c = self.latent_channels
        text_channels = int(self.transformer.config.joint_attention_dim)
        unet = GraphSpec(
            "unet",
            (
                TensorSpec("sample", "float", ("groups", "frames", 2 * c, "height", "width")),
                TensorSpec("timestep", "float32", ("frames",)),
                TensorSpec("text", "float", ("groups", "tokens", text_channels)),
            ),
            (TensorSpec("output", "float", ("groups", "frames", c, "height", "width")),),
            plain,
            options=(("anchor_positions", anchor_positions),),
        )
        kept = [
            TensorSpec(name, "float", (*_SOURCE_TOKENS, layer.channels)) for layer in plain for name in _kept(layer)
        ]
        source = GraphSpec(
            SOURCE_GRAPH,
            (TensorSpec("source", "float", ("groups", "frames", c, "height", "width")),),
            tuple(kept),
        )
        if self.cached_source:
            unet = replace(unet, inputs=(*unet.inputs, *kept))
        specs = (
            vae_encoder_spec(c),
            vae_decoder_spec(c),
            *((source,) if self.cached_source else ()),
            unet,
            with_layers(unet, "unet_anchor", anchor_layers(plain, layers)),
            with_layers(unet, "unet_anchor_continued", continued_anchor_layers(plain, layers)),
            with_layers(unet, "unet_frame", frame_layers(plain, layers)),
        )
        return {spec.name: spec for spec in specs}

    def build(self, spec: GraphSpec, attend: Attend = anchor_attention) -> nn.Module:
        """The module that computes a graph. Raises InputError."""
        if spec.layers:
            return Flux2Graph(self.transformer, spec, attend, cached_source=self.cached_source)
        if spec.name == SOURCE_GRAPH:
            return Flux2SourceGraph(self.transformer, spec, attend)
        if spec.name == "vae_encoder":
            return PackedEncoderGraph(self.vae)
        if spec.name == "vae_decoder":
            return PackedDecoderGraph(self.vae)
        raise InputError(f"There is no graph named {spec.name!r}.")

    def network_of(self, spec: GraphSpec) -> str:
        return "transformer" if spec.layers or spec.name == SOURCE_GRAPH else "vae"

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
        """There is no graph that would take them alone."""
        raise InputError(f"{self.name} encodes its text by `encode_text`.")

    def _ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, list[bool]]:
        """Ids of texts as the chat template puts them, filled up or cut to `text_tokens`, and which of them count."""
        chats = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
            for text in texts
        ]
        cut = [len(self.tokenizer(chat, verbose=False).input_ids) > self.text_tokens for chat in chats]
        how = {"padding": "max_length", "max_length": self.text_tokens, "truncation": True, "return_tensors": "pt"}
        told = self.tokenizer(chats, **how)
        return told.input_ids, told.attention_mask, cut

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str], picture: Picture | None, device: Any) -> tuple[Tensor, list[bool]]:
        """[texts, `text_tokens`, channels]. The encoder is on the device for this call only; one text at a time."""
        ids, mask, cut = self._ids(texts)
        home = self.text_encoder.device
        self.text_encoder.to(device)
        try:
            rows = [self._states(i[None].to(device), m[None].to(device)) for i, m in zip(ids, mask, strict=True)]
        finally:
            self.text_encoder.to(home)
        return torch.cat(rows), cut

    def _states(self, ids: Tensor, mask: Tensor) -> Tensor:
        told = self.text_encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        return torch.cat([told.hidden_states[k] for k in TEXT_LAYERS], dim=-1)

    def as_edited(self, image_latents: Tensor) -> Tensor:
        """The encoder's graph gives them so already."""
        return image_latents.float()

    def flow_shift(self, latent_size: tuple[int, int], num_inference_steps: int) -> float:
        """What was fitted for FLUX.2: lines in the number of tokens for 10 and for 200 steps, and between them."""
        tokens = latent_size[0] * latent_size[1]
        many = 0.00016927 * tokens + 0.45666666
        if tokens > _LONG:
            return many
        few = 8.73809524e-05 * tokens + 1.89833333
        slope = (many - few) / 190.0
        return slope * num_inference_steps + (many - 200.0 * slope)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of transformer and autoencoder; the text encoder leaves the device when the text is done."""
        return (parameter for network in (self.transformer, self.vae) for parameter in network.parameters())


def _layers(transformer: Any) -> tuple[SelfAttention, ...]:
    """The attention layers of a `Flux2Transformer2DModel`, in the order they run."""
    kinds = (
        ("transformer_blocks", transformer.transformer_blocks),
        ("single_transformer_blocks", transformer.single_transformer_blocks),
    )
    return tuple(
        SelfAttention(f"{kind}.{i}.attn", 0, block.attn.heads, block.attn.inner_dim)
        for kind, blocks in kinds
        for i, block in enumerate(blocks)
    )


class PackedEncoderGraph(nn.Module):
    """Pictures [frames, 3, H, W] in −1…1 to normalised latents of squares of 2×2 [frames, 4·c, h, w]."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> tuple[Tensor]:
        mode = self.vae.encode(image).latent_dist.mode()
        mean, deviation = _normal(self.vae, mode.dtype)
        return ((nn.functional.pixel_unshuffle(mode, _PATCH) - mean) / deviation,)


class PackedDecoderGraph(nn.Module):
    """The way back: [frames, 4·c, h, w] to pictures [frames, 3, H, W] around −1…1."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> tuple[Tensor]:
        mean, deviation = _normal(self.vae, latents.dtype)
        return (self.vae.decode(nn.functional.pixel_shuffle(latents * deviation + mean, _PATCH), return_dict=False)[0],)


def _normal(vae: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every channel of the packed latents, [1, 4·c, 1, 1]."""
    mean, variance = (t.view(1, -1, 1, 1).to(dtype) for t in (vae.bn.running_mean, vae.bn.running_var))
    return mean, torch.sqrt(variance + vae.config.batch_norm_eps)


@dataclass(slots=True)
class _Call:
    """What one call hands down to its attention layers and gets back from them.

    Attributes:
        text, places: how many tokens the text and one picture have; a frame's are [text, target, source], or, where
            the source's keys and values are given, [text, target].
        turn: cos and sin [F, dim] that take keys from the target's position to the anchors'; None = they stay there.
        context: keys and values that are given.
    """

    attend: Attend
    groups: int
    frames: int
    text: int
    places: int
    turn: tuple[Tensor, Tensor] | None
    layers: dict[str, SelfAttention]
    context: dict[str, Tensor]
    emitted: dict[str, Tensor] = field(default_factory=dict)


class Flux2Graph(nn.Module):
    """A FLUX.2 transformer that denoises frames beside their sources as its `spec` says; see `EditModel`."""

    def __init__(self, transformer: Any, spec: GraphSpec, attend: Attend, *, cached_source: bool) -> None:
        super().__init__()
        self.transformer, self.spec, self.attend, self.cached_source = transformer, spec, attend, cached_source
        self.own_positions = dict(spec.options).get("anchor_positions") == "own"
        self.context_names = [tensor.name for tensor in spec.inputs[3:]]
        _hook_in(transformer)

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor, *context: Tensor) -> tuple[Tensor, ...]:
        """One call of the graph; tensors in the order of `spec`."""
        net = self.transformer
        groups, frames, _, height, width = sample.shape
        pictures = sample.chunk(2, dim=2)[: 1 if self.cached_source else 2]
        places = height * width
        call = _Call(
            self.attend,
            groups,
            frames,
            text.shape[1],
            places,
            _turn(net.pos_embed, frames, sample.device) if self.own_positions else None,
            {layer.name: layer for layer in self.spec.layers},
            dict(zip(self.context_names, context, strict=True)),
        )
        times = timestep.unsqueeze(0).expand(groups, frames).reshape(-1).to(sample.dtype)
        of_time = net.time_guidance_embed(times, None)
        hidden = net.x_embedder(torch.cat([_tokens(picture) for picture in pictures], dim=1))
        told = net.context_embedder(text)[:, None].expand(-1, frames, -1, -1).flatten(0, 1)
        positions = _positions(text.shape[1], height, width, sample.device)
        if self.cached_source:
            positions = positions[: text.shape[1] + places]
        hidden = _through_blocks(net, told, hidden, of_time, positions, call)
        hidden = hidden[:, text.shape[1] : text.shape[1] + places]
        output = net.proj_out(net.norm_out(hidden, of_time))
        output = output.transpose(1, 2).unflatten(2, (height, width)).unflatten(0, (groups, frames))
        return output, *(call.emitted[tensor.name] for tensor in self.spec.outputs[1:])


class Flux2SourceGraph(nn.Module):
    """The keys and values of sources [groups, frames, C, h, w] that see only themselves, at time 0; see `spec`."""

    def __init__(self, transformer: Any, spec: GraphSpec, attend: Attend) -> None:
        super().__init__()
        self.transformer, self.spec, self.attend = transformer, spec, attend
        self.layers = {layer.name: replace(layer, emits=True, per_place=1) for layer in _layers(transformer)}
        _hook_in(transformer)

    def forward(self, source: Tensor) -> tuple[Tensor, ...]:
        """[groups, frames, tokens, channels] each, in the order of `spec`."""
        net = self.transformer
        groups, frames, _, height, width = source.shape
        hidden = net.x_embedder(_tokens(source))
        call = _Call(self.attend, groups, frames, 0, height * width, None, self.layers, {})
        of_time = net.time_guidance_embed(source.new_zeros(groups * frames), None)
        positions = _positions(0, height, width, source.device)[height * width :]
        nothing = hidden[:, :0]  # no text
        _through_blocks(net, nothing, hidden, of_time, positions, call)
        return tuple(call.emitted[name] for layer in self.layers.values() for name in layer.emitted)


def _through_blocks(net: Any, told: Tensor, hidden: Tensor, of_time: Tensor, positions: Tensor, call: _Call) -> Tensor:
    """Tokens of text and pictures through all blocks: [N, text + pictures, C]."""
    pictures, words, single = (
        change(of_time)[:, None]
        for change in (net.double_stream_modulation_img, net.double_stream_modulation_txt, net.single_stream_modulation)
    )
    how: dict[str, Any] = {
        "image_rotary_emb": net.pos_embed(positions),
        "joint_attention_kwargs": {"fairy_call": call},
    }
    for block in net.transformer_blocks:
        told, hidden = block(
            hidden_states=hidden, encoder_hidden_states=told, temb_mod_img=pictures, temb_mod_txt=words, **how
        )
    hidden = torch.cat([told, hidden], dim=1)
    for block in net.single_transformer_blocks:
        hidden = block(hidden_states=hidden, encoder_hidden_states=None, temb_mod=single, **how)
    return hidden


def _tokens(picture: Tensor) -> Tensor:
    """[G, F, C, h, w] to [N, h·w, C]."""
    return picture.flatten(0, 1).flatten(2).transpose(1, 2)


def _hook_in(transformer: Any) -> None:
    """Have attention computed as a graph's call says."""
    kinds = {"transformer_blocks": _DoubleHook, "single_transformer_blocks": _SingleHook}
    for kind, hook in kinds.items():
        for i, block in enumerate(getattr(transformer, kind)):
            block.attn.set_processor(hook(f"{kind}.{i}.attn"))


class _DoubleHook(Hook):
    """Into the attention of a block with two streams."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        *,
        fairy_call: _Call,
    ) -> tuple[Tensor, Tensor]:
        assert image_rotary_emb is not None
        pictures = (attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states))
        words = (
            attn.add_q_proj(encoder_hidden_states),
            attn.add_k_proj(encoder_hidden_states),
            attn.add_v_proj(encoder_hidden_states),
        )
        dim = attn.head_dim
        q = torch.cat([_normed(attn.norm_added_q, words[0], dim), _normed(attn.norm_q, pictures[0], dim)], dim=1)
        k = torch.cat([_normed(attn.norm_added_k, words[1], dim), _normed(attn.norm_k, pictures[1], dim)], dim=1)
        v = torch.cat([words[2], pictures[2]], dim=1)
        out = _joint(self.name, q, k, v, image_rotary_emb, attn.heads, fairy_call)
        told, shown = out[:, : fairy_call.text], out[:, fairy_call.text :]
        return attn.to_out[0](shown), attn.to_add_out(told)


class _SingleHook(Hook):
    """Into that of a block with one stream, whose feed-forward runs beside it."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        *,
        fairy_call: _Call,
    ) -> Tensor:
        assert image_rotary_emb is not None
        wide = attn.mlp_hidden_dim * attn.mlp_mult_factor
        qkv, beside = attn.to_qkv_mlp_proj(hidden_states).split([3 * attn.inner_dim, wide], dim=-1)
        q, k, v = qkv.chunk(3, dim=-1)
        q, k = _normed(attn.norm_q, q, attn.head_dim), _normed(attn.norm_k, k, attn.head_dim)
        out = _joint(self.name, q, k, v.contiguous(), image_rotary_emb, attn.heads, fairy_call)
        joined: Tensor = attn.to_out(torch.cat([out, attn.mlp_act_fn(beside)], dim=-1))
        return joined


def _joint(
    name: str, q: Tensor, k: Tensor, v: Tensor, rotation: tuple[Tensor, Tensor], heads: int, call: _Call
) -> Tensor:
    """Attention of a layer: q, k (normed) and v of a frame's tokens, [N, tokens, heads·dim], to the same."""
    layer, first, last = call.layers[name], call.text, call.text + call.places
    q, k = (_rotated(t, rotation, heads) for t in (q, k))
    q, k, v = (t.unflatten(0, (call.groups, call.frames)) for t in (q, k, v))
    given = [call.context[kept] for kept in _kept(layer) if kept in call.context]  # keys and values of the source
    own = [[k, v], given] if given else [[k, v]]
    handed = [t[:, :, first:last] for t in (k, v)]
    rest = [[t[:, :, :first] for t in (k, v)], given or [t[:, :, last:] for t in (k, v)]]
    if layer.per_place == 2:  # the source's too
        handed = [torch.cat(pair, dim=2) for pair in zip(handed, rest.pop(), strict=True)]
    if call.turn is not None and (layer.emits or layer.own == "batch"):
        handed[0] = _rotated(handed[0], (call.turn[0][None, :, None], call.turn[1][None, :, None]), heads)
    if layer.emits:
        call.emitted.update(zip(layer.emitted, (t.contiguous() for t in handed), strict=True))
    read = [[call.context[n] for n in layer.context(s)] for s in range(len(layer.segments))]
    if layer.own == "batch":  # everybody's that is handed out
        read.insert(0, [t.flatten(1, 2).unsqueeze(1) for t in handed])
    if layer.own == "none" or (layer.own == "batch" and call.turn is None):  # and of one's own the rest
        own = rest if given else [[torch.cat(t, dim=2) for t in zip(*rest, strict=True)]]
    keys, values = zip(*own, *read, strict=True)
    return call.attend(q, None, None, keys, values, heads=heads).flatten(0, 1)


def _kept(layer: SelfAttention) -> tuple[str, str]:
    """Names of a source's keys and values in a layer."""
    return f"source.{layer.name}.k", f"source.{layer.name}.v"


def _normed(norm: Any, t: Tensor, dim: int) -> Tensor:
    """A norm over every head of [.., heads·dim]."""
    normed: Tensor = norm(t.unflatten(-1, (-1, dim))).flatten(-2)
    return normed


def _rotated(t: Tensor, rotation: tuple[Tensor, Tensor], heads: int) -> Tensor:
    """[.., S, heads·dim], each pair of a head's channels turned by its angle; cos and sin end in [S or 1, dim]."""
    pairs, (cos, sin) = t.unflatten(-1, (heads, -1)).float(), rotation
    real, imaginary = pairs.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-imaginary, real], dim=-1).flatten(-2)
    rotated: Tensor = (pairs * cos.unsqueeze(-2) + turned * sin.unsqueeze(-2)).flatten(-2).to(t.dtype)
    return rotated


def _positions(text: int, height: int, width: int, device: torch.device) -> Tensor:
    """Of the tokens [text, target, source]: picture, row, column, word, [S, 4]."""
    word = torch.arange(text, device=device)
    none = torch.zeros_like(word)
    row = torch.arange(height, device=device)[:, None].expand(height, width).reshape(-1)
    column = torch.arange(width, device=device).expand(height, width).reshape(-1)
    zero = torch.zeros_like(row)
    target = torch.stack([zero, row, column, zero], dim=1)
    source = torch.stack([zero + _SOURCE, row, column, zero], dim=1)
    return torch.cat([torch.stack([none, none, none, word], dim=1), target, source])


def _turn(pos_embed: Any, frames: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The rotation from the target's position to those of so many anchors, cos and sin [F, dim]."""
    picture = _FIRST_ANCHOR + _APART * torch.arange(frames, device=device)
    zero = torch.zeros_like(picture)
    cos, sin = pos_embed(torch.stack([picture, *([zero] * (_AXES - 1))], dim=1))
    return cos, sin


__all__ = ["GRAPHS", "Flux2Graph", "Flux2Klein", "PackedDecoderGraph", "PackedEncoderGraph"]
