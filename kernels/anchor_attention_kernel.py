# mypy: disable-error-code="untyped-decorator,no-untyped-def"
"""The fused Triton kernel behind `fairy::anchor_attention`: one launch over own keys and all context segments.

What it computes and the layouts it reads stand in `anchor_attention.py`. A program takes one block of queries of one
head of one frame and walks over the keys of every source through that source's own pointer and strides; a segment that
all frames share has frame stride 0, so nothing is expanded or joined.

Bound: at head dim 40 on Hopper the exponentials take longer than the matrix products. At 3072 queries, 12288 keys and
8 heads a sample-forward needs 3.0e8 of them, 0.08 ms at 16 a clock on each of 132 multiprocessors at 1.755 GHz,
against 0.05 ms for 48 GFLOP at 989 TFLOP/s. Measured place: 1.71 ms for nine samples on an H200, 254 TFLOP/s and 38 %
of what the exponentials allow at its 1.98 GHz. In the machine code (Triton 3.7.1, sm_90, dim 40, blocks of 128 x 64, 8
warps): 22 HGMMA, 68 EX2, 112 registers, no spills.

What each trick does there; those that are a choice (a field of `Config.blocks`) are off by default, and on the H200 the
tuner chose none of them:

    folded scale   softmax in base 2 with log2(e)/√dim folded into one multiply-add before `ex2`; always
    split dim      dim 40 is 32 + 16 with 8 columns masked instead of one padded 64: a quarter fewer matrix products and
                   16 fewer columns of the accumulator; always
    tail           only the last block of a segment is masked; always
    LAZY           accumulators are rescaled only where a maximum grew by more than 2^8; 116 registers
    MIXED          every fourth exponential by a polynomial on the FMA pipes (error 3e-6, far below fp16's rounding);
                   EX2 fall from 68 to 52
    TMA            keys and values through tensor descriptors (compute capability 9.0 and later); 99 registers
    WARPS_SPLIT    Triton's warp specialisation (compute capability 10.0 and later)

Legend of names: M queries and N keys of a block, D0 + D1 the two parts of the head dimension.
"""

import os
from collections.abc import Callable, Mapping, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairy.kernels.tuning import Config, pick_config

LOG2_E = 1.4426950408889634
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def split_dim(dim: int) -> tuple[int, int]:
    """A head dimension as two powers of two of at least 16, of which the second may be 0 or padded: 40 = 32 + 16."""
    first = 16
    while first * 2 <= dim:
        first *= 2
    rest = max(dim - first, 0)
    second = 16 if rest else 0
    while second < rest:
        second *= 2
    return first, second


# Three exponentials by `ex2`, the fourth by a degree-4 polynomial on [-1/2, 1/2] after splitting off the integer part:
# adding 1.5·2^23 rounds to an integer that stands in the low bits. `max.NaN` and the final product keep NaN.
_MIXED_EXP2: tl.constexpr = tl.constexpr("""
{
    .reg .f32 x, r, n, p, e;
    .reg .b32 i;
    ex2.approx.ftz.f32 $0, $4;
    ex2.approx.ftz.f32 $1, $5;
    ex2.approx.ftz.f32 $2, $6;
    max.NaN.ftz.f32 x, $7, 0fC2FC0000;
    add.rn.ftz.f32 r, x, 0f4B400000;
    sub.rn.ftz.f32 n, r, 0f4B400000;
    sub.rn.ftz.f32 x, x, n;
    fma.rn.ftz.f32 p, x, 0f3C1D0166, 0f3D64FE23;
    fma.rn.ftz.f32 p, p, x, 0f3E7601BC;
    fma.rn.ftz.f32 p, p, x, 0f3F317096;
    fma.rn.ftz.f32 p, p, x, 0f3F800000;
    mov.b32 i, r;
    shl.b32 i, i, 23;
    add.s32 i, i, 0x3F800000;
    mov.b32 e, i;
    mul.ftz.f32 $3, p, e;
}
""")


@triton.jit
def _exp2(x, MIXED: tl.constexpr):
    if MIXED:
        return tl.inline_asm_elementwise(
            _MIXED_EXP2, "=r,=r,=r,=r,r,r,r,r", [x], dtype=tl.float32, is_pure=True, pack=4
        )
    else:
        return tl.exp2(x)


@triton.jit
def _load(base, rows, columns, stride, length, DIM: tl.constexpr, MASK_ROWS: tl.constexpr, MASK_COLUMNS: tl.constexpr):
    """A tile [rows, columns] of one head; what lies outside is 0."""
    at = base + rows[:, None] * stride + columns[None, :]
    if MASK_ROWS and MASK_COLUMNS:
        return tl.load(at, mask=(rows[:, None] < length) & (columns[None, :] < DIM), other=0.0)
    elif MASK_ROWS:
        return tl.load(at, mask=rows[:, None] < length, other=0.0)
    elif MASK_COLUMNS:
        return tl.load(at, mask=columns[None, :] < DIM, other=0.0)
    else:
        return tl.load(at)


@triton.jit
def _dot(a, b, acc, UPCAST: tl.constexpr):
    """a·b + acc in float32; UPCAST works around the interpreter, whose bfloat16 product is wrong."""
    if UPCAST:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _narrow(x, dtype: tl.constexpr, UPCAST: tl.constexpr):
    """x in a narrower type; UPCAST rounds to nearest even where the interpreter would cut bfloat16 off."""
    if UPCAST:
        bits = x.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        return bits.to(tl.float32, bitcast=True).to(dtype)
    else:
        return x.to(dtype)


@triton.jit
def _block(q0, q1, k0, k1, v0, v1, valid, acc0, acc1, top, total, scale,
           MASK: tl.constexpr, D1: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
           LAZY: tl.constexpr, MIXED: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """One block of keys: scores, running maximum and sum (base 2), weighted values."""
    s = _dot(q0, tl.trans(k0), tl.zeros([M, N], tl.float32), UPCAST)
    if D1 > 0:
        s = _dot(q1, tl.trans(k1), s, UPCAST)
    if MASK:
        s = tl.where(valid[None, :], s, float("-inf"))
    grown = tl.maximum(top, tl.max(s, 1) * scale)
    if LAZY:
        if tl.max(grown - top, 0) > 8.0:
            shrink = tl.exp2(top - grown)
            acc0 *= shrink[:, None]
            acc1 *= shrink[:, None]
            total *= shrink
            top = grown
    else:
        shrink = tl.exp2(top - grown)
        acc0 *= shrink[:, None]
        if D1 > 0:
            acc1 *= shrink[:, None]
        total *= shrink
        top = grown
    p = _exp2(s * scale - top[:, None], MIXED)
    total += tl.sum(p, 1)
    p = _narrow(p, v0.dtype, UPCAST)
    acc0 = _dot(p, v0, acc0, UPCAST)
    if D1 > 0:
        acc1 = _dot(p, v1, acc1, UPCAST)
    return acc0, acc1, top, total


@triton.jit
def attend(q0, q1, k, v, k_stride, v_stride, length, acc0, acc1, top, total, scale,
           DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
           TAIL: tl.constexpr, LAZY: tl.constexpr, MIXED: tl.constexpr, TMA: tl.constexpr,
           WARPS_SPLIT: tl.constexpr, UPCAST: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """All keys of one source: whole blocks without masks, then, where TAIL, the rest.

    k and v point at token 0 of this program's head and frame; strides are between tokens, in elements.
    """
    n = tl.arange(0, N)
    d0 = tl.arange(0, D0)
    d1 = D0 + tl.arange(0, D1 if D1 > 0 else 16)
    whole = length // N * N if TAIL else length
    if TMA:
        k_tile0 = tl.make_tensor_descriptor(k, [length, DIM], [k_stride, 1], [N, D0])
        v_tile0 = tl.make_tensor_descriptor(v, [length, DIM], [v_stride, 1], [N, D0])
        k_tile1 = tl.make_tensor_descriptor(k, [length, DIM], [k_stride, 1], [N, D1 if D1 > 0 else 16])
        v_tile1 = tl.make_tensor_descriptor(v, [length, DIM], [v_stride, 1], [N, D1 if D1 > 0 else 16])
    for start in tl.range(0, whole, N, num_stages=STAGES, warp_specialize=WARPS_SPLIT):
        if TMA:
            k0, v0 = k_tile0.load([start, 0]), v_tile0.load([start, 0])
            k1, v1 = k0, v0
            if D1 > 0:
                k1, v1 = k_tile1.load([start, D0]), v_tile1.load([start, D0])
        else:
            k0 = _load(k, start + n, d0, k_stride, length, DIM, False, D0 > DIM)
            v0 = _load(v, start + n, d0, v_stride, length, DIM, False, D0 > DIM)
            k1, v1 = k0, v0
            if D1 > 0:
                k1 = _load(k, start + n, d1, k_stride, length, DIM, False, D0 + D1 > DIM)
                v1 = _load(v, start + n, d1, v_stride, length, DIM, False, D0 + D1 > DIM)
        acc0, acc1, top, total = _block(
            q0, q1, k0, k1, v0, v1, n < N, acc0, acc1, top, total, scale, False, D1, M, N, LAZY, MIXED, UPCAST
        )
    if TAIL:  # noqa: SIM102  # one is decided by the compiler, the other by the program
        if whole < length:
            k0 = _load(k, whole + n, d0, k_stride, length, DIM, True, D0 > DIM)
            v0 = _load(v, whole + n, d0, v_stride, length, DIM, True, D0 > DIM)
            k1, v1 = k0, v0
            if D1 > 0:
                k1 = _load(k, whole + n, d1, k_stride, length, DIM, True, D0 + D1 > DIM)
                v1 = _load(v, whole + n, d1, v_stride, length, DIM, True, D0 + D1 > DIM)
            acc0, acc1, top, total = _block(
                q0, q1, k0, k1, v0, v1, whole + n < length, acc0, acc1, top, total, scale,
                True, D1, M, N, LAZY, MIXED, UPCAST)  # fmt: skip
    return acc0, acc1, top, total


@triton.jit
def queries(q, stride, tokens, block, DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, M: tl.constexpr):
    """A block of queries in two parts, and what the walk over the keys starts with."""
    m = block * M + tl.arange(0, M)
    q0 = _load(q, m, tl.arange(0, D0), stride, tokens, DIM, True, D0 > DIM)
    q1 = q0
    if D1 > 0:
        q1 = _load(q, m, D0 + tl.arange(0, D1), stride, tokens, DIM, True, D0 + D1 > DIM)
    acc0 = tl.zeros([M, D0], tl.float32)
    acc1 = tl.zeros([M, D1 if D1 > 0 else 16], tl.float32)
    return q0, q1, acc0, acc1, tl.full([M], float("-inf"), tl.float32), tl.zeros([M], tl.float32)


@triton.jit
def finish(out, stride, tokens, block, acc0, acc1, total,
           DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, M: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Divides by the sums and writes the block's rows."""
    m = block * M + tl.arange(0, M)
    d0 = tl.arange(0, D0)
    at = out + m[:, None] * stride
    inside = m[:, None] < tokens
    y0 = _narrow(acc0 / total[:, None], out.dtype.element_ty, UPCAST)
    tl.store(at + d0[None, :], y0, mask=inside & (d0[None, :] < DIM))
    if D1 > 0:
        d1 = D0 + tl.arange(0, D1)
        y1 = _narrow(acc1 / total[:, None], out.dtype.element_ty, UPCAST)
        tl.store(at + d1[None, :], y1, mask=inside & (d1[None, :] < DIM))


@triton.jit
def place(program, tokens, frames, heads, M: tl.constexpr):
    """Which block, frame, head and group a program computes; programs next to each other share the bank's keys."""
    blocks = tl.cdiv(tokens, M)
    row = program // blocks
    head = row // frames % heads
    return program % blocks, (row % frames).to(tl.int64), head, (row // frames // heads).to(tl.int64)


@triton.jit
def _kernel(q, out, keys, values, lengths, k_strides, v_strides, q_strides, out_strides, frames, tokens, scale,
            HEADS: tl.constexpr, DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, M: tl.constexpr,
            N: tl.constexpr, TAIL: tl.constexpr, LAZY: tl.constexpr, MIXED: tl.constexpr, TMA: tl.constexpr,
            WARPS_SPLIT: tl.constexpr, UPCAST: tl.constexpr, STAGES: tl.constexpr, SOURCES: tl.constexpr):  # fmt: skip
    block, f, head, g = place(tl.program_id(0), tokens, frames, HEADS, M)
    q_head = q + g * q_strides[0] + f * q_strides[1] + head * DIM
    q0, q1, acc0, acc1, top, total = queries(q_head, q_strides[2], tokens, block, DIM, D0, D1, M)
    for s in tl.static_range(SOURCES):
        k = keys[s] + g * k_strides[s][0] + f * k_strides[s][1] + head * DIM
        v = values[s] + g * v_strides[s][0] + f * v_strides[s][1] + head * DIM
        acc0, acc1, top, total = attend(
            q0, q1, k, v, k_strides[s][2], v_strides[s][2], lengths[s], acc0, acc1, top, total, scale,
            DIM, D0, D1, M, N, TAIL, LAZY, MIXED, TMA, WARPS_SPLIT, UPCAST, STAGES)  # fmt: skip
    out_head = out + g * out_strides[0] + f * out_strides[1] + head * DIM
    finish(out_head, out_strides[2], tokens, block, acc0, acc1, total, DIM, D0, D1, M, UPCAST)


def default_config(dim: int, dtype: torch.dtype) -> Config:
    """Blocks that fit every GPU from Ampere on without spilling registers; not the fastest."""
    if dtype == torch.float32:
        return _config(32 if dim > 64 else 64, 16 if dim > 128 else 32, 4, 2)
    if dim > 128:
        return _config(64, 32, 4, 2)
    return _config(128, 64 if dim <= 64 else 32, 8, 2)


def _config(m: int, n: int, warps: int, stages: int, **tricks: int) -> Config:
    choices = {"LAZY": 0, "MIXED": 0, "TMA": 0, "WARPS_SPLIT": 0, **tricks}
    return Config((("M", m), ("N", n), *choices.items()), num_warps=warps, num_stages=stages)


def launch(
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    heads: int,
    *,
    config: Config | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Run the kernel on checked arguments.

    Args:
        q: [groups, frames, tokens, heads·dim].
        keys, values: one tensor a source, [groups, frames or 1, length, heads·dim], own tokens first.
        heads: number of heads.
        config: block sizes and tricks; None = the tuned ones for these dimensions and this GPU.
        out: where to write; its last dimension is contiguous. None allocates.

    Returns:
        [groups, frames, tokens, heads·dim] in q's type.
    """
    groups, frames, tokens, channels = q.shape
    dim = channels // heads
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    q, keys, values = _dense(q), [_dense(t) for t in keys], [_dense(t) for t in values]
    lengths = tuple(t.shape[2] for t in keys)
    config = config or _tuned(heads, tokens, sum(lengths), groups * frames, q)
    choices = dict(config.blocks)
    if choices["TMA"]:
        choices["TMA"] = int(dim % 8 == 0 and all(_aligned(t) for t in (*keys, *values)))
        triton.set_allocator(_scratch(q.device))
    d0, d1 = split_dim(dim)
    grid = (triton.cdiv(tokens, choices["M"]) * groups * frames * heads,)
    with torch.cuda.device_of(q):
        _kernel[grid](
            q, out, tuple(keys), tuple(values), lengths, _strides(keys), _strides(values), _strides([q])[0],
            _strides([out])[0], frames, tokens, dim**-0.5 * LOG2_E,
            HEADS=heads, DIM=dim, D0=d0, D1=d1, TAIL=any(n % choices["N"] for n in lengths),
            UPCAST=_INTERPRETED and q.dtype == torch.bfloat16, STAGES=config.num_stages, SOURCES=len(keys),
            num_warps=config.num_warps, **choices)  # fmt: skip
    return out


def _tuned(heads: int, tokens: int, length: int, batch: int, q: Tensor) -> Config:
    dim = q.shape[-1] // heads
    dims = {"head_dim": dim, "element_bytes": q.element_size(), "heads": heads}
    dims |= {"tokens": tokens, "keys": length, "batch": batch}
    return pick_config("anchor_attention", dims, q.device, default_config(dim, q.dtype))


def _dense(t: Tensor) -> Tensor:
    """The channels of a token side by side; else a copy in which they are."""
    return t if t.stride(3) == 1 else t.contiguous()


def _aligned(t: Tensor) -> bool:
    """Whether every token starts on 16 bytes, as tensor descriptors need it."""
    return t.data_ptr() % 16 == 0 and all(n * t.element_size() % 16 == 0 for n in t.stride()[:3])


def _strides(tensors: Sequence[Tensor]) -> tuple[tuple[int, int, int], ...]:
    """(group, frame, token) strides; the frame stride of what all frames share is 0."""
    return tuple((t.stride(0), 0 if t.shape[1] == 1 else t.stride(1), t.stride(2)) for t in tensors)


def _scratch(device: torch.device) -> Callable[[int, int, int | None], Tensor]:
    def allocate(size: int, alignment: int, stream: int | None) -> Tensor:
        return torch.empty(size, dtype=torch.int8, device=device)

    return allocate


TUNING_DIMS: tuple[Mapping[str, int], ...] = tuple(
    {"head_dim": dim, "element_bytes": 2, "heads": 8, "tokens": tokens, "keys": tokens * 4, "batch": batch}
    for dim, tokens in ((40, 3072), (80, 768), (160, 192), (160, 48))
    for batch in (9, 45, 180)
) + tuple(
    {"head_dim": 64, "element_bytes": 2, "heads": heads, "tokens": tokens, "keys": tokens * 4, "batch": 9}
    for heads, tokens in ((10, 4096), (20, 1024))
)


def CANDIDATES(dims: Mapping[str, int]) -> list[Config]:
    """What the tuner tries for one problem: blocks, warps, depth, and the tricks on the likeliest blocks."""
    dim = dims["head_dim"]
    wide = (32, 64) if dim > 80 else (32, 64, 128)
    plain = [_config(m, n, w, s) for m in (64, 128) for n in wide for w in (4, 8) for s in (2, 3, 4) if m >= w * 16]
    tricks: tuple[dict[str, int], ...] = (
        {"MIXED": 1}, {"LAZY": 1}, {"MIXED": 1, "LAZY": 1}, {"TMA": 1}, {"TMA": 1, "MIXED": 1},
        {"TMA": 1, "LAZY": 1}, {"TMA": 1, "MIXED": 1, "LAZY": 1},
    )  # fmt: skip
    if _splits_warps():
        tricks += ({"WARPS_SPLIT": 1},)
    likely = [(128, n, w) for n in wide if n >= 64 for w in (4, 8)]
    return plain + [_config(*blocks, stages, **trick) for blocks in likely for trick in tricks for stages in (2, 3)]


def _splits_warps() -> bool:
    """Whether warp specialisation changes anything: before compute capability 10.0 the machine code is the same."""
    return not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (10, 0)


def tuning_call(dims: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> Callable[[Config], Tensor]:
    """A call on random data of this problem: own tokens and one shared segment, in three groups."""
    channels, groups = dims["heads"] * dims["head_dim"], 3
    frames, tokens = max(dims["batch"] // groups, 1), dims["tokens"]

    def make(count: int, length: int) -> Tensor:
        return torch.randn(groups, count, length, channels, dtype=dtype, device=device)

    q, k, v = make(frames, tokens), make(frames, tokens), make(frames, tokens)
    rest = dims["keys"] - tokens
    keys, values = ([k, make(1, rest)], [v, make(1, rest)]) if rest > 0 else ([k], [v])
    return lambda config: launch(q, keys, values, dims["heads"], config=config)
