"""What the kernels' tests share: where they run, and memory that shows what was never written."""

import os
from collections.abc import Iterator

import pytest
import torch


def float8_tolerance(dtype: torch.dtype, usual: float, device: torch.device) -> float:
    """How far products in 8 bit may be off: on an H200 sums in float32 were by up to 2.7e-3."""
    return max(usual, 4e-3) if device.type == "cuda" and dtype == torch.float32 else usual


@pytest.fixture
def device() -> torch.device:
    """The GPU where there is one; the CPU in Triton's interpreter."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return torch.device("cuda" if torch.cuda.is_available() and not interpreted else "cpu")


@pytest.fixture(autouse=True)
def whole_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's convolutions would otherwise round float32 to TF32, as they do not in engines either."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """New tensors are full of NaN, so that an output that is not written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert bool(torch.ones(3).new_empty(5).isnan().all())
    yield
    torch.use_deterministic_algorithms(before)
