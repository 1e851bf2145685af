"""`fairy::group_norm_silu` beside torch's norm and activation: ``pytest benchmarks/bench_group_norm_silu.py``."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.cells import Cell, RunCell, compiled
from fairy.benchmarks.work import NORMS, group_norm_silu_work
from fairy.kernels.group_norm_silu import group_norm_silu, group_norm_silu_plain, group_norm_silu_reference

GROUPS = 32


def make_cell(name: str, batch: int, dtype: torch.dtype, device: torch.device, *, compile_too: bool) -> Cell:
    """One norm of SD1.5's UNet or of its VAE's decoder, channels-last."""
    channels, height, width = NORMS[name]
    shape = (batch, channels, height, width)
    x = torch.randn(shape, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, channels, dtype=dtype, device=device)
    plain = partial(group_norm_silu_plain, x, weight, bias, GROUPS)
    ways: dict[str, Callable[[], Tensor]] = {"fairy": partial(group_norm_silu, x, weight, bias, GROUPS), "eager": plain}
    if compile_too:
        ways["compiled"] = compiled(plain)

    def exact() -> Tensor:
        return group_norm_silu_reference(x[:1].double(), weight.double(), bias.double(), GROUPS)

    work = group_norm_silu_work(batch, channels, height * width, dtype)
    return Cell(f"{name} × {batch}, {str(dtype).removeprefix('torch.')}", ways, exact, work, dtype)


def cases(on_gpu: bool, full: bool) -> list[tuple[str, int]]:
    """Shapes and batches; the decoder takes one picture at a time."""
    batches = (9, 45, 180, 360) if on_gpu and full else (9, 180) if on_gpu else (1,)
    return [(name, batch) for name in NORMS for batch in (batches[:1] if name == "decoder" else batches)]


def test_group_norm_silu(case: tuple[str, int], device: torch.device, full: bool, run_cell: RunCell) -> None:
    on_gpu = device.type == "cuda"
    dtype = torch.float16 if on_gpu else torch.float32
    rows = run_cell(make_cell(*case, dtype, device, compile_too=on_gpu or full))
    assert all(row.error < 3e-3 for row in rows)
