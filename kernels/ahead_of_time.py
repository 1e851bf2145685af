# mypy: disable-error-code="untyped-decorator,no-untyped-def"
"""The kernel as machine code for a named GPU, compiled without one: what C programs and TensorRT run.

Three entries of the same kernel. `strided` serves the whole contract: up to five sources, counted at run time, each
with strides of its own. `own_and_shared` and `shared` are for TensorRT, whose plugins pass contiguous tensors and
int32 numbers only: own tokens and one shared segment, or the segment alone. All keep to plain pointers.

Pointers must lie on 16 bytes and strides be multiples of 8 elements; callers check it.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from fairy.kernels.anchor_attention_kernel import LOG2_E, attend, finish, place, queries, split_dim
from fairy.kernels.errors import InputError

MAX_SOURCES = 5  # own tokens and four segments
HEAD_DIMS = (40, 64, 80, 128, 160)
TARGETS = (80, 86, 89, 90, 100, 120)
DTYPES: Mapping[torch.dtype, str] = {torch.float16: "fp16", torch.bfloat16: "bf16"}
SHARED_LIMIT_BYTES = 48 * 1024  # what every GPU grants without being asked
PTX_VERSION = 87  # the oldest that knows sm_120; drivers of CUDA 12.8 and later read it


@triton.jit
def _pick(s, x0, x1, x2, x3, x4):
    """The s-th of five."""
    return tl.where(s == 0, x0, tl.where(s == 1, x1, tl.where(s == 2, x2, tl.where(s == 3, x3, x4))))


@triton.jit
def anchor_attention_strided(
    q, out, k0, k1, k2, k3, k4, v0, v1, v2, v3, v4,
    q_group, q_frame, q_token, out_group, out_frame, out_token,
    kg0, kg1, kg2, kg3, kg4, kf0, kf1, kf2, kf3, kf4, kt0, kt1, kt2, kt3, kt4,
    vg0, vg1, vg2, vg3, vg4, vf0, vf1, vf2, vf3, vf4, vt0, vt1, vt2, vt3, vt4,
    length0, length1, length2, length3, length4, sources, frames, tokens, heads, scale,
    DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, M: tl.constexpr, N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """`sources` of five slots are used; strides are in elements, (group, frame, token) of keys and of values."""
    block, f, head, g = place(tl.program_id(0), tokens, frames, heads, M)
    q_head = q + g * q_group + f * q_frame + head * DIM
    q0, q1, acc0, acc1, top, total = queries(q_head, q_token, tokens, block, DIM, D0, D1, M)
    for s in tl.range(0, sources, num_stages=1):
        k = _pick(s, k0, k1, k2, k3, k4)
        v = _pick(s, v0, v1, v2, v3, v4)
        k += g * _pick(s, kg0, kg1, kg2, kg3, kg4) + f * _pick(s, kf0, kf1, kf2, kf3, kf4) + head * DIM
        v += g * _pick(s, vg0, vg1, vg2, vg3, vg4) + f * _pick(s, vf0, vf1, vf2, vf3, vf4) + head * DIM
        acc0, acc1, top, total = attend(
            q0, q1, k, v, _pick(s, kt0, kt1, kt2, kt3, kt4), _pick(s, vt0, vt1, vt2, vt3, vt4),
            _pick(s, length0, length1, length2, length3, length4), acc0, acc1, top, total, scale,
            DIM, D0, D1, M, N, True, False, False, False, False, False, STAGES)  # fmt: skip
    out_head = out + g * out_group + f * out_frame + head * DIM
    finish(out_head, out_token, tokens, block, acc0, acc1, total, DIM, D0, D1, M, False)


@triton.jit
def anchor_attention_own_and_shared(
    q, k, v, context_k, context_v, frames, tokens, own_length, context_length, heads, out,
    SCALE: tl.constexpr, DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Contiguous q, k, v [groups, frames, tokens or own_length, C] and context [groups, 1, context_length, C]."""
    block, f, head, g = place(tl.program_id(0), tokens, frames, heads, M)
    channels = heads * DIM
    at = (g * frames + f) * tokens * channels + head * DIM
    own = (g * frames + f) * own_length * channels + head * DIM
    shared = g * context_length * channels + head * DIM
    q0, q1, acc0, acc1, top, total = queries(q + at, channels, tokens, block, DIM, D0, D1, M)
    for s in tl.range(0, 2, num_stages=1):
        keys = tl.where(s == 0, k + own, context_k + shared)
        values = tl.where(s == 0, v + own, context_v + shared)
        length = tl.where(s == 0, own_length, context_length)
        acc0, acc1, top, total = attend(
            q0, q1, keys, values, channels, channels, length, acc0, acc1, top, total, SCALE,
            DIM, D0, D1, M, N, True, False, False, False, False, False, STAGES)  # fmt: skip
    finish(out + at, channels, tokens, block, acc0, acc1, total, DIM, D0, D1, M, False)


@triton.jit
def anchor_attention_shared(
    q, context_k, context_v, frames, tokens, context_length, heads, out,
    SCALE: tl.constexpr, DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Contiguous q [groups, frames, tokens, C] on a context [groups, 1, context_length, C] alone."""
    block, f, head, g = place(tl.program_id(0), tokens, frames, heads, M)
    channels = heads * DIM
    at = (g * frames + f) * tokens * channels + head * DIM
    shared = g * context_length * channels + head * DIM
    q0, q1, acc0, acc1, top, total = queries(q + at, channels, tokens, block, DIM, D0, D1, M)
    acc0, acc1, top, total = attend(
        q0, q1, context_k + shared, context_v + shared, channels, channels, context_length, acc0, acc1, top, total,
        SCALE, DIM, D0, D1, M, N, True, False, False, False, False, False, STAGES)  # fmt: skip
    finish(out + at, channels, tokens, block, acc0, acc1, total, DIM, D0, D1, M, False)


_FUNCTIONS = {
    "strided": anchor_attention_strided,
    "own_and_shared": anchor_attention_own_and_shared,
    "shared": anchor_attention_shared,
}


@dataclass(frozen=True, slots=True)
class Variant:
    """One binary: which entry, for which head dimension, type and GPU (90 = compute capability 9.0)."""

    head_dim: int
    dtype: torch.dtype
    target: int
    entry: str = "strided"

    @property
    def name(self) -> str:
        """A name for files and symbols, e.g. `anchor_attention_strided_d40_fp16_sm90`."""
        return f"anchor_attention_{self.entry}_d{self.head_dim}_{DTYPES[self.dtype]}_sm{self.target}"


@dataclass(frozen=True, slots=True)
class Blocks:
    """Queries and keys of a block, warps, and depth of the pipeline."""

    m: int
    n: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class Binary:
    """What the compiler made of a variant.

    Attributes:
        symbol: the entry's name in `ptx` and `cubin`.
        params: names of the entry's parameters in order, each with its type ("*fp16", "i32", "i64", "fp32"); two
            further pointers follow in the binary, which are never read (launchers in C pass null).
        shared_bytes: dynamic shared memory of a launch.
        threads: threads of a program; programs are cdiv(tokens, blocks.m)·groups·frames·heads, in one dimension.
    """

    variant: Variant
    blocks: Blocks
    symbol: str
    params: tuple[tuple[str, str], ...]
    shared_bytes: int
    threads: int
    ptx: str
    cubin: bytes


def blocks_for(variant: Variant) -> Blocks:
    """Blocks that spill nothing and stay within 48 KiB of shared memory on the target."""
    return _BLOCKS.get((variant.head_dim, variant.target)) or _BLOCKS[variant.head_dim, 0]


# By head dimension and target; target 0 is every other one. Found by compiling, not by timing.
_BLOCKS = {
    (40, 0): Blocks(128, 64, 8, 2),
    (64, 0): Blocks(128, 64, 8, 2),
    (64, 100): Blocks(64, 64, 4, 2),
    (80, 0): Blocks(128, 32, 8, 2),
    (80, 100): Blocks(64, 32, 4, 2),
    (128, 0): Blocks(64, 32, 4, 2),
    (128, 100): Blocks(64, 16, 4, 2),
    (160, 0): Blocks(64, 32, 4, 2),
    (160, 80): Blocks(64, 16, 4, 2),
    (160, 90): Blocks(64, 16, 4, 2),
    (160, 100): Blocks(64, 16, 4, 2),
    (160, 120): Blocks(64, 32, 8, 2),
}


@cache
def compile_variant(variant: Variant, *, ptx_version: int | None = None) -> Binary:
    """Compile one variant; no GPU is needed.

    Args:
        variant: what to compile.
        ptx_version: PTX version of the text (87 = 8.7); None = Triton's own choice for the target.

    Raises:
        InputError: the entry, head dimension, type or target is not one of those offered.
    """
    _check(variant)
    function, blocks = _FUNCTIONS[variant.entry], blocks_for(variant)
    constants = _constants(variant, blocks)
    names = [name for name in function.arg_names if name not in constants]
    signature = {name: _type(name, DTYPES[variant.dtype]) for name in names}
    source = triton.compiler.ASTSource(
        fn=function,
        signature={**signature, **dict.fromkeys(constants, "constexpr")},
        constexprs={(function.arg_names.index(name),): value for name, value in constants.items()},
        attrs={
            (function.arg_names.index(n),): [["tt.divisibility", d]] for n in names if (d := _divisor(n, signature))
        },
    )
    options: dict[str, Any] = {"num_warps": blocks.warps, "num_stages": blocks.stages}
    if ptx_version is not None:
        options["ptx_version"] = ptx_version
    compiled = _compile(source, variant.target, options)
    metadata = compiled.metadata
    if metadata.global_scratch_size or metadata.profile_scratch_size:
        raise RuntimeError(f"{variant.name} wants scratch memory, which its launchers do not give.")
    return Binary(
        variant, blocks, metadata.name, tuple(signature.items()), metadata.shared, 32 * metadata.num_warps,
        compiled.asm["ptx"], compiled.asm["cubin"],
    )  # fmt: skip


# What would otherwise come from the user's environment, or differ between versions of Triton: how products and sums
# are fused, and whether line numbers and paths of the sources are written into the binaries.
_COMPILER_SETTINGS = {"TRITON_DEFAULT_FP_FUSION": "1", "TRITON_DISABLE_LINE_INFO": "1"}


def _compile(source: Any, target: int, options: dict[str, Any]) -> Any:
    before = {name: os.environ.get(name) for name in _COMPILER_SETTINGS}
    os.environ.update(_COMPILER_SETTINGS)
    try:
        return triton.compile(source, target=triton.backends.compiler.GPUTarget("cuda", target, 32), options=options)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _check(variant: Variant) -> None:
    offers = (
        ("entry", variant.entry, tuple(_FUNCTIONS)),
        ("head_dim", variant.head_dim, HEAD_DIMS),
        ("dtype", variant.dtype, tuple(DTYPES)),
        ("target", variant.target, TARGETS),
    )
    for name, value, offered in offers:
        if value not in offered:
            raise InputError(
                "is not offered", name=name, value=value, remedy=f"choose one of {', '.join(map(str, offered))}"
            )


def _constants(variant: Variant, blocks: Blocks) -> dict[str, float]:
    d0, d1 = split_dim(variant.head_dim)
    sizes = {"DIM": variant.head_dim, "D0": d0, "D1": d1, "M": blocks.m, "N": blocks.n, "STAGES": blocks.stages}
    return {**sizes} if variant.entry == "strided" else {**sizes, "SCALE": variant.head_dim**-0.5 * LOG2_E}


def _type(name: str, element: str) -> str:
    if name in ("q", "out", "k", "v", "context_k", "context_v") or (name[0] in "kv" and name[1:].isdigit()):
        return f"*{element}"
    if name == "scale":
        return "fp32"
    return "i64" if name.endswith(("_group", "_frame")) or name[:2] in ("kg", "kf", "vg", "vf") else "i32"


def _divisor(name: str, signature: Mapping[str, str]) -> int:
    """What callers promise: 16 bytes for pointers, 8 elements for strides."""
    if signature[name].startswith("*"):
        return 16
    stride = name.startswith(("q_", "out_", "kg", "kf", "kt", "vg", "vf", "vt"))
    return 8 if stride else 0


__all__ = [
    "DTYPES",
    "HEAD_DIMS",
    "MAX_SOURCES",
    "PTX_VERSION",
    "SHARED_LIMIT_BYTES",
    "TARGETS",
    "Binary",
    "Blocks",
    "Variant",
    "blocks_for",
    "compile_variant",
]
