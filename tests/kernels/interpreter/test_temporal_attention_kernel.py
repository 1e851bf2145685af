"""The kernel of attention over time against its definition in float64."""

import pytest
import torch
from torch import Tensor

from fairy.kernels.temporal_attention import (
    CANDIDATES,
    TUNING_DIMS,
    temporal_attention_reference,
    temporal_attention_triton,
)

# bf16: the interpreter's conversion cuts digits off instead of rounding to nearest
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 3e-2}
SHAPES = [(1, 1, 1, 1, 1), (2, 3, 2, 2, 5), (1, 16, 3, 2, 40), (1, 17, 1, 1, 16), (1, 76, 1, 1, 80), (1, 4, 0, 1, 8)]


def draw(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    return [(scale * torch.randn(shape, generator=generator)).to(device, dtype) for _ in range(3)]


def check(q: Tensor, k: Tensor, v: Tensor, found: Tensor) -> None:
    wanted = temporal_attention_reference(q.double(), k.double(), v.double())
    assert found.dtype == q.dtype
    assert found.is_contiguous()
    torch.testing.assert_close(found.double(), wanted, atol=TOLERANCE[q.dtype], rtol=TOLERANCE[q.dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, poisoned: None) -> None:
    q, k, v = draw(shape, dtype, device)
    check(q, k, v, temporal_attention_triton(q, k, v))


@pytest.mark.parametrize("config", CANDIDATES(TUNING_DIMS[0]), ids=str)
def test_every_candidate(config, device: torch.device, poisoned: None) -> None:
    q, k, v = draw((1, 5, 2, 2, 24), torch.float32, device)
    check(q, k, v, temporal_attention_triton(q, k, v, config))


def test_keys_and_values_of_one_projection_are_read_where_they_lie(device: torch.device, poisoned: None) -> None:
    q, kv, _ = draw((2, 4, 3, 2, 16), torch.float32, device)
    k, v = kv[..., :8], kv[..., 8:]
    check(q[..., ::2], k, v, temporal_attention_triton(q[..., ::2], k, v))


def test_large_scores_do_not_overflow(device: torch.device) -> None:
    q, k, v = draw((1, 6, 1, 1, 8), torch.float16, device, scale=60.0)
    assert torch.isfinite(temporal_attention_triton(q, k, v)).all()
