"""`fairy::fp8_linear` beside the layer in full precision: ``pytest benchmarks/bench_fp8_linear.py``.

Errors are those to the layer in float64, so that what 8 bit costs stands beside what it gains. "torch, 8 bit" is
torch's own product with the same scales, quantised by torch, where the GPU has it; it gives bfloat16.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cells import Cell, RunCell
from fairy.benchmarks.work import LINEARS, fp8_linear_work
from fairy.kernels.fp8_linear import LEAST_CAPABILITY, fp8_linear, quantise_rows


def make_cell(name: str, batch: int, dtype: torch.dtype, device: torch.device) -> Cell:
    """One linear layer of SD1.5 at 512×384, `batch` sample-forwards."""
    tokens, inputs, outputs = LINEARS[name]
    x = torch.randn(batch * tokens, inputs, dtype=dtype, device=device)
    weight, bias = torch.randn(outputs, inputs, device=device) / inputs**0.5, torch.randn(outputs, device=device)
    weight8, scale = quantise_rows(weight)
    weight, bias = weight.to(dtype), bias.to(dtype)
    ways: dict[str, Callable[[], Tensor]] = {
        "fairy": partial(fp8_linear, x, weight8, scale, bias),
        "full precision": partial(F.linear, x, weight, bias),
    }
    if device.type == "cuda":
        with suppress(Exception):  # what a release or a GPU does not serve is not in the table
            _torchs(x, weight8, scale, bias)
            ways["torch, 8 bit"] = partial(_torchs, x, weight8, scale, bias)

    def exact() -> Tensor:
        return F.linear(x[:64].double(), weight.double(), bias.double())

    work = fp8_linear_work(batch * tokens, inputs, outputs, dtype)
    return Cell(f"{name} × {batch}, {str(dtype).removeprefix('torch.')}", ways, exact, work, dtype)


def cases(on_gpu: bool, full: bool) -> list[tuple[str, int]]:
    """Layers and batches; a CPU simulates the smallest."""
    batches = (9, 45, 180, 360) if on_gpu and full else (9, 45) if on_gpu else (1,)
    return [(name, batch) for name in LINEARS for batch in batches if on_gpu or full or "level 2" in name]


def test_fp8_linear(case: tuple[str, int], device: torch.device, run_cell: RunCell) -> None:
    on_gpu = device.type == "cuda"
    if on_gpu and torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        pytest.skip("this GPU does not multiply 8 bit floating point")
    rows = run_cell(make_cell(*case, torch.float16 if on_gpu else torch.float32, device))
    assert all(row.error < (2e-3 if row.way == "full precision" else 0.06) for row in rows)


def _torchs(x: Tensor, weight8: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    x8, own = quantise_rows(x)
    out = torch._scaled_mm(
        x8, weight8.T, own.unsqueeze(1), scale.unsqueeze(0), bias=bias.bfloat16(), out_dtype=torch.bfloat16
    )
    return out if isinstance(out, Tensor) else out[0]
