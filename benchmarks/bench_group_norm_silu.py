"""`fairy::group_norm_silu` beside torch's norm and activation: ``pytest benchmarks/bench_group_norm_silu.py``."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.cells import Cell, RunCell, compiled
from fairy.kernels.group_norm_silu import group_norm_silu, group_norm_silu_plain, group_norm_silu_reference

# name: channels, height, width at 512×384
SHAPES = {
    "level 0": (320, 48, 64),
    "level 0 up": (960, 48, 64),
    "level 1": (640, 24, 32),
    "level 3": (2560, 6, 8),
    "decoder": (256, 192, 256),
}
GROUPS = 32


def make_cell(name: str, batch: int, dtype: torch.dtype, device: torch.device, *, compile_too: bool) -> Cell:
    """One norm of SD1.5's UNet or of its VAE's decoder, channels-last."""
    shape = (batch, *SHAPES[name])
    x = torch.randn(shape, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, shape[1], dtype=dtype, device=device)
    plain = partial(group_norm_silu_plain, x, weight, bias, GROUPS)
    ways: dict[str, Callable[[], Tensor]] = {"fairy": partial(group_norm_silu, x, weight, bias, GROUPS), "eager": plain}
    if compile_too:
        ways["compiled"] = compiled(plain)

    def exact() -> Tensor:
        return group_norm_silu_reference(x[:1].double(), weight.double(), bias.double(), GROUPS)

    return Cell(f"{name} × {batch}, {str(dtype).removeprefix('torch.')}", ways, exact, 3 * x.nbytes, dtype=dtype)


def cases(on_gpu: bool, full: bool) -> list[tuple[str, int]]:
    """Shapes and batches; the decoder takes one picture at a time."""
    batches = (9, 45, 180, 360) if on_gpu and full else (9, 180) if on_gpu else (1,)
    return [(name, batch) for name in SHAPES for batch in (batches[:1] if name == "decoder" else batches)]


def test_group_norm_silu(case: tuple[str, int], device: torch.device, full: bool, run_cell: RunCell) -> None:
    on_gpu = device.type == "cuda"
    dtype = torch.float16 if on_gpu else torch.float32
    rows = run_cell(make_cell(*case, dtype, device, compile_too=on_gpu or full))
    assert all(row.error < 3e-3 for row in rows)
