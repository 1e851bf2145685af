"""The GroupNorm and SiLU kernels against their definition in float64."""

from functools import partial

import pytest
import torch
from torch import Tensor

from fairy.kernels import group_norm_silu as module
from fairy.kernels.group_norm_silu import (
    CANDIDATES,
    TUNING_DIMS,
    group_norm_silu_reference,
    group_norm_silu_triton,
)
from fairy.kernels.tuning import Config

BY_NIGHT = partial(pytest.param, marks=pytest.mark.nightly)

# bf16: the interpreter's conversion cuts digits off instead of rounding to nearest
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# name: (N, C, H, W), groups
SHAPES = {
    "ten channels a group": ((2, 40, 5, 7), 4),
    "one pixel": ((1, 30, 1, 1), 3),
    "one group": ((2, 9, 3, 4), 1),
    "one channel a group": ((1, 11, 6, 3), 11),
    "many chunks": ((1, 4, 24, 23), 2),
    "wide groups": ((1, 160, 3, 5), 2),
    "no sample": ((0, 8, 2, 2), 4),
}
TINY = Config((("PIXELS", 4), ("GROUPS", 2), ("CHANNELS", 16), ("TILES", 2)), 4, 2)


def _draw(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, mean: float = 0.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    x = mean + torch.randn(shape, generator=generator, dtype=torch.float64)
    weight, bias = torch.randn(2, shape[1], generator=generator, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last)
    return [t.to(device, dtype) for t in (x, weight, bias)]


def _check(args: list[Tensor], groups: int, found: Tensor, *, tolerance: float | None = None, **options) -> None:
    expected = group_norm_silu_reference(*(t.double() for t in args), groups, **options)
    tolerance = tolerance or TOLERANCE[args[0].dtype]
    assert found.dtype == args[0].dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance, check_stride=False)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_against_float64(name: str, dtype: torch.dtype, device: torch.device, poisoned: None) -> None:
    shape, groups = SHAPES[name]
    args = _draw(shape, dtype, device)
    _check(args, groups, group_norm_silu_triton(*args, groups))


@pytest.mark.parametrize(("samples", "groups"), [(1, 4), (2, 5)])
def test_statistics_that_a_launch_of_their_own_joins(
    samples: int, groups: int, device: torch.device, poisoned: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few samples of many pixels; far from zero, where statistics that are joined badly lose digits."""
    joined = []
    really = module._join_kernel

    class Counted:
        def __getitem__(self, grid: tuple[int, ...]) -> object:
            joined.append(grid)
            return really[grid]

    monkeypatch.setattr(module, "MAX_CHUNKS", 8)
    monkeypatch.setattr(module, "FILLED", 128)
    monkeypatch.setattr(module, "_join_kernel", Counted())
    args = _draw((samples, 4 * groups, 24, 23), torch.float32, device, mean=100.0)
    _check(args, groups, group_norm_silu_triton(*args, groups, config=TINY), tolerance=3e-5)
    assert joined


@pytest.mark.parametrize("name", ["ten channels a group", "many chunks", "one channel a group"])
@pytest.mark.parametrize("silu", [True, BY_NIGHT(False)])
def test_tiles_that_do_not_fit(name: str, silu: bool, device: torch.device, poisoned: None) -> None:
    shape, groups = SHAPES[name]
    args = _draw(shape, torch.float32, device)
    found = group_norm_silu_triton(*args, groups, eps=0.3, silu=silu, config=TINY)
    _check(args, groups, found, eps=0.3, silu=silu)


@pytest.mark.parametrize("config", CANDIDATES(TUNING_DIMS[0])[::7], ids=str)
def test_candidates(config: Config, device: torch.device, poisoned: None) -> None:
    args = _draw((1, 70, 9, 11), torch.float32, device)
    _check(args, 7, group_norm_silu_triton(*args, 7, config=config))


@pytest.mark.filterwarnings("ignore:overflow encountered")  # of lanes that are not stored
@pytest.mark.parametrize("mean", [100.0, -1e4])
def test_a_large_mean_costs_no_digits(mean: float, device: torch.device) -> None:
    """What remains is the rounding of mean and deviation themselves: a few units of the mean's last place."""
    args = _draw((2, 8, 17, 5), torch.float32, device, mean)
    unit = abs(mean) * torch.finfo(torch.float32).eps
    for config in (None, TINY):
        _check(args, 4, group_norm_silu_triton(*args, 4, config=config), tolerance=8 * unit)


def test_the_same_bytes_every_time_and_for_every_sample(device: torch.device) -> None:
    args = _draw((1, 40, 13, 7), torch.float32, device)
    one = group_norm_silu_triton(*args, 4, config=TINY)
    three = group_norm_silu_triton(args[0].expand(3, -1, -1, -1), *args[1:], 4, config=TINY)
    for sample in three:
        assert torch.equal(sample, one[0])


def test_other_layouts(device: torch.device) -> None:
    x, weight, bias = _draw((2, 24, 6, 5), torch.float32, device)
    for view in (x[:, 4:20], x.contiguous()[:, 4:20], x[:, 4:20, 1::2, ::2], x[:1, 4:20].expand(3, -1, -1, -1)):
        args = [view, weight[4:20], bias[4:20]]
        _check(args, 4, group_norm_silu_triton(*args, 4))


def test_constant_groups_become_the_bias(device: torch.device) -> None:
    x, weight, bias = _draw((1, 8, 4, 4), torch.float16, device)
    found = group_norm_silu_triton(torch.full_like(x, 7), weight, bias, 2, silu=False)
    assert torch.equal(found, bias[None, :, None, None].expand_as(found))


def test_nan_fills_its_group_and_no_other(device: torch.device) -> None:
    x, weight, bias = _draw((2, 12, 9, 5), torch.float32, device)
    x[1, 5, 3, 2] = torch.nan
    expected = torch.zeros(2, 12, 9, 5, dtype=torch.bool)
    expected[1, 4:8] = True
    assert torch.equal(group_norm_silu_triton(x, weight, bias, 3, config=TINY).isnan().cpu(), expected)
