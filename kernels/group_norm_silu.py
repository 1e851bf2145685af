# mypy: disable-error-code="untyped-decorator"
"""GroupNorm followed by SiLU in channels-last memory, as every residual block begins, without a copy of the layout.

    y = (x − mean)/√(var + eps) · weight + bias over a group's channels and all pixels;  out = y · sigmoid(y)

Contract
    x             [N, C, H, W], channels-last (also a slice of channels of one); another layout is copied first;
                  float16, bfloat16, float32 (float64 takes the plain path)
    weight, bias  [C], any floating type;  groups divides C;  silu = False leaves the activation out
    result        [N, C, H, W], channels-last, in x's type; statistics and arithmetic in float32
Statistics: every tile's mean and squared deviations in two passes over registers, tiles joined by Chan's formula (Chan,
    Golub, LeVeque 1979), so that a mean far from zero costs nothing; in a fixed order, so the same bytes every time.
    (torch's own channels-last kernel on the CPU, which the plain path uses, loses digits there.)
Source: Wu & He (arXiv 1803.08494); the order of diffusers' `ResnetBlock2D`.
Bound: bytes. Two reads and one write, 3·N·C·H·W·size, since a batch does not stay on the chip between its statistics
    and their use: at level 0 of SD1.5 (320 × 48 × 64) 5.9 MB a sample-forward in 16 bit, 1.5 µs at 4 TB/s.
Measured place: on an H200 (float16, 9 samples, in a CUDA graph) 0.076 ms for 960 × 48 × 64, 4.6 times as fast as torch,
    whose kernel copies the layout, and 44 % of the bound; 1.9 to 2.8 times at the other sizes. torch.compile's is
    faster at four of five. Called by the networks under the backends "compiled" and "cuda-graphs".
Legend: P pixels of a chunk, G groups and K channels of a group in a tile, S chunks of a sample.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import product

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from fairy.kernels.errors import InputError
from fairy.kernels.launching import next_power_of_2, pixel_rows, wants_triton
from fairy.kernels.tuning import Config, pick_config

MAX_CHUNKS = 64  # so many a program of the last launch joins by itself; more are joined by a launch of their own
_JOINED_GROUPS = 4
FILLED = 1024  # programs that fill a large GPU: eight on each of some 130 multiprocessors
TUNING_DIMS: Sequence[dict[str, int]] = tuple(
    {"samples": samples, "pixels": pixels, "channels": channels, "group_channels": channels // 32, "element_bytes": 2}
    for channels, pixels in ((320, 3072), (640, 768), (640, 3072), (960, 3072), (1280, 192), (1920, 768), (2560, 192))
    for samples in (9, 45, 360)
)


def group_norm_silu_reference(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float = 1e-5, silu: bool = True
) -> Tensor:
    """The definition in float32 (float64 for float64), rounded once to x's type; [N, C, H, W] to the same."""
    wide = torch.promote_types(x.dtype, torch.float32)
    x_NGK = x.to(wide).unflatten(1, (groups, -1)).flatten(2)
    centred = x_NGK - x_NGK.mean(-1, keepdim=True)
    normal = centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    y = normal.reshape(x.shape) * weight.to(wide)[:, None, None] + bias.to(wide)[:, None, None]
    out: Tensor = y * torch.sigmoid(y) if silu else y
    return out.to(x.dtype)


def group_norm_silu_plain(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float = 1e-5, silu: bool = True
) -> Tensor:
    """The same as diffusers writes it, in x's own type; [N, C, H, W] to the same."""
    y = F.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype), eps)
    return F.silu(y, inplace=True) if silu else y


@triton.jit
def _join(
    count: tl.tensor, mean: tl.tensor, m2: tl.tensor, n: tl.tensor, m: tl.tensor, d: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Count, mean and squared deviations of two disjoint sets together (Chan's formula)."""
    total = count + n
    shift = m - mean
    return total, mean + shift * (n / total), m2 + d + shift * shift * (count * (n / total))


@triton.jit
def _statistics_kernel(
    x_ptr: tl.tensor,
    means_ptr: tl.tensor,
    m2_ptr: tl.tensor,
    pixels: int,
    groups: int,
    chunk: int,
    chunks: int,
    sample_stride: int,
    pixel_stride: int,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    PIXELS: tl.constexpr,
    GROUPS: tl.constexpr,
) -> None:
    sample, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    group = tl.program_id(2) * GROUPS + tl.arange(0, GROUPS)
    k = tl.arange(0, K_PADDED)
    inside_GK = (group[:, None] < groups) & (k[None, :] < K)
    at_GK = x_ptr + sample * sample_stride + group[:, None] * K + k[None, :]
    end = tl.minimum((split + 1) * chunk, pixels)
    count = 0.0
    mean_G = tl.zeros([GROUPS], tl.float32)
    m2_G = tl.zeros([GROUPS], tl.float32)
    for start in range(split * chunk, end, PIXELS):
        p = start + tl.arange(0, PIXELS)
        inside = (p < end)[:, None, None] & inside_GK[None, :, :]
        at = at_GK[None, :, :] + p.to(tl.int64)[:, None, None] * pixel_stride
        x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        n = (tl.minimum(end - start, PIXELS) * K).to(tl.float32)
        tile_mean_G = tl.sum(tl.sum(x, 0), 1) / n
        centred = tl.where(inside, x - tile_mean_G[None, :, None], 0.0)
        tile_m2_G = tl.sum(tl.sum(centred * centred, 0), 1)
        count, mean_G, m2_G = _join(count, mean_G, m2_G, n, tile_mean_G, tile_m2_G)
    to = (sample * chunks + split) * groups + group
    tl.store(means_ptr + to, mean_G, mask=group < groups)
    tl.store(m2_ptr + to, m2_G, mask=group < groups)


@triton.jit
def _group_statistics(
    means_ptr: tl.tensor,
    m2_ptr: tl.tensor,
    sample: tl.tensor,
    c: tl.tensor,
    pixels: int,
    channels: int,
    groups: int,
    chunk: int,
    chunks: int,
    K: tl.constexpr,
    CHUNKS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Mean and variance of the group of each channel, from those of all its chunks."""
    s = tl.arange(0, CHUNKS)
    here = (s[:, None] < chunks) & (c[None, :] < channels)
    at_SC = (sample * chunks + s[:, None]) * groups + c[None, :] // K
    n_SC = tl.where(here, tl.minimum(chunk, pixels - s[:, None] * chunk) * K, 0).to(tl.float32)
    means_SC = tl.load(means_ptr + at_SC, mask=here, other=0.0)
    total = pixels * K * 1.0
    mean_C = tl.sum(means_SC * (n_SC / total), 0)
    away_SC = tl.where(here, means_SC - mean_C[None, :], 0.0)
    m2_C = tl.sum(tl.load(m2_ptr + at_SC, mask=here, other=0.0) + n_SC * away_SC * away_SC, 0)
    return mean_C, m2_C / total


@triton.jit
def _join_kernel(
    means_ptr: tl.tensor,
    m2_ptr: tl.tensor,
    joined_means_ptr: tl.tensor,
    joined_m2_ptr: tl.tensor,
    pixels: int,
    groups: int,
    chunk: int,
    chunks: int,
    K: tl.constexpr,
    CHUNKS: tl.constexpr,
    GROUPS: tl.constexpr,
) -> None:
    sample = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    mean_G, variance_G = _group_statistics(
        means_ptr, m2_ptr, sample, group * K, pixels, groups * K, groups, chunk, chunks, K, CHUNKS
    )
    to = sample * groups + group
    tl.store(joined_means_ptr + to, mean_G, mask=group < groups)
    tl.store(joined_m2_ptr + to, variance_G * (pixels * K), mask=group < groups)


@triton.jit
def _normalise_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    means_ptr: tl.tensor,
    m2_ptr: tl.tensor,
    out_ptr: tl.tensor,
    pixels: int,
    channels: int,
    groups: int,
    chunk: int,
    chunks: int,
    part: int,
    sample_stride: int,
    pixel_stride: int,
    eps: float,
    K: tl.constexpr,
    CHUNKS: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    SILU: tl.constexpr,
) -> None:
    sample, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    mean_C, variance_C = _group_statistics(
        means_ptr, m2_ptr, sample, c, pixels, channels, groups, chunk, chunks, K, CHUNKS
    )
    scale_C = tl.load(weight_ptr + c, mask=c < channels, other=0.0).to(tl.float32) / tl.sqrt(variance_C + eps)
    bias_C = tl.load(bias_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    end = tl.minimum((split + 1) * part, pixels)
    for start in range(split * part, end, PIXELS):
        p = start + tl.arange(0, PIXELS).to(tl.int64)[:, None]
        inside = (p < end) & (c[None, :] < channels)
        x = tl.load(x_ptr + sample * sample_stride + p * pixel_stride + c[None, :], mask=inside, other=0.0)
        y = (x.to(tl.float32) - mean_C[None, :]) * scale_C[None, :] + bias_C[None, :]
        if SILU:
            y = y * tl.sigmoid(y)
        to = out_ptr + (sample * pixels + p) * channels + c[None, :]
        tl.store(to, y.to(out_ptr.dtype.element_ty), mask=inside)


def default_config(group_channels: int) -> Config:
    """A config whose tiles hold some 4096 values whatever the groups' width."""
    width = next_power_of_2(group_channels)
    tile_groups = max(1, min(8, 256 // width))
    tile_pixels = max(1, min(64, 4096 // (width * tile_groups)))
    blocks = (("PIXELS", tile_pixels), ("GROUPS", tile_groups), ("CHANNELS", 64), ("TILES", max(4, 256 // tile_pixels)))
    return Config(blocks, num_warps=4, num_stages=2)


def group_norm_silu_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float = 1e-5,
    silu: bool = True,
    config: Config | None = None,
) -> Tensor:
    """Two launches, statistics and their use; as in this file's contract, the tuned config unless one is given.

    Few samples of many pixels (an autoencoder's picture) are cut into more chunks, so that the GPU is filled, and a
    third launch joins their statistics.
    """
    samples, channels, height, width = x.shape
    out = torch.empty_like(x, memory_format=torch.channels_last)
    if out.numel() == 0:
        return out
    rows, pixels, k = pixel_rows(x), height * width, channels // groups
    dims = {"samples": samples, "pixels": pixels, "channels": channels, "group_channels": k}
    dims["element_bytes"] = x.element_size()
    config = config or pick_config("group_norm_silu", dims, x.device, default_config(k))
    group_tiles = triton.cdiv(groups, config["GROUPS"])
    most = max(MAX_CHUNKS, FILLED // (samples * group_tiles))
    chunk = max(config["PIXELS"] * config["TILES"], triton.cdiv(pixels, most))
    chunks = triton.cdiv(pixels, chunk)
    means, m2 = x.new_empty((2, samples, chunks, groups), dtype=torch.float32)
    launch = {"num_warps": config.num_warps, "num_stages": config.num_stages, "PIXELS": config["PIXELS"]}
    joined_chunk, joined_chunks = chunk, chunks
    with torch.cuda.device_of(x):
        _statistics_kernel[(samples, chunks, group_tiles)](
            rows, means, m2, pixels, groups, chunk, chunks, rows.stride(0), rows.stride(1),
            K=k, K_PADDED=next_power_of_2(k), GROUPS=config["GROUPS"], **launch,
        )  # fmt: skip
        if chunks > MAX_CHUNKS:
            split = means, m2
            means, m2 = x.new_empty((2, samples, groups), dtype=torch.float32)
            _join_kernel[(samples, triton.cdiv(groups, _JOINED_GROUPS))](
                *split, means, m2, pixels, groups, chunk, chunks,
                K=k, CHUNKS=next_power_of_2(chunks), GROUPS=_JOINED_GROUPS, num_warps=4,
            )  # fmt: skip
            joined_chunk, joined_chunks = pixels, 1
        _normalise_kernel[(samples, chunks, triton.cdiv(channels, config["CHANNELS"]))](
            rows, weight.contiguous(), bias.contiguous(), means, m2, out, pixels, channels, groups,
            joined_chunk, joined_chunks, chunk, rows.stride(0), rows.stride(1), eps,
            K=k, CHUNKS=next_power_of_2(joined_chunks), CHANNELS=config["CHANNELS"], SILU=silu, **launch,
        )  # fmt: skip
    return out


@torch.library.custom_op("fairy::group_norm_silu", mutates_args=())
def _group_norm_silu_op(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
    _check(x, weight, bias, groups)
    if wants_triton(x):
        return group_norm_silu_triton(x, weight, bias, groups, eps, silu)
    return group_norm_silu_plain(x, weight, bias, groups, eps, silu).contiguous(memory_format=torch.channels_last)


@_group_norm_silu_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
    _check(x, weight, bias, groups)
    return torch.empty_like(x, memory_format=torch.channels_last)


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, *, eps: float = 1e-5, silu: bool = True
) -> Tensor:
    """GroupNorm and SiLU through the op `fairy::group_norm_silu`.

    Args:
        x: [N, C, H, W], channels-last.
        weight, bias: [C].
        groups: number of groups; it divides C.
        eps: added to the variance.
        silu: False leaves the activation out.

    Returns:
        [N, C, H, W], channels-last, in x's type.

    Raises:
        InputError: shapes, types or the number of groups do not fit the contract.
    """
    out: Tensor = torch.ops.fairy.group_norm_silu(x, weight, bias, groups, eps, silu)
    return out


def CANDIDATES(dims: Mapping[str, int]) -> Sequence[Config]:
    """Launch configurations that the tuner tries at these sizes."""
    width = next_power_of_2(dims["group_channels"])
    options = product((8, 16, 32, 64), (1, 4, 8), (64, 128), (4, 16), (4, 8))
    return [
        Config((("PIXELS", p), ("GROUPS", g), ("CHANNELS", c), ("TILES", t)), warps, 2)
        for p, g, c, t, warps in options
        if 1024 <= p * g * width <= 8192
    ]


def tuning_call(dims: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> Callable[[Config], object]:
    """One call on tensors of these sizes, given a config."""
    shape = (dims["samples"], dims["channels"], dims["pixels"], 1)
    x = torch.randn(shape, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.ones(2, dims["channels"], dtype=dtype, device=device)
    groups = dims["channels"] // dims["group_channels"]
    return lambda config: group_norm_silu_triton(x, weight, bias, groups, config=config)


def _check(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> None:
    if x.dim() != 4:
        raise InputError(f"x must be [N, C, H, W], but has {x.dim()} dimensions.")
    if groups < 1 or x.shape[1] % groups:
        raise InputError(f"does not divide the {x.shape[1]} channels of x", name="groups", value=groups)
    if weight.shape != (x.shape[1],) or bias.shape != weight.shape:
        raise InputError(
            f"weight {list(weight.shape)} and bias {list(bias.shape)} must have one value for each of the "
            f"{x.shape[1]} channels of x."
        )
    if not (x.is_floating_point() and weight.is_floating_point() and bias.is_floating_point()):
        raise InputError(f"x, weight and bias must be of floating point types, not {x.dtype}, {weight.dtype}.")
