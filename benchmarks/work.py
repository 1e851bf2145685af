"""How much work our kernels' calls are, from their shapes alone, and the calls of an edit with Stable Diffusion 1.5.

Sizes are those of 512×384 with three anchors and three branches. The formulas count what the contract of an op asks
for; `benchmarks.bounds` makes times of it.
"""

from collections.abc import Mapping
from types import MappingProxyType

import torch

from fairy.benchmarks.bounds import PEAKS, RESOURCES, Work, bound_of

BRANCHES, ANCHORS, HEADS = 3, 3, 8
FRAMES = 3  # of a micro-batch

# Of the UNet's levels: tokens, and channels of the residual stream.
LEVELS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"level 0": (3072, 320), "level 1": (768, 640), "level 2": (192, 1280), "level 3": (48, 1280)}
)
# name: channels, height, width
NORMS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "level 0": (320, 48, 64),
        "level 0 up": (960, 48, 64),
        "level 1": (640, 24, 32),
        "level 3": (2560, 6, 8),
        "decoder": (256, 192, 256),
    }
)
# name: tokens, and channels of one half
GATES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {name: (tokens, 4 * channels) for name, (tokens, channels) in LEVELS.items() if name != "level 3"}
)
# name: channels, height, width of the small picture
UPSAMPLERS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "level 1 to 0": (640, 24, 32),
        "level 2 to 1": (1280, 12, 16),
        "level 3 to 2": (1280, 6, 8),
        "decoder": (256, 96, 128),
    }
)
# name: tokens, inputs, outputs of the large linear layers: of the feed-forward, and of self-attention
LINEARS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        f"{name}, {level}": (tokens, inputs * channels, outputs * channels)
        for level, (tokens, channels) in LEVELS.items()
        if level != "level 3"
        for name, inputs, outputs in (("gate", 1, 8), ("out", 4, 1), ("q, k, v", 1, 3))
    }
)


def anchor_attention_work(
    frames: int, tokens: int, context: int, heads: int, dim: int, dtype: torch.dtype, *, groups: int = BRANCHES
) -> Work:
    """Every frame of every group on its own tokens and on `context` tokens that the frames of a group share.

    Two matrix products and one exponential for every query, key and head; a multiply-add for the scale, a comparison
    for the maximum and an addition for the sum. What a row pays once a block of keys depends on the blocks and is left
    out, as is the padding of a head's dimension.
    """
    samples, keys, size = groups * frames, tokens + context, dtype.itemsize
    scores = samples * heads * tokens * keys
    num_bytes = size * heads * dim * (4 * samples * tokens + 2 * groups * context)
    return Work(num_bytes, 4 * scores * dim, dtype, 4 * scores, scores)


def group_norm_silu_work(samples: int, channels: int, pixels: int, dtype: torch.dtype) -> Work:
    """Two reads, since statistics come first, and one write; SiLU takes an exponential and a reciprocal.

    Nine operations: three each for the statistics, to normalise, and to negate, add and multiply in SiLU.
    """
    elements = samples * channels * pixels
    return Work(3 * dtype.itemsize * elements, vector_flops=9 * elements, specials=2 * elements)


def geglu_work(rows: int, channels: int, dtype: torch.dtype) -> Work:
    """Two reads and one write; the error function takes some twenty operations and an exponential."""
    elements = rows * channels
    return Work(3 * dtype.itemsize * elements, vector_flops=25 * elements, specials=elements)


def temporal_attention_work(places: int, frames: int, heads: int, channels: int, dtype: torch.dtype) -> Work:
    """Queries, keys and values read and the result written; two products of a place's frames, their exponentials."""
    elements, scores = places * frames * heads * channels, places * heads * frames * frames
    return Work(4 * dtype.itemsize * elements, 4 * scores * channels, dtype, vector_flops=6 * scores, specials=scores)


def guidance_step_work(frames: int, elements: int, dtype: torch.dtype, *, branches: int = BRANCHES) -> Work:
    """Every branch's output, the latents read and written, the shared noise; one multiply-add for each read value."""
    num_bytes = frames * elements * (branches * dtype.itemsize + 8) + 4 * elements
    return Work(num_bytes, vector_flops=2 * frames * elements * (branches + 2))


def upsample_conv_work(samples: int, channels: int, pixels: int, dtype: torch.dtype, *, out: int | None = None) -> Work:
    """Sixteen multiply-adds for each small pixel and pair of channels; the folded weights are read once."""
    out = channels if out is None else out
    elements = samples * pixels * (channels + 4 * out) + 16 * channels * out
    return Work(dtype.itemsize * elements, 32 * samples * pixels * channels * out, dtype)


def fp8_linear_work(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> Work:
    """Activations and result in `dtype`, the weight in 8 bit; three operations to quantise, three for a result."""
    num_bytes = dtype.itemsize * rows * (inputs + outputs) + inputs * outputs + 4 * outputs
    vector_flops = 3 * rows * (inputs + outputs)
    return Work(num_bytes, 2 * rows * inputs * outputs, torch.float8_e4m3fn, vector_flops)


def edit_work(dtype: torch.dtype = torch.float16, frames: int = FRAMES) -> dict[str, Work]:
    """One call of every kernel of ours in a micro-batch of phase B; the autoencoder's take one picture at a time."""
    samples = BRANCHES * frames
    found: dict[str, Work] = {}
    for level, (tokens, channels) in LEVELS.items():
        dim, context = channels // HEADS, ANCHORS * tokens
        found[f"anchor_attention, {level}"] = anchor_attention_work(frames, tokens, context, HEADS, dim, dtype)
    for name, (channels, height, width) in NORMS.items():
        count = 1 if name == "decoder" else samples
        found[f"group_norm_silu, {name}"] = group_norm_silu_work(count, channels, height * width, dtype)
    for name, (tokens, channels) in GATES.items():
        found[f"geglu, {name}"] = geglu_work(samples * tokens, channels, dtype)
    found["guidance_step"] = guidance_step_work(frames, 4 * 48 * 64, dtype)
    for name, (channels, height, width) in UPSAMPLERS.items():
        count = 1 if name == "decoder" else samples
        found[f"upsample_conv, {name}"] = upsample_conv_work(count, channels, height * width, dtype)
    for name, (tokens, inputs, outputs) in LINEARS.items():
        found[f"fp8_linear, {name}"] = fp8_linear_work(samples * tokens, inputs, outputs, dtype)
    return found


def table(works: Mapping[str, Work] | None = None) -> str:
    """The bounds of every call on every GPU whose peaks are known, as text: microseconds, and what binds."""
    works = edit_work() if works is None else works
    heads = ("one call", "MB", "matrix GFLOP", "vector GFLOP", "10⁶ special", *(f"{peak.name}, µs" for peak in PEAKS))
    lines = [heads, *(_texts(name, work) for name, work in works.items())]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    rows = ("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)
    sources = (f"{peak.name}: {peak.source}" for peak in PEAKS)
    return "\n".join([_HEADING, *rows, _LEGEND, *sources])


_HEADING = (
    f"The least time of one call at Stable Diffusion 1.5's sizes, 512×384: {FRAMES} frames, {BRANCHES} branches, "
    f"{ANCHORS} anchors, float16 (the decoder's: one picture)"
)
_LETTERS = dict(zip(RESOURCES, "mtvs", strict=True))
_LEGEND = "bound by " + ", ".join(f"{letter}: {name}" for name, letter in _LETTERS.items()) + "; by published peaks:"


def _texts(name: str, work: Work) -> tuple[str, ...]:
    bounds = [bound_of(work, peak) for peak in PEAKS]
    return (
        name,
        f"{work.num_bytes / 1e6:.4g}",
        f"{work.flops / 1e9:.4g}",
        f"{work.vector_flops / 1e9:.3g}",
        f"{work.specials / 1e6:.4g}",
        *("–" if bound is None else f"{bound.ms * 1e3:.4g} {_LETTERS[bound.binding]}" for bound in bounds),
    )
