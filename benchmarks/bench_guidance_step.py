"""`fairy::guidance_step` beside the runtime's guidance and sampler: ``pytest benchmarks/bench_guidance_step.py``."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.cells import Cell, RunCell, compiled
from fairy.benchmarks.work import guidance_step_work
from fairy.kernels.guidance_step import guidance_step, guidance_step_reference
from fairy.runtime.denoise.guidance import guide, make_guidance
from fairy.runtime.denoise.prediction import step_coefficients
from fairy.runtime.denoise.sampler import Schedule, euler_ancestral_step

TEXT, IMAGE = 7.5, 1.5
SIGMA, SIGMA_NEXT = 14.6, 5.2
SCHEDULE = Schedule("euler_ancestral", "epsilon", (999.0,), SIGMA, (SIGMA, SIGMA_NEXT))


def make_cell(frames: int, dtype: torch.dtype, device: torch.device, *, compile_too: bool) -> Cell:
    """One step of `frames` frames of 512×384 with three branches and shared noise."""
    shape = (frames, 4, 48, 64)
    outputs = torch.randn(3, *shape, device=device).to(dtype)
    latents, noise = torch.randn(shape, device=device), torch.randn(1, *shape[1:], device=device)
    coefficients = torch.tensor(step_coefficients(SCHEDULE, make_guidance(TEXT, IMAGE)), device=device)

    def plain() -> Tensor:
        guided = guide(make_guidance(TEXT, IMAGE), outputs)
        return euler_ancestral_step(SCHEDULE, 0, latents, guided, noise)

    ways: dict[str, Callable[[], Tensor]] = {
        "fairy": partial(guidance_step, outputs, latents, noise, coefficients),
        "eager": plain,
    }
    if compile_too:
        ways["compiled"] = compiled(plain)

    def exact() -> Tensor:
        return guidance_step_reference(outputs[:, :1], latents[:1], noise, coefficients).double()

    work = guidance_step_work(frames, noise.numel(), dtype)
    return Cell(f"{frames} frames, {str(dtype).removeprefix('torch.')}", ways, exact, work)


def cases(on_gpu: bool, full: bool) -> list[int]:
    """Numbers of frames."""
    return [3, 15, 120]


def test_guidance_step(case: int, device: torch.device, full: bool, run_cell: RunCell) -> None:
    on_gpu = device.type == "cuda"
    dtype = torch.float16 if on_gpu else torch.float32
    rows = run_cell(make_cell(case, dtype, device, compile_too=on_gpu or full))
    assert all(row.error < 1e-5 for row in rows)
