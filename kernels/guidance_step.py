# mypy: disable-error-code="untyped-decorator"
"""Guidance over the branches and the sampler's update of the latents, with the noise all frames share, in one pass.

    out[f] = a_f · latents[f] + b_f · noise[f or 0] + Σ_g w_fg · outputs[g, f]

Every Gaussian step rule with linear guidance is of this form; the coefficients are known before the loop starts.
Guidance over three branches (Brooks et al., arXiv 2211.09800, equation 3) and, for example, the Euler-ancestral rule
(Karras et al., arXiv 2206.00364, as in k-diffusion) fold into them; whoever knows the rule folds them.

Contract
    outputs       [G, F, C, h, w], G guidance branches of F frames, contiguous or channels-last; any floating type
    latents       [F, C, h, w] float32, also expanded over the frames
    noise         [F or 1, C, h, w] float32, 1 = shared by all frames and never expanded; or None
    coefficients  [F or 1, 2 + G] float32: of the latents, of the noise, of every branch; on the same device
    result        [F, C, h, w] float32, contiguous
Bound: bytes, C·h·w·(G·size + 8) a frame: 0.17 MB at 4 × 48 × 64 with three branches in 16 bit. A step of 120 frames
    reads and writes 21 MB, 5 µs at 4 TB/s; the plain form runs some ten kernels instead of one.
Measured place: 7.6 µs for 3 frames on an H200 (float16, in a CUDA graph): 3.6 times as fast as the plain form; at
    that size a launch is what it costs. Called by the denoising loop under the backends "compiled" and "cuda-graphs".
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairy.kernels.errors import InputError
from fairy.kernels.launching import unit_columns, wants_triton
from fairy.kernels.tuning import Config, pick_config

DEFAULT = Config((("BLOCK", 1024),), num_warps=4, num_stages=1)
TUNING_DIMS: Sequence[dict[str, int]] = tuple(
    {"frames": frames, "elements": elements, "groups": 3, "element_bytes": 2}
    for elements in (4 * 48 * 64, 4 * 64 * 64, 4 * 72 * 128)
    for frames in (3, 15, 120)
)


def guidance_step_reference(outputs: Tensor, latents: Tensor, noise: Tensor | None, coefficients: Tensor) -> Tensor:
    """The definition in float64, rounded once to float32; shapes as in this file's contract."""
    a_F, b_F, *w_GF = coefficients.double().unbind(1)
    out = a_F[:, None, None, None] * latents.double()
    if noise is not None:
        out = out + b_F[:, None, None, None] * noise.double()
    for w_F, output in zip(w_GF, outputs.double(), strict=True):
        out = out + w_F[:, None, None, None] * output
    return out.float()


def guidance_step_plain(outputs: Tensor, latents: Tensor, noise: Tensor | None, coefficients: Tensor) -> Tensor:
    """The same in float32; shapes as in this file's contract."""
    wide = coefficients[:, :, None, None, None]
    out = latents * wide[:, 0]
    if noise is not None:
        out = torch.addcmul(out, noise, wide[:, 1])
    for g, output in enumerate(outputs):
        out = torch.addcmul(out, output.float(), wide[:, 2 + g])
    return out


@triton.jit
def _guidance_step_kernel(
    outputs_ptr: tl.tensor,
    latents_ptr: tl.tensor,
    noise_ptr: tl.tensor,
    coefficients_ptr: tl.tensor,
    out_ptr: tl.tensor,
    channels: int,
    pixels: int,
    group_stride: int,
    frame_stride: int,
    channel_stride: int,
    pixel_stride: int,
    latents_stride: int,
    noise_stride: int,
    coefficients_stride: int,
    BRANCHES: tl.constexpr,
    NOISE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    frame = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = e < channels * pixels
    coefficients = coefficients_ptr + frame * coefficients_stride
    out = tl.load(coefficients) * tl.load(latents_ptr + frame * latents_stride + e, mask=inside, other=0.0)
    if NOISE:
        out += tl.load(coefficients + 1) * tl.load(noise_ptr + frame * noise_stride + e, mask=inside, other=0.0)
    at = outputs_ptr + frame * frame_stride + (e // pixels) * channel_stride + (e % pixels) * pixel_stride
    for g in tl.static_range(BRANCHES):
        output = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        out += tl.load(coefficients + 2 + g) * output
        at += group_stride
    tl.store(out_ptr + frame * channels * pixels + e, out, mask=inside)


def guidance_step_triton(
    outputs: Tensor, latents: Tensor, noise: Tensor | None, coefficients: Tensor, config: Config | None = None
) -> Tensor:
    """One launch; shapes as in this file's contract, the config that was tuned unless one is given."""
    branches, frames, channels, height, width = outputs.shape
    out = latents.new_empty(latents.shape)
    if out.numel() == 0:
        return out
    x, pixels = outputs.flatten(3), height * width  # a view of contiguous or channels-last memory, else a copy
    rows, table = unit_columns(latents.flatten(1)), unit_columns(coefficients)
    fresh = rows if noise is None else unit_columns(noise.flatten(1))
    dims = {"frames": frames, "elements": channels * pixels, "groups": branches, "element_bytes": x.element_size()}
    config = config or pick_config("guidance_step", dims, x.device, DEFAULT)
    grid = (frames, triton.cdiv(channels * pixels, config["BLOCK"]))
    with torch.cuda.device_of(outputs):
        _guidance_step_kernel[grid](
            x, rows, fresh, table, out, channels, pixels, *x.stride(), rows.stride(0), _frame_stride(fresh),
            _frame_stride(table), BRANCHES=branches, NOISE=noise is not None, **config.as_kwargs(),
        )  # fmt: skip
    return out


@torch.library.custom_op("fairy::guidance_step", mutates_args=())
def _guidance_step_op(outputs: Tensor, latents: Tensor, noise: Tensor | None, coefficients: Tensor) -> Tensor:
    _check(outputs, latents, noise, coefficients)
    run = guidance_step_triton if wants_triton(outputs) else guidance_step_plain
    return run(outputs, latents, noise, coefficients).contiguous()


@_guidance_step_op.register_fake
def _(outputs: Tensor, latents: Tensor, noise: Tensor | None, coefficients: Tensor) -> Tensor:
    _check(outputs, latents, noise, coefficients)
    return latents.new_empty(latents.shape)


def guidance_step(outputs: Tensor, latents: Tensor, noise: Tensor | None, coefficients: Tensor) -> Tensor:
    """The latents after one guided step, through the op `fairy::guidance_step`.

    Args:
        outputs: [branches, frames, C, h, w], what the network gave.
        latents: [frames, C, h, w], float32.
        noise: [frames or 1, C, h, w], float32, or None where the step draws none.
        coefficients: [frames or 1, 2 + branches], float32.

    Returns:
        [frames, C, h, w], float32, contiguous.

    Raises:
        InputError: shapes or types do not fit the contract.
    """
    out: Tensor = torch.ops.fairy.guidance_step(outputs, latents, noise, coefficients)
    return out


def CANDIDATES(dims: Mapping[str, int]) -> Sequence[Config]:
    """Launch configurations that the tuner tries at these sizes."""
    return [Config((("BLOCK", block),), warps, 1) for block, warps in product((256, 512, 1024, 2048), (2, 4, 8))]


def tuning_call(dims: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> Callable[[Config], object]:
    """One launch on tensors of these sizes, given a config."""
    shape = (dims["frames"], 4, dims["elements"] // 4, 1)
    outputs = torch.randn(dims["groups"], *shape, dtype=dtype, device=device)
    latents, noise = torch.randn(shape, device=device), torch.randn(1, *shape[1:], device=device)
    coefficients = torch.ones(1, 2 + dims["groups"], device=device)
    return lambda config: guidance_step_triton(outputs, latents, noise, coefficients, config)


def _frame_stride(t: Tensor) -> int:
    """The distance of frames; 0 where one row serves all."""
    return 0 if t.shape[0] == 1 else t.stride(0)


def _check(outputs: Tensor, latents: Tensor, noise: Tensor | None, coefficients: Tensor) -> None:
    if outputs.dim() != 5 or outputs.shape[1:] != latents.shape:
        raise InputError(
            f"outputs {list(outputs.shape)} must be [branches, frames, C, h, w] for latents {list(latents.shape)}."
        )
    frames, branches = latents.shape[0], outputs.shape[0]
    if noise is not None and (noise.shape[1:] != latents.shape[1:] or noise.shape[0] not in (1, frames)):
        raise InputError(f"noise {list(noise.shape)} must have the shape of the latents, with 1 or {frames} frames.")
    if coefficients.dim() != 2 or coefficients.shape[1] != 2 + branches or coefficients.shape[0] not in (1, frames):
        raise InputError(f"coefficients {list(coefficients.shape)} must be [1 or {frames}, {2 + branches}].")
    if any(t is not None and t.dtype != torch.float32 for t in (latents, noise, coefficients)):
        raise InputError("latents, noise and coefficients must be float32; only the network's outputs may be 16 bit.")
