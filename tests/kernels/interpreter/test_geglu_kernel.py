"""The GEGLU kernel against its definition in float64."""

from functools import partial

import pytest
import torch
from torch import Tensor

from fairy.kernels.geglu import CANDIDATES, TUNING_DIMS, geglu_reference, geglu_triton

BY_NIGHT = partial(pytest.param, marks=pytest.mark.nightly)

# bf16: the interpreter's conversion cuts digits off instead of rounding to nearest
TOLERANCE = {torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 8e-3}
SHAPES = [(2,), (1, 6), (9, 82), (2, 3, 41 * 2), (5, 1, 1, 682), (0, 8), (3, 0)]


def _draw(*shape: int, dtype: torch.dtype, device: torch.device, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(device, dtype)


def _check(x: Tensor, found: Tensor) -> None:
    tolerance = TOLERANCE[x.dtype]
    assert found.dtype == x.dtype
    assert found.is_contiguous()
    torch.testing.assert_close(found.double(), geglu_reference(x.double()), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, poisoned: None) -> None:
    x = _draw(*shape, dtype=dtype, device=device)
    _check(x, geglu_triton(x))


@pytest.mark.parametrize(
    "config", [c if i % 4 == 0 else BY_NIGHT(c) for i, c in enumerate(CANDIDATES(TUNING_DIMS[0]))], ids=str
)
def test_every_candidate(config, device: torch.device, poisoned: None) -> None:
    x = _draw(11, 2 * 301, dtype=torch.float32, device=device)
    _check(x, geglu_triton(x, config))


@pytest.mark.parametrize(
    "view",
    [lambda x: x[::2], lambda x: x[:, 3:25], lambda x: x.T[:, :6], lambda x: x[:, ::3], lambda x: x[:1].expand(5, -1)],
)
def test_strided_inputs(view, device: torch.device) -> None:
    x = view(_draw(8, 36, dtype=torch.float32, device=device))
    _check(x, geglu_triton(x))


@pytest.mark.parametrize("scale", [80.0, 1e-6])
def test_large_and_small_gates(scale: float, device: torch.device) -> None:
    x = _draw(4, 50, dtype=torch.float32, device=device, scale=scale)
    torch.testing.assert_close(geglu_triton(x).double(), geglu_reference(x.double()), atol=1e-6 * scale, rtol=2e-6)


def test_nan_stays_where_it_is(device: torch.device) -> None:
    x = _draw(6, 20, dtype=torch.float16, device=device)
    x[1, 3] = x[4, 10 + 7] = torch.nan
    expected = torch.zeros(6, 10, dtype=torch.bool)
    expected[1, 3] = expected[4, 7] = True
    assert torch.equal(geglu_triton(x).isnan().cpu(), expected)
