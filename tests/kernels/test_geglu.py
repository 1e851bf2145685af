"""`fairy::geglu` against its definition in float64 and against diffusers' own module."""

import math

import pytest
import torch

from fairy.kernels.errors import InputError
from fairy.kernels.geglu import geglu, geglu_plain, geglu_reference

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def test_reference_is_the_formula() -> None:
    x = torch.linspace(-6, 6, 14, dtype=torch.float64).roll(3)
    expected = [a * g * 0.5 * math.erfc(-g / math.sqrt(2)) for a, g in zip(x[:7].tolist(), x[7:].tolist(), strict=True)]
    torch.testing.assert_close(geglu_reference(x), torch.tensor(expected, dtype=torch.float64), atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(2,), (9, 82), (2, 3, 682), (0, 8)], ids=str)
def test_op_against_float64(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, poisoned: None) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    found, tolerance = geglu(x), TOLERANCE[dtype]
    assert found.dtype == dtype
    assert found.is_contiguous()
    torch.testing.assert_close(found.double(), geglu_reference(x.double()), atol=tolerance, rtol=tolerance)


def test_halves_are_in_the_order_of_diffusers(device: torch.device) -> None:
    from diffusers.models.activations import GEGLU

    module = GEGLU(6, 5).to(device).requires_grad_(False)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)).to(device)
    torch.testing.assert_close(geglu(module.proj(x)), module(x), atol=1e-6, rtol=1e-6)


def test_opcheck(device: torch.device) -> None:
    for x in (torch.randn(3, 10, device=device), torch.randn(4, 20, device=device)[:, ::2]):
        torch.library.opcheck(torch.ops.fairy.geglu.default, (x,))


def test_it_traces_with_any_number_of_rows(device: torch.device) -> None:
    class Gate(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return geglu(x * 2)

    x = torch.randn(5, 12, device=device)
    exported = torch.export.export(Gate(), (x,), dynamic_shapes=({0: torch.export.Dim("rows")},))
    assert "fairy.geglu" in str(exported.graph)
    compiled = torch.compile(Gate(), backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (5, 9):
        x = torch.randn(rows, 12, device=device)
        expected = geglu_plain(x * 2)
        torch.testing.assert_close(exported.module()(x), expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(compiled(x), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "words"), [(torch.ones(3, 7), "even"), (torch.tensor(1.0), "even"), (torch.ones(2, 4).int(), "floating")]
)
def test_wrong_inputs_are_refused_in_a_sentence(x: torch.Tensor, words: str) -> None:
    with pytest.raises(InputError, match=words):
        geglu(x)
