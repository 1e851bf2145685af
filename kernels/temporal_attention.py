# mypy: disable-error-code="untyped-decorator"
"""Attention over time at every place of a window: many short sequences, read where they lie.

    out[b, :, s, h] = softmax(q[b, :, s, h] · k[b, :, s, h]ᵀ / √D) · v[b, :, s, h]

Contract
    q, k, v [B, F, S, H, D]: windows, frames, places, heads, channels of a head; any strides but 1 between channels;
            float16, bfloat16, float32 (float64 takes the plain path); F from 1 to 128, D from 1 to 128
    result  [B, F, S, H, D], contiguous, in q's type; scores and sums in float32, rounded once
Source: the temporal attention of Ho et al. (arXiv 2204.03458) and Singer et al. (arXiv 2209.14792), section 3.2.
Bound: bytes, 4·B·F·S·H·D·size: nothing is worth keeping between places. torch's own attention wants the frames beside
    each other, which costs a copy of each of q, k, v and of the result: twice the bytes; and it gives one sequence a
    tile of 64 or 128 rows, of which 16 frames fill an eighth.
Measured place: none yet on a GPU.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import product

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from fairy.kernels.errors import InputError
from fairy.kernels.launching import next_power_of_2, wants_triton
from fairy.kernels.tuning import Config, pick_config

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
MOST_FRAMES = MOST_CHANNELS = 128
_SMALLEST_TILE = 16  # of a matrix product
DEFAULT = Config((), num_warps=2, num_stages=1)
TUNING_DIMS: Sequence[dict[str, int]] = tuple(
    {"frames": 16, "groups": places * heads, "channels": channels, "element_bytes": 2}
    for places, heads, channels in ((4096, 8, 40), (1024, 8, 80), (256, 6, 32))
)


def temporal_attention_reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The definition in float32 (float64 for float64), rounded once to q's type."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.einsum("bfshd,bgshd->bshfg", q.to(wide), k.to(wide)) / q.shape[-1] ** 0.5
    return torch.einsum("bshfg,bgshd->bfshd", scores.softmax(-1), v.to(wide)).to(q.dtype)


def temporal_attention_plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same by torch's attention: frames are brought beside each other, and back."""
    b, frames, places, heads, channels = q.shape
    q, k, v = (x.permute(0, 2, 3, 1, 4).reshape(b * places, heads, frames, channels) for x in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v)
    return y.reshape(b, places, heads, frames, channels).permute(0, 3, 1, 2, 4).contiguous()


@triton.jit
def _temporal_attention_kernel(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    out_ptr: tl.tensor,
    frames: int,
    places: int,
    heads: int,
    scale: float,
    q_window: int,
    q_frame: int,
    q_place: int,
    q_head: int,
    k_window: int,
    k_frame: int,
    k_place: int,
    k_head: int,
    v_window: int,
    v_frame: int,
    v_place: int,
    v_head: int,
    CHANNELS: tl.constexpr,
    FRAMES_PADDED: tl.constexpr,
    CHANNELS_PADDED: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    group, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    window, place = group // places, group % places
    frame, channel = tl.arange(0, FRAMES_PADDED), tl.arange(0, CHANNELS_PADDED)
    inside = (frame[:, None] < frames) & (channel[None, :] < CHANNELS)
    q_at = window * q_window + place * q_place + head * q_head + frame[:, None] * q_frame + channel[None, :]
    k_at = window * k_window + place * k_place + head * k_head + frame[:, None] * k_frame + channel[None, :]
    v_at = window * v_window + place * v_place + head * v_head + frame[:, None] * v_frame + channel[None, :]
    q = tl.load(q_ptr + q_at, mask=inside, other=0.0)
    k = tl.load(k_ptr + k_at, mask=inside, other=0.0)
    v = tl.load(v_ptr + v_at, mask=inside, other=0.0)
    if UPCAST:  # the interpreter's bfloat16 product is wrong
        q, k, v = q.to(tl.float32), k.to(tl.float32), v.to(tl.float32)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    scores = tl.where(frame[None, :] < frames, scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    total = tl.sum(weights, axis=1)
    out = tl.dot(weights.to(v.dtype), v, input_precision="ieee") / total[:, None]
    out_at = ((window * frames + frame[:, None]) * places + place) * heads * CHANNELS + head * CHANNELS
    tl.store(out_ptr + out_at + channel[None, :], out.to(out_ptr.dtype.element_ty), mask=inside)


def temporal_attention_triton(q: Tensor, k: Tensor, v: Tensor, config: Config | None = None) -> Tensor:
    """One launch; shapes and types as in this file's contract, the config that was tuned unless one is given."""
    b, frames, places, heads, channels = q.shape
    out = q.new_empty(q.shape)
    if out.numel() == 0:
        return out
    q, k, v = (x if x.stride(-1) == 1 or channels == 1 else x.contiguous() for x in (q, k, v))
    dims = {
        "frames": frames,
        "groups": b * places * heads,
        "channels": channels,
        "element_bytes": q.element_size(),
    }
    config = config or pick_config("temporal_attention", dims, q.device, DEFAULT)
    strides = [stride for x in (q, k, v) for stride in x.stride()[:4]]
    with torch.cuda.device_of(q):
        _temporal_attention_kernel[(b * places, heads)](
            q, k, v, out, frames, places, heads, channels**-0.5, *strides,
            CHANNELS=channels,
            FRAMES_PADDED=max(_SMALLEST_TILE, next_power_of_2(frames)),
            CHANNELS_PADDED=max(_SMALLEST_TILE, next_power_of_2(channels)),
            UPCAST=_INTERPRETED and q.dtype == torch.bfloat16,
            **config.as_kwargs(),
        )  # fmt: skip
    return out


@torch.library.custom_op("fairy::temporal_attention", mutates_args=())
def _temporal_attention_op(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    _check(q, k, v)
    return temporal_attention_triton(q, k, v) if wants_triton(q) else temporal_attention_plain(q, k, v)


@_temporal_attention_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    _check(q, k, v)
    return q.new_empty(q.shape)


def temporal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention over the frames at every place, through the op `fairy::temporal_attention` on a GPU.

    Elsewhere torch's own attention computes it in the open, so that exporters see what they know.

    Args:
        q, k, v: [B, F, S, H, D]; see this file's contract.

    Returns:
        [B, F, S, H, D], contiguous, in q's type.

    Raises:
        InputError: the shapes differ, or are beyond the contract.
    """
    if not wants_triton(q):
        _check(q, k, v)
        return temporal_attention_plain(q, k, v)
    out: Tensor = torch.ops.fairy.temporal_attention(q, k, v)
    return out


def CANDIDATES(dims: Mapping[str, int]) -> Sequence[Config]:
    """Launch configurations that the tuner tries at these sizes."""
    return [Config((), warps, stages) for warps, stages in product((1, 2, 4), (1, 2))]


def tuning_call(dims: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> Callable[[Config], object]:
    """One launch on tensors of these sizes, given a config."""
    shape = (1, dims["frames"], dims["groups"], 1, dims["channels"])
    q, k, v = (torch.randn(shape, dtype=dtype, device=device) for _ in range(3))
    return lambda config: temporal_attention_triton(q, k, v, config)


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.dim() != 5 or q.shape != k.shape or q.shape != v.shape:
        raise InputError(
            f"q {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)} must be alike, [B, F, S, H, D]; reshape them."
        )
    if q.shape[1] > MOST_FRAMES or not 0 < q.shape[4] <= MOST_CHANNELS:
        raise InputError(
            f"q {list(q.shape)} has more than {MOST_FRAMES} frames or {MOST_CHANNELS} channels a head; use fewer."
        )
    if not q.is_floating_point():
        raise InputError(f"q must be of a floating point type, not {q.dtype}.")
