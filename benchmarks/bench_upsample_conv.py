"""`fairy::upsample_conv` beside upsampling and convolving: ``pytest benchmarks/bench_upsample_conv.py``."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.cells import Cell, RunCell, compiled
from fairy.benchmarks.work import UPSAMPLERS, upsample_conv_work
from fairy.kernels.upsample_conv import fold_weight, upsample_conv, upsample_conv_plain, upsample_conv_reference


def make_cell(name: str, batch: int, dtype: torch.dtype, device: torch.device, *, compile_too: bool) -> Cell:
    """One upsampler of SD1.5's UNet or of its VAE's decoder, channels-last."""
    channels, height, width = UPSAMPLERS[name]
    last = torch.channels_last
    x = torch.randn(batch, channels, height, width, dtype=dtype, device=device).contiguous(memory_format=last)
    weight = (torch.randn(channels, channels, 3, 3, device=device) / (9 * channels) ** 0.5).to(dtype)
    weight, bias, folded = weight.contiguous(memory_format=last), weight[:, 0, 0, 0].clone(), fold_weight(weight)
    plain = partial(upsample_conv_plain, x, weight, bias)
    ways: dict[str, Callable[[], Tensor]] = {"fairy": partial(upsample_conv, x, folded, bias), "eager": plain}
    if compile_too:
        ways["compiled"] = compiled(plain)

    def exact() -> Tensor:
        return upsample_conv_reference(x[:1].double(), weight.double(), bias.double())

    work = upsample_conv_work(batch, channels, height * width, dtype)
    name = f"{name} × {batch}, {str(dtype).removeprefix('torch.')}"
    return Cell(name, ways, exact, work, dtype)


def cases(on_gpu: bool, full: bool) -> list[tuple[str, int]]:
    """Shapes and batches; the decoder takes one picture at a time, and a CPU several seconds for it."""
    batches = (9, 45, 180, 360) if on_gpu and full else (9, 180) if on_gpu else (1,)
    names = [name for name in UPSAMPLERS if name != "decoder" or on_gpu or full]
    return [(name, batch) for name in names for batch in (batches[:1] if name == "decoder" else batches)]


def test_upsample_conv(case: tuple[str, int], device: torch.device, full: bool, run_cell: RunCell) -> None:
    on_gpu = device.type == "cuda"
    dtype = torch.float16 if on_gpu else torch.float32
    rows = run_cell(make_cell(*case, dtype, device, compile_too=on_gpu or full))
    assert all(row.error < 5e-3 for row in rows)
