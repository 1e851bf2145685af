"""The kernels of the linear layer in 8 bit: the definition's 8 bit values, and its sums."""

from functools import partial

import pytest
import torch
from torch import Tensor

from fairy.kernels.fp8_linear import (
    CANDIDATES,
    TUNING_DIMS,
    fp8_linear_reference,
    fp8_linear_triton,
    quantise_rows,
    quantise_rows_triton,
)
from tests.kernels.conftest import float8_tolerance

BY_NIGHT = partial(pytest.param, marks=pytest.mark.nightly)

# bf16: the interpreter's conversion cuts digits off instead of rounding to nearest
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def _draw(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def _check(x: Tensor, outputs: int, *, biased: bool = True, **config) -> None:
    weight, scale = quantise_rows(_draw(outputs, x.shape[-1], dtype=torch.float32, device=x.device, seed=1) / 8)
    bias = _draw(outputs, dtype=x.dtype, device=x.device, seed=2) if biased else None
    found = fp8_linear_triton(x, weight, scale, bias, **config)
    tolerance = float8_tolerance(x.dtype, TOLERANCE[x.dtype], x.device)
    assert found.dtype == x.dtype
    assert found.is_contiguous()
    exact = fp8_linear_reference(x.double() if x.dtype == torch.float32 else x, weight, scale, bias)
    torch.testing.assert_close(found.double(), exact.double(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", [1e-4, 1.0, 3e3])
def test_it_quantises_to_the_values_of_the_definition(dtype: torch.dtype, size: float, device: torch.device) -> None:
    x = size * _draw(7, 83, dtype=dtype, device=device)
    x[2] = 0
    x[3, :5] *= 2.0**-12  # where e4m3 has fewer digits
    values, scale = quantise_rows(x)
    found, own = quantise_rows_triton(x)
    assert torch.equal(found.float(), values.float())
    assert torch.equal(own, scale)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(48,), (9, 82), (2, 3, 130), (0, 16), (3, 0), (130, 64)], ids=str)
def test_against_float64(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, poisoned: None) -> None:
    _check(_draw(*shape, dtype=dtype, device=device), 37)


@pytest.mark.parametrize(
    "config", [c if i % 4 == 0 else BY_NIGHT(c) for i, c in enumerate(CANDIDATES(TUNING_DIMS[0]))], ids=str
)
def test_every_candidate(config, device: torch.device, poisoned: None) -> None:
    _check(_draw(150, 144, dtype=torch.float32, device=device), 141, biased=False, config=config)


@pytest.mark.parametrize("view", [lambda x: x[::2], lambda x: x[:, 3:25], lambda x: x.T[:, :6], lambda x: x[:, ::3]])
def test_strided_inputs(view, device: torch.device) -> None:
    _check(view(_draw(8, 36, dtype=torch.float32, device=device)), 20)
