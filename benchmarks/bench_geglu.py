"""`fairy::geglu` beside the plain form and what the compiler makes of it: ``pytest benchmarks/bench_geglu.py``."""

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks.cells import Cell, Row, compiled, measure
from fairy.kernels.geglu import geglu, geglu_plain, geglu_reference

LEVELS = {"level 0": (3072, 1280), "level 1": (768, 2560), "level 2": (192, 5120)}


def make_cell(level: str, batch: int, dtype: torch.dtype, device: torch.device, *, compile_too: bool) -> Cell:
    """One level of SD1.5 at 512×384, `batch` sample-forwards."""
    tokens, channels = LEVELS[level]
    x = torch.randn(batch, tokens, 2 * channels, dtype=dtype, device=device)
    ways: dict[str, Callable[[], Tensor]] = {"fairy": partial(geglu, x), "eager": partial(geglu_plain, x)}
    if compile_too:
        ways["compiled"] = compiled(partial(geglu_plain, x))
    name = f"{level} × {batch}, {str(dtype).removeprefix('torch.')}"
    return Cell(name, ways, lambda: geglu_reference(x[:1].double()), 3 * x.nbytes // 2, dtype=dtype)


@pytest.mark.parametrize("level", LEVELS)
def test_geglu(level: str, device: torch.device, full: bool, report: Callable[[Sequence[Row]], None]) -> None:
    on_gpu = device.type == "cuda"
    batches = (9, 45, 180, 360) if on_gpu and full else (9, 360) if on_gpu else (1,)
    dtype = torch.float16 if on_gpu else torch.float32
    rows = []
    for batch in batches:
        rows += measure(make_cell(level, batch, dtype, device, compile_too=on_gpu or full), device)
    report(rows)
    assert all(row.error < 2e-3 for row in rows)
