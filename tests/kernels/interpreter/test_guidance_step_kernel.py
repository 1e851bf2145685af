"""The kernel of the guided step against its definition in float64."""

import pytest
import torch
from torch import Tensor

from fairy.kernels.guidance_step import CANDIDATES, TUNING_DIMS, guidance_step_reference, guidance_step_triton
from fairy.kernels.tuning import Config

SHAPES = [(3, 2, 4, 6, 5), (1, 1, 1, 1, 1), (2, 5, 4, 3, 7), (3, 0, 4, 2, 2), (3, 1, 4, 25, 13)]
Case = tuple[Tensor, Tensor, Tensor | None, Tensor]


def _draw(
    shape: tuple[int, ...],
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    noise: str = "shared",
    per_frame: bool = False,
) -> Case:
    generator = torch.Generator().manual_seed(sum(shape))
    branches, frames, *size = shape

    def draw(*dims: int) -> Tensor:
        return torch.randn(dims, generator=generator).to(device)

    fresh = None if noise == "none" else draw(frames if noise == "per frame" else 1, *size)
    return draw(*shape).to(dtype), draw(frames, *size), fresh, draw(frames if per_frame else 1, 2 + branches)


def _check(case: Case, found: Tensor) -> None:
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    torch.testing.assert_close(found, guidance_step_reference(*case), atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("noise", ["shared", "per frame", "none"])
@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(
    shape: tuple[int, ...], per_frame: bool, noise: str, device: torch.device, poisoned: None
) -> None:
    case = _draw(shape, device, noise=noise, per_frame=per_frame)
    _check(case, guidance_step_triton(*case))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_outputs_are_widened_before_anything_else(dtype: torch.dtype, device: torch.device) -> None:
    case = _draw((3, 2, 4, 6, 5), device, dtype=dtype)
    _check(case, guidance_step_triton(*case))


@pytest.mark.parametrize("config", CANDIDATES(TUNING_DIMS[0]), ids=str)
def test_every_candidate(config: Config, device: torch.device, poisoned: None) -> None:
    case = _draw((2, 2, 4, 19, 17), device)
    _check(case, guidance_step_triton(*case, config))


def test_layouts_of_outputs_and_latents(device: torch.device) -> None:
    outputs, latents, noise, coefficients = _draw((3, 4, 4, 6, 5), device)
    last = outputs.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (3, 4))
    assert not last.is_contiguous()
    for view in (last, outputs.transpose(3, 4).contiguous().transpose(3, 4), outputs.flip(0), outputs[:, :1]):
        frames = view.shape[1]
        for x in (latents[:frames], latents[:1].expand(frames, -1, -1, -1), latents.transpose(2, 3)[:frames].mT):
            case = (view, x, noise, coefficients)
            _check(case, guidance_step_triton(*case))


def test_nan_stays_where_it_is(device: torch.device) -> None:
    case = _draw((3, 2, 4, 6, 5), device)
    case[0][1, 1, 2, 3, 4] = torch.nan
    expected = torch.zeros(2, 4, 6, 5, dtype=torch.bool)
    expected[1, 2, 3, 4] = True
    assert torch.equal(guidance_step_triton(*case).isnan().cpu(), expected)
