"""`fairy::fp8_linear`: what it quantises to, its sums against float64, how far from the layer it is, and its code."""

import math
import os
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from fairy.kernels import fp8_linear as module
from fairy.kernels.errors import InputError
from fairy.kernels.fp8_linear import FLOAT8, fp8_linear, fp8_linear_plain, fp8_linear_reference, quantise_rows
from tests.kernels.conftest import float8_tolerance

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
# Every value of e4m3 that is not negative, made from what its bits mean: four of exponent (bias 7), three of mantissa.
GRID = [m / 8 * 2.0**-6 for m in range(8)] + [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)][:-1]


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _layer(outputs: int, inputs: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A weight, the same in 8 bit with its scale, and a bias."""
    weight, bias = _draw(outputs, inputs, seed=1).to(device) / math.sqrt(max(inputs, 1)), _draw(outputs, seed=2)
    return weight, *quantise_rows(weight), bias.to(device)


def test_values_are_rounded_to_the_nearest_of_the_format() -> None:
    """By search among all values of the format, ties to the even one; scales from the largest of each row."""
    x = _draw(5, 400) * torch.tensor([1e-5, 0.3, 1.0, 40.0, 6e4], dtype=torch.float64)[:, None]
    x8, scale = quantise_rows(x)
    grid = torch.tensor(GRID, dtype=torch.float64)
    assert len(grid) == 127
    assert grid[-1] == 448
    for row, found, own in zip(x, x8, scale, strict=True):
        assert own == pytest.approx(float(row.abs().max()) / 448, rel=1e-7)
        exact = row.float().double().abs() * float(torch.tensor(448.0) / row.float().abs().max())
        nearest = (grid - exact[:, None]).abs()
        best = nearest.min(1).values
        off = (found.double().abs() - exact).abs()
        assert bool((off <= best * (1 + 1e-6) + 1e-6 * exact).all())
        assert bool((found.double() * row >= 0).all())
        assert float(found.double().abs().max()) == 448


def test_ties_go_to_even() -> None:
    ties = torch.tensor([448.0, 17.0, 19.0, 1.0625, 1.1875, 0.5 * 2**-9, 1.5 * 2**-9])
    x8, scale = quantise_rows(ties)
    assert float(scale) == 1
    assert x8.tolist() == [448, 16, 20, 1.0, 1.25, 0, 2 * 2**-9]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(48,), (9, 82), (2, 3, 320), (0, 16), (3, 0)], ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_op_against_float64(
    shape: tuple[int, ...], dtype: torch.dtype, biased: bool, device: torch.device, poisoned: None
) -> None:
    """The same 8 bit values, summed in float64: what is left is the order of a float32 sum, and the last rounding."""
    x = _draw(*shape).to(device, dtype)
    _, weight, scale, bias = _layer(37, shape[-1], device)
    given = bias.to(dtype) if biased else None
    found, tolerance = fp8_linear(x, weight, scale, given), float8_tolerance(dtype, TOLERANCE[dtype], device)
    assert found.dtype == dtype
    assert found.shape == (*shape[:-1], 37)
    assert found.is_contiguous()
    x8, own = quantise_rows(x)
    exact = (x8.double() @ weight.double().T) * own.double()[..., None] * scale.double()
    exact = exact + given.double() if given is not None else exact
    torch.testing.assert_close(found.double(), exact, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(fp8_linear_reference(x, weight, scale, given).double(), exact, atol=tolerance, rtol=0.01)


@pytest.mark.parametrize("inputs", [48, 320, 1280])
def test_it_is_near_the_layer_in_full_precision(inputs: int, device: torch.device) -> None:
    """Two roundings of at most 1/16 each, independent: 2 to 5 % of the result's size with normal values."""
    x = _draw(64, inputs).to(device, torch.float32)
    weight, weight8, scale, bias = _layer(96, inputs, device)
    exact = F.linear(x.double(), weight, bias)
    error = (fp8_linear(x, weight8, scale, bias.float()).double() - exact).square().mean().sqrt()
    assert 0.02 < float(error / exact.square().mean().sqrt()) < 0.05


def test_a_row_and_an_output_of_another_size_cost_the_others_nothing(device: torch.device) -> None:
    """That is what scales of their own are for: with one scale for all, the small ones would vanish."""
    x = _draw(8, 64).to(device, torch.float32)
    weight, *_ = _layer(16, 64, device)
    weight8, scale = quantise_rows(weight)
    usual = fp8_linear(x, weight8, scale)
    rows = torch.ones(8, 1, device=device)
    rows[3], outputs = 2.0**20, torch.ones(16, device=device)
    outputs[5] = 2.0**-20
    weight8, scale = quantise_rows(weight * outputs.double()[:, None])
    torch.testing.assert_close(fp8_linear(x * rows, weight8, scale), usual * rows * outputs, rtol=1e-6, atol=0)


def test_zeros_stay_zero_and_nan_stays_in_its_row(device: torch.device) -> None:
    x = _draw(5, 32).to(device, torch.float16)
    x[1] = 0
    x[2, 7], x[4, 0] = torch.nan, torch.inf
    _, weight, scale, _ = _layer(9, 32, device)
    found = fp8_linear(x, weight, scale)
    assert bool((found[1] == 0).all())
    assert found.isnan().all(1).tolist() == [False, False, True, False, True]
    assert found.isnan().any(1).tolist() == [False, False, True, False, True]


def test_opcheck(device: torch.device) -> None:
    _, weight, scale, bias = _layer(10, 16, device)
    for x, given in (
        (torch.randn(3, 16, device=device), bias.float()),
        (torch.randn(4, 32, device=device)[:, ::2], None),
    ):
        kinds = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")  # no 8 bit arithmetic
        torch.library.opcheck(torch.ops.fairy.fp8_linear.default, (x, weight, scale, given), test_utils=kinds)


def test_it_traces_with_any_number_of_rows(device: torch.device) -> None:
    _, weight, scale, _ = _layer(10, 16, device)

    class Layer(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return fp8_linear(x * 2, weight, scale)

    x = torch.randn(5, 16, device=device)
    exported = torch.export.export(Layer(), (x,), dynamic_shapes=({0: torch.export.Dim("rows")},))
    assert "fairy.fp8_linear" in str(exported.graph)
    for rows in (5, 9):
        x = torch.randn(rows, 16, device=device)
        expected = fp8_linear_plain(x * 2, weight, scale)
        torch.testing.assert_close(exported.module()(x), expected, atol=1e-5, rtol=1e-5)


W8, SCALE = quantise_rows(torch.ones(3, 4))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.ones(2, 5), W8, SCALE), r"must be \[..., I\] for a weight \[O, I\]"),
        ((torch.ones(2, 4), torch.ones(3, 4), SCALE), "quantise_rows"),
        ((torch.ones(2, 4), W8, SCALE[:2]), "quantise_rows"),
        ((torch.ones(2, 4).int(), W8, SCALE), "floating point"),
        ((torch.ones(2, 4).to(FLOAT8), W8, SCALE), "at least 16 bit"),
        ((torch.ones(2, 4), W8, SCALE, torch.ones(4)), "each of the 3 outputs"),
    ],
)
def test_wrong_inputs_are_refused_in_a_sentence(arguments: tuple[Tensor, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        fp8_linear(*arguments)


def test_a_gpu_that_does_not_multiply_8_bit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(InputError, match=r"need compute capability 8.9 or later; cuda has 8.0"):
        module.check_capability(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    module.check_capability(torch.device("cuda"))
    module.check_capability(torch.device("cpu"))


# What multiplies e4m3 on a chip: per warp, per warp group, in tensor memory. Sizes are those of SD1.5's feed-forward.
INSTRUCTION = {89: "QMMA", 90: "QGMMA", 100: "UTCQMMA", 120: "QMMA"}


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
@pytest.mark.parametrize("capability", INSTRUCTION)
def test_it_compiles_to_8_bit_products_without_spills(
    capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fairy.kernels.binaries import disassemble

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    blocks = dict(module.DEFAULT.blocks) | {"BIAS": True, "WHOLE": True, "STAGES": module.DEFAULT.num_stages}
    code, registers = disassemble(_cubin(module._product_kernel, blocks, capability, module.DEFAULT.num_warps))
    assert re.search(rf"\b{INSTRUCTION[capability]}\b", code), "the product is not one of 8 bit"
    assert not re.search(r"\b(?:STL|LDL)\b", code), "registers are spilled"
    assert registers < 255
    if capability == 90:  # the partial sums leave the matrix units, one addition for each of a thread's 64 results
        assert len(re.findall(r"\bFADD\b", code)) >= 64
    code, _ = disassemble(_cubin(module._quantise_kernel, {"BLOCK": 2048, "EMULATE": False}, capability, 4))
    assert re.search(r"F2FP[\w.]*E4M3", code), "values are not narrowed by the chip's own instruction"


def _cubin(kernel, constants: dict, capability: int, warps: int) -> bytes:
    eighth, single = dict.fromkeys(("x8_ptr", "weight_ptr"), "*fp8e4nv"), ("scale_ptr", "x_scale_ptr", "w_scale_ptr")
    types = dict.fromkeys(kernel.arg_names, "i32") | eighth | dict.fromkeys(single, "*fp32")
    types |= dict.fromkeys(("x_ptr", "bias_ptr", "out_ptr"), "*fp16") | dict.fromkeys(constants, "constexpr")
    signature = {name: types[name] for name in kernel.arg_names}
    aligned = [n for n, t in signature.items() if t.startswith("*") or n in ("inputs", "outputs", "row_stride")]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs={(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    made = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    return bytes(made.asm["cubin"])
