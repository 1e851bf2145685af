# mypy: disable-error-code="untyped-decorator"
"""A linear layer in 8 bit: e4m3 activations with a scale for every token, e4m3 weights with one for every output.

    out = (x8 · w8ᵀ) · sx · sw + bias,   x8 = e4m3(x · 448/max|x|) row by row, sx = max|x|/448; w8 and sw likewise

Approximate: three binary places of every value remain, half a step is 1/16 of it. Rows and outputs have scales of their
own because a factor of a row or column of a product can be taken out of its sum; finer scales could not.

Contract
    x       [..., I], any strides; float16, bfloat16, float32 (float64 takes the plain path)
    weight  [O, I] float8_e4m3fn and scale [O] float32, both from `quantise_rows` of the layer's weight, made once
    bias    [O] of any floating type, or None
    result  [..., O], contiguous, in x's type; summed, scaled and biased in float32, rounded once
Quantising is part of the definition: in float32, by one division a row, to nearest even. So reference, plain path and
    kernel quantise to the same values and differ only in the order of a float32 sum. A row with NaN or infinity is NaN.
Source: per-token and per-channel scaling as in SmoothQuant (Xiao et al., arXiv 2211.10438), in e4m3 (Micikevicius et
    al., arXiv 2209.05433). torch's own `_scaled_mm` takes the same scales; which results it then gives besides bfloat16
    depends on its release, and an edit is in float16.
On Hopper the matrix units keep few digits of a running sum in 8 bit (on an H200 sums were off by up to 2.7·10⁻³), so
    every block of K products is added to a float32 sum outside of them.
Bound: at SD1.5's level 0 bytes, size·rows·(I + O) + I·O: the first linear of the feed-forward (320 → 2560 for 9 · 3072
    tokens) moves 160 MB, 48 µs at 3.35 TB/s, where 45.3 GFLOP take 23 µs at 1979 TFLOP/s and 46 µs in 16 bit, so that 8
    bit gains nothing there; at level 2 (1280 → 10240, 9 · 192 tokens) FLOP, 23 µs instead of 46.
Measured place: its speed is not measured. Called by the networks where the step
    "fp8-linears" was asked for.
Legend: M rows, N outputs, K inputs of a tile.
"""

import os
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from fairy.kernels.errors import InputError
from fairy.kernels.launching import next_power_of_2, unit_columns, wants_triton
from fairy.kernels.tuning import Config, pick_config

FLOAT8 = torch.float8_e4m3fn
LARGEST = 448.0  # that e4m3 can hold
LEAST_CAPABILITY = (8, 9)  # that multiplies e4m3
_SMALLEST = 1e-30  # a row that is zero has this largest value: its inverse is finite
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

DEFAULT = Config((("M", 128), ("N", 128), ("K", 64), ("GROUP", 8)), num_warps=8, num_stages=3)
TUNING_DIMS: Sequence[dict[str, int]] = tuple(
    {"rows": 9 * tokens, "inputs": inputs, "outputs": outputs, "element_bytes": 2}
    for tokens, channels in ((3072, 320), (768, 640), (192, 1280))
    for inputs, outputs in ((channels, 8 * channels), (4 * channels, channels), (channels, 3 * channels))
)


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """The last dimension of x in e4m3, and what to multiply it by: [..., I] to [..., I] float8 and [...] float32."""
    wide = x.float()
    largest = wide.abs().amax(dim=-1, keepdim=True).clamp_min(_SMALLEST) if x.shape[-1] else wide.sum(-1, keepdim=True)
    full = torch.full_like(largest, LARGEST)  # with a plain number torch multiplies by a rounded reciprocal instead
    return (wide * (full / largest)).to(FLOAT8), (largest / full).squeeze(-1)


def fp8_linear_reference(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """The definition with sums in float64, rounded once to x's type; shapes as in this file's contract."""
    x8, own = quantise_rows(x)
    out = (x8.double() @ weight.double().T) * own.double().unsqueeze(-1) * scale.double()
    return (out if bias is None else out + bias.double()).to(x.dtype)


def fp8_linear_plain(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same by torch's product of the rounded values: a simulation for devices without 8 bit products."""
    wide = torch.promote_types(x.dtype, torch.float32)
    x8, own = quantise_rows(x)
    out = F.linear(x8.to(wide), weight.to(wide)) * own.unsqueeze(-1) * scale
    return (out if bias is None else out + bias.to(wide)).to(x.dtype)


@triton.jit
def _narrow(x: tl.tensor, EMULATE: tl.constexpr) -> tl.tensor:
    """e4m3 to nearest even; EMULATE rounds before the interpreter cuts off."""
    if EMULATE:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & 0xFFF00000
        x = tl.where(tl.abs(x) < 0.015625, (x + 24576.0) - 24576.0, bits.to(tl.float32, bitcast=True))
    return x.to(tl.float8e4nv)


@triton.jit
def _quantise_kernel(
    x_ptr: tl.tensor,
    x8_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    inputs: int,
    row_stride: int,
    BLOCK: tl.constexpr,
    EMULATE: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * row_stride + i, mask=i < inputs, other=0.0).to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(x), 0), 1e-30)
    x8 = _narrow(x * tl.div_rn(448.0, largest), EMULATE)
    tl.store(x8_ptr + row * inputs + i, x8, mask=i < inputs)
    tl.store(scale_ptr + row, tl.div_rn(largest, 448.0))


@triton.jit
def _product_kernel(
    x8_ptr: tl.tensor,
    x_scale_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    w_scale_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    out_ptr: tl.tensor,
    rows: int,
    outputs: int,
    inputs: int,
    BIAS: tl.constexpr,
    WHOLE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    # Programs next to each other take GROUP blocks of rows against the same outputs, whose weights stay in L2.
    program, across = tl.program_id(0), tl.cdiv(outputs, N)
    first = program // (GROUP * across) * GROUP
    size = tl.minimum(tl.cdiv(rows, M) - first, GROUP)
    block_m = first + program % (GROUP * across) % size
    block_n = program % (GROUP * across) // size
    m = block_m * M + tl.arange(0, M)
    n = block_n * N + tl.arange(0, N)
    k = tl.arange(0, K)
    x_at = x8_ptr + m[:, None].to(tl.int64) * inputs + k[None, :]
    w_at = weight_ptr + n[:, None].to(tl.int64) * inputs + k[None, :]
    m_inside, n_inside = m < rows, n < outputs
    acc = tl.zeros([M, N], tl.float32)
    for start in tl.range(0, inputs, K, num_stages=STAGES):
        if WHOLE:
            x = tl.load(x_at + start, mask=m_inside[:, None], other=0.0)
            w = tl.load(w_at + start, mask=n_inside[:, None], other=0.0)
        else:
            x = tl.load(x_at + start, mask=m_inside[:, None] & (k[None, :] < inputs - start), other=0.0)
            w = tl.load(w_at + start, mask=n_inside[:, None] & (k[None, :] < inputs - start), other=0.0)
        acc = tl.dot(x, tl.trans(w), acc, max_num_imprecise_acc=K)
    x_scale = tl.load(x_scale_ptr + m, mask=m_inside, other=0.0)
    w_scale = tl.load(w_scale_ptr + n, mask=n_inside, other=0.0)
    out = acc * x_scale[:, None] * w_scale[None, :]
    if BIAS:
        out += tl.load(bias_ptr + n, mask=n_inside, other=0.0).to(tl.float32)[None, :]
    at = out_ptr + m[:, None].to(tl.int64) * outputs + n[None, :]
    tl.store(at, out.to(out_ptr.dtype.element_ty), mask=m_inside[:, None] & n_inside[None, :])


def quantise_rows_triton(x: Tensor) -> tuple[Tensor, Tensor]:
    """`quantise_rows` of a matrix [rows, I] by one launch, a program a row."""
    rows, inputs = x.shape
    x = unit_columns(x)
    x8, scale = torch.empty(rows, inputs, dtype=FLOAT8, device=x.device), x.new_empty(rows, dtype=torch.float32)
    block = max(next_power_of_2(inputs), 16)
    with torch.cuda.device_of(x):
        _quantise_kernel[(rows,)](
            x, x8, scale, inputs, x.stride(0), BLOCK=block, EMULATE=_INTERPRETED, num_warps=4 if block <= 4096 else 8
        )
    return x8, scale


def fp8_linear_triton(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, config: Config | None = None
) -> Tensor:
    """Two launches; shapes and types as in this file's contract, the config that was tuned unless one is given.

    Raises:
        InputError: the GPU does not multiply e4m3.
    """
    check_capability(x.device)
    inputs, outputs = x.shape[-1], weight.shape[0]
    out = x.new_empty((*x.shape[:-1], outputs))
    if out.numel() == 0 or inputs == 0:
        return out.zero_() if bias is None else out.copy_(bias.expand(out.shape))
    x8, own = quantise_rows_triton(x.reshape(-1, inputs))
    rows = len(x8)
    dims = {"rows": rows, "inputs": inputs, "outputs": outputs, "element_bytes": x.element_size()}
    config = config or pick_config("fp8_linear", dims, x.device, DEFAULT)
    blocks = dict(config.blocks)
    grid = (triton.cdiv(rows, blocks["M"]) * triton.cdiv(outputs, blocks["N"]),)
    with torch.cuda.device_of(x):
        _product_kernel[grid](
            x8, own, weight.contiguous(), scale.contiguous(), own if bias is None else bias.contiguous(), out,
            rows, outputs, inputs, BIAS=bias is not None, WHOLE=inputs % blocks["K"] == 0,
            STAGES=config.num_stages, num_warps=config.num_warps, **blocks,
        )  # fmt: skip
    return out


@torch.library.custom_op("fairy::fp8_linear", mutates_args=())
def _fp8_linear_op(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    _check(x, weight, scale, bias)
    run = fp8_linear_triton if wants_triton(x) else fp8_linear_plain
    return run(x, weight, scale, bias).contiguous()


@_fp8_linear_op.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    _check(x, weight, scale, bias)
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def fp8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias in 8 bit, through the op `fairy::fp8_linear`.

    Args:
        x: [..., I].
        weight, scale: [O, I] in float8_e4m3fn and [O] in float32, what `quantise_rows` made of the layer's weight.
        bias: [O], or None.

    Returns:
        [..., O], contiguous, in x's type.

    Raises:
        InputError: shapes or types do not fit the contract, or the GPU does not multiply e4m3.
    """
    out: Tensor = torch.ops.fairy.fp8_linear(x, weight, scale, bias)
    return out


def check_capability(device: torch.device) -> None:
    """Raise InputError where a GPU does not multiply e4m3; the CPU and Triton's interpreter do it in float32."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        found = ".".join(map(str, torch.cuda.get_device_capability(device)))
        raise InputError(f"Linear layers in 8 bit need compute capability 8.9 or later; {device} has {found}.")


def CANDIDATES(dims: Mapping[str, int]) -> Sequence[Config]:
    """Launch configurations that the tuner tries at these sizes."""
    shapes = ((128, 128, 128, 8, 3), (128, 128, 64, 8, 3), (128, 128, 64, 4, 4), (64, 128, 64, 4, 4),
              (64, 128, 128, 4, 3), (64, 64, 64, 4, 4), (256, 128, 64, 8, 3))  # fmt: skip
    return [_config(m, n, k, warps, stages) for m, n, k, warps, stages in shapes]


def tuning_call(dims: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> Callable[[Config], object]:
    """One launch on tensors of these sizes, given a config."""
    x = torch.randn(dims["rows"], dims["inputs"], dtype=dtype, device=device)
    weight, scale = quantise_rows(torch.randn(dims["outputs"], dims["inputs"], device=device))
    bias = torch.randn(dims["outputs"], dtype=dtype, device=device)
    return lambda config: fp8_linear_triton(x, weight, scale, bias, config)


def _config(m: int, n: int, k: int, warps: int, stages: int) -> Config:
    return Config((("M", m), ("N", n), ("K", k), ("GROUP", 8)), num_warps=warps, num_stages=stages)


def _check(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
    if x.dim() == 0 or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        raise InputError(f"x {list(x.shape)} must be [..., I] for a weight [O, I], which is {list(weight.shape)}.")
    if weight.dtype != FLOAT8 or scale.dtype != torch.float32 or scale.shape != weight.shape[:1]:
        raise InputError("weight must be float8_e4m3fn and scale float32 [O]; make both with quantise_rows(weight).")
    if not x.is_floating_point() or x.dtype.itemsize < 2:
        raise InputError(f"x must be of a floating point type of at least 16 bit, not {x.dtype}.")
    if bias is not None and bias.shape != scale.shape:
        raise InputError(f"bias {list(bias.shape)} must have one value for each of the {len(scale)} outputs.")
