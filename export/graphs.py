"""What each graph takes and gives: the one source of tensor names, types and symbolic dimensions.

A UNet graph is parametrised layer by layer: whose tokens a self-attention layer reads (the frame's own, those of the
whole batch, or none), which context segments it is handed and whether all frames share them, and whether it hands
out its keys and values. An editing method is a choice of these, not another exporter.

Symbolic dimensions
    groups   guidance branches            frames   pictures in the batch
    height, width   of the latents        tokens   of the text
    own_L    height·width / 4^L           context_L   length of a context segment at level L
    height_L, width_L   height and width / 2^L
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from fairy.kernels.errors import InputError
from fairy.kernels.limits import MAX_SEGMENTS

OwnTokens = Literal["frame", "batch", "none"]
ContextSegment = Literal["shared", "frame"]
ControlKind = Literal["controlnet", "adapter"]

LAYER_CHOICES = ("all", "decoder")
# diffusers copies batches of 64 and more before it upsamples; a trace sees fewer, and its file serves any number.
_FEW = (1, 63)
_DECODERS = ("up_blocks.", "single_transformer_blocks.")  # the second half of a network, where it has halves
_TIME_IDS = 6  # SDXL's micro-conditioning: height and width of the original, of the crop's corner, of the target


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output: its name, its type ("float" = the graph's own precision) and its dimensions."""

    name: str
    dtype: Literal["float", "float32", "int64"]
    dims: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class SelfAttention:
    """One self-attention layer of a UNet, and how a graph runs it.

    Attributes:
        name: the module's path in the UNet.
        level: resolution level; level L has height·width / 4^L tokens.
        heads, channels: of keys and values; channels = heads·dim.
        own: whose tokens it attends to besides the context: the frame's own, those of every frame in the batch
            (joint attention), or none.
        segments: the context segments it is handed, "shared" by all frames of a group or one per "frame".
        emits: whether the graph hands out its keys and values.
        per_place: how many tokens a frame hands out for every place of the level: 2 = the source's beside the target's.
    """

    name: str
    level: int
    heads: int
    channels: int
    own: OwnTokens = "frame"
    segments: tuple[ContextSegment, ...] = ()
    emits: bool = False
    per_place: int = 1

    def __post_init__(self) -> None:
        served = MAX_SEGMENTS - (self.own == "batch")  # the batch's own tokens are read as a segment too
        if len(self.segments) > served:
            raise InputError(f"{self.name} has {len(self.segments)} context segments; at most {served} are served.")
        if self.own == "none" and not self.segments:
            raise InputError(f"{self.name} would attend to nothing: switch its own tokens on or give it a segment.")

    def tokens(self, latent_size: tuple[int, int]) -> int:
        """How many tokens a frame with latents of that size (h, w) hands out."""
        return (latent_size[0] >> self.level) * (latent_size[1] >> self.level) * self.per_place

    @property
    def emitted(self) -> tuple[str, str]:
        """Names of the outputs that hold its keys and values."""
        return f"{self.name}.k", f"{self.name}.v"

    def context(self, segment: int) -> tuple[str, str]:
        """Names of the inputs that hold the keys and values of one segment."""
        return f"context.{segment}.{self.name}.k", f"context.{segment}.{self.name}.v"


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One graph's tensors, in the order the graph takes and gives them.

    Attributes:
        layers: self-attention layers; of UNets with anchors only.
        multiple: what height and width must be a multiple of.
        frames: the fewest and the most that a call may hold; an exporter may rely on it.
        options: what else a family's module is told, by name.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: tuple[SelfAttention, ...] = ()
    multiple: int = 1
    frames: tuple[int, int] = (1, 1 << 24)
    options: tuple[tuple[str, str], ...] = ()


def text_encoder_spec(tokens: int, channels: int) -> GraphSpec:
    """Token ids to text features [batch, tokens, channels]."""
    return GraphSpec(
        "text_encoder",
        (TensorSpec("input_ids", "int64", ("batch", tokens)),),
        (TensorSpec("text", "float", ("batch", tokens, channels)),),
    )


def vae_encoder_spec(latent_channels: int) -> GraphSpec:
    """Pictures in −1…1 to image latents: the mode of the distribution, not scaled."""
    return GraphSpec(
        "vae_encoder",
        (TensorSpec("image", "float", ("frames", 3, "image_height", "image_width")),),
        (TensorSpec("image_latents", "float", ("frames", latent_channels, "height", "width")),),
        frames=_FEW,
    )


def vae_decoder_spec(latent_channels: int) -> GraphSpec:
    """Latents as the UNet has them (scaled) to pictures around −1…1."""
    return GraphSpec(
        "vae_decoder",
        (TensorSpec("latents", "float", ("frames", latent_channels, "height", "width")),),
        (TensorSpec("image", "float", ("frames", 3, "image_height", "image_width")),),
        frames=_FEW,
    )


def unet_spec(
    name: str,
    layers: tuple[SelfAttention, ...],
    *,
    in_channels: int,
    out_channels: int,
    text_channels: int,
    conditions: tuple[TensorSpec, ...] = (),
    multiple: int | None = None,
) -> GraphSpec:
    """A UNet graph whose self-attention layers run as `layers` says, with further `conditions` after the text.

    `multiple`: what the sides of latents must be a multiple of; None = what the layers' levels need.
    """
    sample = ("groups", "frames", in_channels, "height", "width")
    context = [_context_tensors(layer, s) for layer in layers for s in range(len(layer.segments))]
    emitted = [_emitted_tensors(layer) for layer in layers if layer.emits]
    return GraphSpec(
        name,
        (
            TensorSpec("sample", "float", sample),
            TensorSpec("timestep", "float32", ("frames",)),
            TensorSpec("text", "float", ("groups", "tokens", text_channels)),
            *conditions,
            *(tensor for pair in context for tensor in pair),
        ),
        (
            TensorSpec("output", "float", ("groups", "frames", out_channels, "height", "width")),
            *(tensor for pair in emitted for tensor in pair),
        ),
        layers,
        multiple or 1 << max((layer.level for layer in layers), default=0),
    )


def with_layers(spec: GraphSpec, name: str, layers: tuple[SelfAttention, ...]) -> GraphSpec:
    """The denoising network's graph without context (`spec`), with its self-attention layers run as `layers` says."""
    context = [t for layer in layers for s in range(len(layer.segments)) for t in _context_tensors(layer, s)]
    emitted = [t for layer in layers if layer.emits for t in _emitted_tensors(layer)]
    return replace(spec, name=name, inputs=(*spec.inputs, *context), outputs=(*spec.outputs, *emitted), layers=layers)


def added_conditions(unet: Any) -> tuple[TensorSpec, ...]:
    """What a diffusers UNet takes besides text: pooled text and sizes where it is of the SDXL class, else nothing.

    Raises:
        InputError: it takes embeddings of another kind.
    """
    config = unet.config
    if config.addition_embed_type is None:
        return ()
    if config.addition_embed_type != "text_time":
        raise InputError(f"A UNet with {config.addition_embed_type!r} embeddings is not served; only text_time is.")
    pooled = config.projection_class_embeddings_input_dim - _TIME_IDS * config.addition_time_embed_dim
    return (
        TensorSpec("text_embeds", "float", ("groups", pooled)),
        TensorSpec("time_ids", "float32", ("groups", _TIME_IDS)),
    )


def anchor_layers(layers: tuple[SelfAttention, ...], choice: str) -> tuple[SelfAttention, ...]:
    """Phase A: in the chosen layers all frames of the batch attend to each other, and keys and values come out."""
    return tuple(replace(layer, own="batch", emits=True) if _chosen(layer, choice) else layer for layer in layers)


def continued_anchor_layers(layers: tuple[SelfAttention, ...], choice: str) -> tuple[SelfAttention, ...]:
    """Phase A of a segment that continues another one's look: they share the keys and values of its anchor."""
    return tuple(
        replace(layer, segments=("shared",)) if layer.emits else layer for layer in anchor_layers(layers, choice)
    )


def frame_layers(layers: tuple[SelfAttention, ...], choice: str) -> tuple[SelfAttention, ...]:
    """Phase B: in the chosen layers every frame attends to itself and to one segment that all frames share."""
    return tuple(replace(layer, segments=("shared",)) if _chosen(layer, choice) else layer for layer in layers)


def source_layers(
    layers: tuple[SelfAttention, ...], choice: str, sources: int, *, own: bool
) -> tuple[SelfAttention, ...]:
    """In the chosen layers every frame attends to so many others of its own choice, and keys and values come out.

    `own`: to itself too; without sources it always does.
    """
    itself: OwnTokens = "frame" if own or not sources else "none"
    each: ContextSegment = "frame"
    segments = (each,) * sources
    return tuple(
        replace(layer, own=itself, segments=segments, emits=True) if _chosen(layer, choice) else layer
        for layer in layers
    )


def self_attention_layers(unet: Any, check: Callable[[str, Any], None] | None = None) -> tuple[SelfAttention, ...]:
    """The self-attention layers of a diffusers `UNet2DConditionModel`, in the order they run.

    Args:
        check: told every attention layer's name and module; it raises for what cannot be served. None = norms and
            residuals of its own are not.

    Raises:
        InputError: the UNet has attention that this runtime cannot hand an anchor bank to.
    """
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    odd = [name for name in names if not name.endswith((".attn1", ".attn2"))]
    if odd:
        raise InputError(
            f"The UNet has attention outside transformer blocks ({odd[0]}), which cannot be given anchors."
        )
    modules = {name: unet.get_submodule(name) for name in names}
    for name, module in modules.items():
        (check or _check_attention)(name, module)
    selfish = [name for name, module in modules.items() if name.endswith(".attn1") and not module.is_cross_attention]
    levels = len(unet.config.block_out_channels)
    layers = (
        SelfAttention(name, _level(name, levels), modules[name].heads, modules[name].to_k.out_features)
        for name in sorted(selfish, key=lambda name: _running_order(name, levels))
    )
    return tuple(layers)


def _chosen(layer: SelfAttention, choice: str) -> bool:
    if choice not in LAYER_CHOICES:
        raise InputError(
            "is not known", name="layers", value=choice, remedy=f"choose one of {', '.join(LAYER_CHOICES)}"
        )
    return choice == "all" or layer.name.startswith(_DECODERS)


def _context_tensors(layer: SelfAttention, segment: int) -> tuple[TensorSpec, TensorSpec]:
    frames: str | int = 1 if layer.segments[segment] == "shared" else "frames"
    dims = ("groups", frames, f"context_{layer.level}", layer.channels)
    k, v = layer.context(segment)
    return TensorSpec(k, "float", dims), TensorSpec(v, "float", dims)


def _emitted_tensors(layer: SelfAttention) -> tuple[TensorSpec, TensorSpec]:
    dims = ("groups", "frames", f"own_{layer.level}", layer.channels)
    k, v = layer.emitted
    return TensorSpec(k, "float", dims), TensorSpec(v, "float", dims)


def _check_attention(name: str, module: Any) -> None:
    plain = (
        module.group_norm is None
        and module.spatial_norm is None
        and module.norm_q is None
        and module.norm_k is None
        and not module.residual_connection
        and module.rescale_output_factor == 1.0
        and getattr(module, "to_add_out", None) is None
    )
    if not plain:
        raise InputError(
            f"The UNet's attention layer {name} has norms or residuals of its own, which is not supported."
        )


def _level(name: str, levels: int) -> int:
    place, index = name.split(".")[:2]
    if place == "mid_block":
        return levels - 1
    return int(index) if place == "down_blocks" else levels - 1 - int(index)


def _running_order(name: str, levels: int) -> tuple[int, ...]:
    place = ("down_blocks", "mid_block", "up_blocks").index(name.split(".")[0])
    return (place, *(int(part) for part in name.split(".") if part.isdigit()))
