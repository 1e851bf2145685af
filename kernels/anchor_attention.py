"""Attention of every frame on its own tokens and on tokens of other frames that are passed by reference.

    out[g, f] = softmax(q[g, f] · [k[g, f] ; c0[g, f or 0] ; c1 … ]ᵀ / √dim) · [v[g, f] ; …]

Contract (fixed; kernels behind it may change, arguments may not)
    q, k, v      [groups, frames, tokens, heads·dim]; k = v = None leaves the frame's own tokens out
    context_k/v  at most four segments, each [groups, frames or 1, length, heads·dim]; 1 = shared by all frames
                 of the group and never expanded
    keys         in the order own, then the segments as given; scale 1/√dim
    result       [groups, frames, tokens, heads·dim], contiguous, in q's type

Source: cross-frame attention of Fairy (arXiv 2312.13834, §5.1), where the segment holds the anchors' keys and values.
Legend of shape suffixes: G groups (guidance branches), F frames, S query tokens, T key tokens, C heads·dim.
"""

from collections.abc import Sequence
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from fairy.kernels.errors import InputError
from fairy.kernels.limits import MAX_SEGMENTS

MAX_KERNEL_DIM = 256  # of a head; beyond it the kernel's blocks do not fit
KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
HAS_TRITON = find_spec("triton") is not None


def anchor_attention_reference(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    context_k: Sequence[Tensor],
    context_v: Sequence[Tensor],
    heads: int,
) -> Tensor:
    """The definition, written plainly: float32 arithmetic (float64 for float64 input), everything materialised.

    Shapes as in this file's contract. It is what every kernel is tested against, not something to run at size.
    """
    _check(q, k, v, context_k, context_v, heads)
    dtype = torch.promote_types(q.dtype, torch.float32)
    frames = q.shape[1]
    k_GFTC = torch.cat([_per_frame(t, frames) for t in _sources(k, context_k)], dim=2).to(dtype)
    v_GFTC = torch.cat([_per_frame(t, frames) for t in _sources(v, context_v)], dim=2).to(dtype)
    qh, kh, vh = (t.unflatten(-1, (heads, -1)).transpose(2, 3) for t in (q.to(dtype), k_GFTC, v_GFTC))
    scores = qh @ kh.transpose(-1, -2) * qh.shape[-1] ** -0.5
    out: Tensor = torch.softmax(scores, dim=-1) @ vh
    return out.transpose(2, 3).flatten(3).to(q.dtype)


def anchor_attention_sdpa(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    context_k: Sequence[Tensor],
    context_v: Sequence[Tensor],
    heads: int,
) -> Tensor:
    """The same through `torch.nn.functional.scaled_dot_product_attention`; shapes as in this file's contract.

    Keys that all frames share are used once: frames are folded into the queries. Where a frame has keys of its own
    beside shared ones, frames are taken one after another, so that only one frame's keys are ever joined.
    """
    keys, values = _sources(k, context_k), _sources(v, context_v)
    groups, frames = q.shape[:2]
    if all(t.shape[1] == 1 for t in keys):
        out_GSC = _sdpa(q.flatten(1, 2), _join(keys, 0), _join(values, 0), heads)
        return _split(out_GSC, 1, frames)
    if all(t.shape[1] == frames for t in keys):
        k_BTC, v_BTC = (_cat(t, 2).flatten(0, 1) for t in (keys, values))
        return _split(_sdpa(q.flatten(0, 1), k_BTC, v_BTC, heads), 0, groups)
    out = q.new_empty(q.shape)
    for f in range(frames):
        out[:, f] = _sdpa(q[:, f], _join(keys, f), _join(values, f), heads)
    return out


@torch.library.custom_op("fairy::anchor_attention", mutates_args=())
def _anchor_attention_op(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    context_k: Sequence[Tensor],
    context_v: Sequence[Tensor],
    heads: int,
) -> Tensor:
    _check(q, k, v, context_k, context_v, heads)
    if _served_by_kernel(q, context_k, heads):
        from fairy.kernels.anchor_attention_kernel import launch

        return launch(q, _sources(k, context_k), _sources(v, context_v), heads)
    return anchor_attention_sdpa(q, k, v, context_k, context_v, heads).contiguous()


@_anchor_attention_op.register_fake
def _(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    context_k: Sequence[Tensor],
    context_v: Sequence[Tensor],
    heads: int,
) -> Tensor:
    _check(q, k, v, context_k, context_v, heads)
    return q.new_empty(q.shape)


def anchor_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    context_k: Sequence[Tensor] = (),
    context_v: Sequence[Tensor] = (),
    *,
    heads: int,
) -> Tensor:
    """Attention on own tokens and up to four context segments, through the op `fairy::anchor_attention`.

    Args:
        q: [groups, frames, tokens, heads·dim].
        k, v: like q, with any token count, or both None: the frame's own tokens are left out.
        context_k, context_v: segments [groups, frames or 1, length, heads·dim]; 1 = shared by the group's frames.
        heads: number of heads; it divides the last dimension.

    Returns:
        [groups, frames, tokens, heads·dim] in q's type.

    Raises:
        InputError: shapes, types or the number of segments do not fit the contract.
    """
    out: Tensor = torch.ops.fairy.anchor_attention(q, k, v, list(context_k), list(context_v), heads)
    return out


def _served_by_kernel(q: Tensor, context: Sequence[Tensor], heads: int) -> bool:
    """Whether the fused kernel runs this call: on CUDA, where there is a segment that SDPA would have to join.

    Plain attention stays with SDPA, which has nothing to join there, until ours is measured to be faster.
    """
    if not q.is_cuda or not context or q.numel() == 0 or not HAS_TRITON:
        return False
    return q.dtype in KERNEL_DTYPES and q.shape[3] // heads <= MAX_KERNEL_DIM


def _sources(own: Tensor | None, context: Sequence[Tensor]) -> list[Tensor]:
    return [*([] if own is None else [own]), *context]


def _per_frame(t: Tensor, frames: int) -> Tensor:
    return t.expand(-1, frames, -1, -1)


def _cat(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _split(t: Tensor, dim: int, size: int) -> Tensor:
    """Undo a flatten: dimension `dim` becomes [size, rest]."""
    parts: Tensor = t.unflatten(dim, (size, -1))
    return parts


def _join(parts: list[Tensor], frame: int) -> Tensor:
    """What frame `frame` attends to, [groups, all its tokens, heads·dim]."""
    return _cat([t[:, 0 if t.shape[1] == 1 else frame] for t in parts], 1)


def _sdpa(q_BSC: Tensor, k_BTC: Tensor, v_BTC: Tensor, heads: int) -> Tensor:
    qh, kh, vh = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q_BSC, k_BTC, v_BTC))
    return F.scaled_dot_product_attention(qh, kh, vh).transpose(1, 2).flatten(2)


def _check(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    context_k: Sequence[Tensor],
    context_v: Sequence[Tensor],
    heads: int,
) -> None:
    if q.dim() != 4:
        raise InputError(f"q must be [groups, frames, tokens, heads·dim], but has {q.dim()} dimensions.")
    if heads < 1 or q.shape[3] % heads:
        raise InputError(f"does not divide the {q.shape[3]} channels of q", name="heads", value=heads)
    if (k is None) != (v is None):
        raise InputError("k and v must be given together, or both be None.")
    if len(context_k) != len(context_v) or len(context_k) > MAX_SEGMENTS:
        raise InputError(
            f"context_k and context_v must hold the same number of segments, at most {MAX_SEGMENTS}, "
            f"but hold {len(context_k)} and {len(context_v)}."
        )
    if k is None and not context_k:
        raise InputError("There is nothing to attend to: give k and v, or at least one context segment.")
    for name, keys, values in (("own", k, v), *(("context", a, b) for a, b in zip(context_k, context_v, strict=True))):
        if keys is not None and values is not None:
            _check_pair(name, q, keys, values)


def _check_pair(name: str, q: Tensor, keys: Tensor, values: Tensor) -> None:
    if keys.dim() != 4 or keys.shape != values.shape:
        raise InputError(f"{name} keys and values must be 4-D and alike, not {list(keys.shape)}, {list(values.shape)}.")
    if keys.shape[0] != q.shape[0] or keys.shape[3] != q.shape[3]:
        raise InputError(f"{name} keys {list(keys.shape)} must have the groups and channels of q {list(q.shape)}.")
    if keys.shape[1] != q.shape[1] and (name == "own" or keys.shape[1] != 1):
        raise InputError(
            f"{name} keys {list(keys.shape)} must have q's {q.shape[1]} frames, or 1 in a context segment."
        )
    if keys.dtype != q.dtype or values.dtype != q.dtype:
        raise InputError(f"q, keys and values must be of one type, not {q.dtype}, {keys.dtype}, {values.dtype}.")
