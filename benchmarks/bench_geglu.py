"""`fairy::geglu` beside the plain form and what the compiler makes of it: ``pytest benchmarks/bench_geglu.py``."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.cells import Cell, RunCell, compiled
from fairy.benchmarks.work import GATES, geglu_work
from fairy.kernels.geglu import geglu, geglu_plain, geglu_reference


def make_cell(level: str, batch: int, dtype: torch.dtype, device: torch.device, *, compile_too: bool) -> Cell:
    """One level of SD1.5 at 512×384, `batch` sample-forwards."""
    tokens, channels = GATES[level]
    x = torch.randn(batch, tokens, 2 * channels, dtype=dtype, device=device)
    ways: dict[str, Callable[[], Tensor]] = {"fairy": partial(geglu, x), "eager": partial(geglu_plain, x)}
    if compile_too:
        ways["compiled"] = compiled(partial(geglu_plain, x))
    name = f"{level} × {batch}, {str(dtype).removeprefix('torch.')}"
    return Cell(name, ways, lambda: geglu_reference(x[:1].double()), geglu_work(batch * tokens, channels, dtype), dtype)


def cases(on_gpu: bool, full: bool) -> list[tuple[str, int]]:
    """Levels and batches."""
    batches = (9, 45, 180, 360) if on_gpu and full else (9, 360) if on_gpu else (1,)
    return [(level, batch) for level in GATES for batch in batches]


def test_geglu(case: tuple[str, int], device: torch.device, full: bool, run_cell: RunCell) -> None:
    on_gpu = device.type == "cuda"
    dtype = torch.float16 if on_gpu else torch.float32
    rows = run_cell(make_cell(*case, dtype, device, compile_too=on_gpu or full))
    assert all(row.error < 2e-3 for row in rows)
