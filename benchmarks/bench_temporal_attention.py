"""`fairy::temporal_attention` beside torch's attention: ``pytest benchmarks/bench_temporal_attention.py``."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.cells import Cell, RunCell, compiled
from fairy.benchmarks.work import temporal_attention_work
from fairy.kernels.temporal_attention import (
    temporal_attention,
    temporal_attention_plain,
    temporal_attention_reference,
)

# AnimateDiff's levels at 512x512, and the embedded generator's: places, heads, channels of a head.
LEVELS = {"level 0": (4096, 8, 40), "level 1": (1024, 8, 80), "embedded": (64, 4, 32)}


def make_cell(level: str, frames: int, dtype: torch.dtype, device: torch.device, *, compile_too: bool) -> Cell:
    """One layer over so many frames, two guidance branches."""
    places, heads, channels = LEVELS[level]
    q, k, v = (torch.randn(2, frames, places, heads, channels, dtype=dtype, device=device) for _ in range(3))
    ways: dict[str, Callable[[], Tensor]] = {
        "fairy": partial(temporal_attention, q, k, v),
        "eager": partial(temporal_attention_plain, q, k, v),
    }
    if compile_too:
        ways["compiled"] = compiled(partial(temporal_attention_plain, q, k, v))
    name = f"{level}, {frames} frames, {str(dtype).removeprefix('torch.')}"
    work = temporal_attention_work(2 * places, frames, heads, channels, dtype)
    first = (x[:1].double() for x in (q, k, v))
    return Cell(name, ways, partial(temporal_attention_reference, *first), work, dtype)


def cases(on_gpu: bool, full: bool) -> list[tuple[str, int]]:
    """Levels and frames."""
    frames = (16, 32, 76) if on_gpu and full else (16,)
    return [(level, count) for level in (LEVELS if on_gpu or full else ["embedded"]) for count in frames]


def test_temporal_attention(case: tuple[str, int], device: torch.device, full: bool, run_cell: RunCell) -> None:
    on_gpu = device.type == "cuda"
    dtype = torch.float16 if on_gpu else torch.float32
    rows = run_cell(make_cell(*case, dtype, device, compile_too=on_gpu or full))
    assert all(row.error < 2e-3 for row in rows)
