"""Attention over time against its definition in float64, and as the UNet over windows uses it."""

import pytest
import torch

from fairy.export.bases.video_unet import TemporalAttention
from fairy.kernels.errors import InputError
from fairy.kernels.temporal_attention import temporal_attention, temporal_attention_reference

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def draw(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3)]


def test_reference_is_the_formula() -> None:
    q, k, v = draw((1, 3, 1, 1, 2), torch.float64, torch.device("cpu"))
    rows = [
        [sum(a * b for a, b in zip(q[0, i, 0, 0], k[0, j, 0, 0], strict=True)) / 2**0.5 for j in range(3)]
        for i in range(3)
    ]
    weights = torch.tensor(rows).softmax(1)
    torch.testing.assert_close(
        temporal_attention_reference(q, k, v)[0, :, 0, 0], weights.double() @ v[0, :, 0, 0], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 16, 5, 3, 40), (1, 76, 2, 1, 64), (1, 3, 0, 2, 8)], ids=str)
def test_op_against_float64(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, poisoned: None) -> None:
    q, k, v = draw(shape, dtype, device)
    for found in (temporal_attention(q, k, v), torch.ops.fairy.temporal_attention(q, k, v)):
        assert found.dtype == dtype
        assert found.is_contiguous()
        wanted = temporal_attention_reference(q.double(), k.double(), v.double())
        torch.testing.assert_close(found.double(), wanted, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_opcheck(device: torch.device) -> None:
    q, k, v = draw((2, 4, 3, 2, 8), torch.float32, device)
    torch.library.opcheck(
        torch.ops.fairy.temporal_attention.default, (q, k.transpose(1, 2).contiguous().transpose(1, 2), v)
    )


@torch.inference_mode()
def test_the_layer_is_attention_of_each_places_sequence(device: torch.device) -> None:
    """The oracle: every place's frames, one after the other, through plain attention."""
    layer = TemporalAttention(16, 2).to(device)
    torch.nn.init.normal_(layer.to_out.weight)
    x_NSC = torch.randn(2 * 5, 6, 16, device=device)
    made = layer(x_NSC, 5)
    for window in range(2):
        for place in range(6):
            x_FC = x_NSC.unflatten(0, (2, 5))[window, :, place]
            normed = layer.norm(x_FC) + layer.positions(5, x_FC)
            q, k, v = layer.to_q(normed), *layer.to_kv(normed).chunk(2, 1)
            y = [(q[:, s] @ k[:, s].T / 8**0.5).softmax(1) @ v[:, s] for s in (slice(0, 8), slice(8, 16))]
            wanted = x_FC + layer.to_out(torch.cat(y, 1))
            torch.testing.assert_close(made.unflatten(0, (2, 5))[window, :, place], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "words"),
    [((2, 3, 4), "must be alike"), ((1, 129, 1, 1, 8), "more than 128"), ((1, 2, 1, 1, 200), "channels a head")],
)
def test_wrong_inputs_are_refused_in_a_sentence(shape: tuple[int, ...], words: str) -> None:
    x = torch.zeros(shape)
    with pytest.raises(InputError, match=words):
        temporal_attention(x, x, x)
