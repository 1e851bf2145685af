"""`fairy::upsample_conv` and its folded weights against upsampling and convolving, in float64."""

import pytest
import torch
from torch import Tensor

from fairy.kernels.errors import InputError
from fairy.kernels.upsample_conv import fold_weight, upsample_conv, upsample_conv_plain, upsample_conv_reference

# of the largest sum that a picture of unit variance gives; 16 bit also rounds the folded weights
TOLERANCE = {torch.float64: 1e-10, torch.float32: 4e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SHAPES = [(2, 5, 3, 7, 4), (1, 1, 1, 1, 1), (3, 8, 16, 1, 9), (1, 33, 9, 11, 17), (0, 2, 3, 3, 2)]


def _draw(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    samples, channels, height, width, outputs = shape
    generator = torch.Generator().manual_seed(sum(shape))
    shapes = ((samples, channels, height, width), (outputs, channels, 3, 3), (outputs,))
    x, weight, bias = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    x = x.contiguous(memory_format=torch.channels_last)
    return [t.to(device, dtype) for t in (x, weight / (9 * channels) ** 0.5, bias)]


def _plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The formula pixel by pixel, with Python loops."""
    samples, _, height, width = x.shape
    out = torch.zeros(samples, weight.shape[0], 2 * height, 2 * width, dtype=torch.float64)
    for i in range(2 * height):
        for j in range(2 * width):
            for r in range(max(i - 1, 0), min(i + 2, 2 * height)):
                for s in range(max(j - 1, 0), min(j + 2, 2 * width)):
                    out[:, :, i, j] += x[:, :, r // 2, s // 2] @ weight[:, :, r - i + 1, s - j + 1].T
    return out + bias[:, None, None]


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_reference_is_the_formula(shape: tuple[int, ...]) -> None:
    args = _draw(shape, torch.float64, torch.device("cpu"))
    torch.testing.assert_close(upsample_conv_reference(*args), _plain(*args), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(upsample_conv_plain(*args), _plain(*args), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_op_against_float64(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, poisoned: None) -> None:
    x, weight, bias = _draw(shape, dtype, device)
    found = upsample_conv(x, fold_weight(weight), bias)
    expected = upsample_conv_reference(x.double(), weight.double(), bias.double())
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_without_bias_and_from_other_layouts(device: torch.device) -> None:
    x, weight, _ = _draw((2, 12, 6, 5, 4), torch.float64, device)
    for view in (x.contiguous(), x[:, :, ::2], x[:1].expand(3, -1, -1, -1)):
        expected = upsample_conv_reference(view, weight)
        torch.testing.assert_close(upsample_conv(view, fold_weight(weight)), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_folded_weights_are_rounded_once(dtype: torch.dtype) -> None:
    weight = _draw((1, 7, 1, 1, 5), dtype, torch.device("cpu"))[1]
    folded = fold_weight(weight)
    assert torch.equal(folded, fold_weight(weight.double()).to(dtype))
    assert all(folded[a, b].is_contiguous(memory_format=torch.channels_last) for a in (0, 1) for b in (0, 1))
    torch.testing.assert_close(folded.double().sum((0, 1, 4, 5)), 4 * weight.double().sum((2, 3)), atol=0.1, rtol=0.02)


def test_nan_reaches_the_pixels_that_read_it(device: torch.device) -> None:
    x, weight, bias = _draw((1, 3, 5, 6, 2), torch.float32, device)
    x[0, 1, 2, 3] = torch.nan
    found = upsample_conv(x, fold_weight(weight), bias).isnan()
    assert torch.equal(found, upsample_conv_plain(x, weight, bias).isnan())
    assert int(found.sum()) == 2 * 4 * 4


def test_opcheck(device: torch.device) -> None:
    x, weight, bias = _draw((2, 3, 4, 5, 6), torch.float32, device)
    for args in ((x, fold_weight(weight), bias), (x.contiguous(), fold_weight(weight), None)):
        torch.library.opcheck(torch.ops.fairy.upsample_conv.default, args)


def test_it_traces_at_any_size(device: torch.device) -> None:
    class Upsample(torch.nn.Module):
        def __init__(self, weight: Tensor, bias: Tensor) -> None:
            super().__init__()
            self.folded, self.bias = fold_weight(weight), bias

        def forward(self, x: Tensor) -> Tensor:
            return upsample_conv(x, self.folded, self.bias) + 1

    x, weight, bias = _draw((2, 3, 4, 6, 5), torch.float32, device)
    module = Upsample(weight, bias)
    dims = {0: torch.export.Dim("n"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    exported = torch.export.export(module, (x,), dynamic_shapes=(dims,))
    assert "fairy.upsample_conv" in str(exported.graph)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in ((2, 3, 4, 6), (3, 3, 7, 5)):
        x = torch.randn(size, device=device)
        expected = upsample_conv_plain(x, weight, bias) + 1
        torch.testing.assert_close(exported.module()(x), expected, atol=4e-6, rtol=4e-6)
        torch.testing.assert_close(compiled(x), expected, atol=4e-6, rtol=4e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, f, b: (x[0], f, b), "3 dimensions"),
        (lambda x, f, b: (x, f[0, 0], b), "fold_weight"),
        (lambda x, f, b: (x[:, :2], f, b), "2, 2, O, 2, 2, 2"),
        (lambda x, f, b: (x, f, b[:2]), "each of the 5"),
        (lambda x, f, b: (x, f.half(), b), "one type"),
    ],
)
def test_wrong_inputs_are_refused_in_a_sentence(change, words: str) -> None:
    x, weight, bias = _draw((1, 3, 2, 2, 5), torch.float32, torch.device("cpu"))
    with pytest.raises(InputError, match=words):
        upsample_conv(*change(x, fold_weight(weight), bias))
    with pytest.raises(InputError, match="3, 3"):
        fold_weight(weight[:, :, :2])
