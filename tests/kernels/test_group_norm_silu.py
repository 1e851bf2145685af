"""`fairy::group_norm_silu` against its definition in float64 and against torch's own modules."""

import pytest
import torch
from torch import Tensor

from fairy.kernels.errors import InputError
from fairy.kernels.group_norm_silu import group_norm_silu, group_norm_silu_reference

TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.float16: 6e-3, torch.bfloat16: 6e-2}


def _draw(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last)
    return [t.to(device, dtype) for t in (x, *torch.randn(2, shape[1], generator=generator))]


@pytest.mark.parametrize("silu", [True, False])
def test_reference_is_group_norm_and_silu(silu: bool) -> None:
    x, weight, bias = _draw((2, 12, 3, 5), torch.float64, torch.device("cpu"))
    norm = torch.nn.GroupNorm(3, 12, eps=1e-3, dtype=torch.float64)
    norm.load_state_dict({"weight": weight, "bias": bias})
    expected = torch.nn.functional.silu(norm(x)) if silu else norm(x)
    found = group_norm_silu_reference(x, weight, bias, 3, 1e-3, silu)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("shape", "groups"), [((2, 40, 5, 7), 4), ((1, 6, 1, 1), 3), ((3, 24, 33, 9), 8), ((0, 4, 2, 2), 2)], ids=str
)
def test_op_against_float64(
    shape: tuple[int, ...], groups: int, dtype: torch.dtype, device: torch.device, poisoned: None
) -> None:
    args = _draw(shape, dtype, device)
    found = group_norm_silu(*args, groups, eps=1e-5)
    expected = group_norm_silu_reference(*(t.double() for t in args), groups)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_parameters_may_be_of_another_type(device: torch.device) -> None:
    x, weight, bias = _draw((2, 8, 4, 4), torch.float16, device)
    found = group_norm_silu(x, weight.float(), bias.float(), 2)
    torch.testing.assert_close(found, group_norm_silu(x, weight, bias, 2), atol=2e-3, rtol=2e-3)


def test_opcheck(device: torch.device) -> None:
    x, weight, bias = _draw((2, 12, 3, 5), torch.float32, device)
    for given in (x, x.contiguous(), x[:, :, ::2]):
        torch.library.opcheck(torch.ops.fairy.group_norm_silu.default, (given, weight, bias, 3, 1e-5, True))


def test_it_traces_at_any_size(device: torch.device) -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.GroupNorm(2, 8)

        def forward(self, x: Tensor) -> Tensor:
            return group_norm_silu(x, self.norm.weight, self.norm.bias, 2) + 1

    block = Block().to(device).requires_grad_(False)
    dims = {0: torch.export.Dim("n"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    x = _draw((2, 8, 4, 6), torch.float32, device)[0]
    exported = torch.export.export(block, (x,), dynamic_shapes=(dims,))
    assert "fairy.group_norm_silu" in str(exported.graph)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=True)
    for shape in ((2, 8, 4, 6), (3, 8, 7, 5)):
        x = _draw(shape, torch.float32, device)[0]
        expected = torch.nn.functional.silu(block.norm(x)) + 1
        torch.testing.assert_close(exported.module()(x), expected, atol=2e-6, rtol=2e-6)
        torch.testing.assert_close(compiled(x), expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, w, b: (x[0], w, b, 2), "3 dimensions"),
        (lambda x, w, b: (x, w, b, 3), "does not divide"),
        (lambda x, w, b: (x, w, b, 0), "does not divide"),
        (lambda x, w, b: (x, w[:3], b, 2), "each of the 8 channels"),
        (lambda x, w, b: (x, w, b[:, None], 2), "each of the 8 channels"),
        (lambda x, w, b: (x.int(), w, b, 2), "floating"),
    ],
)
def test_wrong_inputs_are_refused_in_a_sentence(change, words: str) -> None:
    with pytest.raises(InputError, match=words):
        group_norm_silu(*change(*_draw((2, 8, 3, 3), torch.float32, torch.device("cpu"))))
