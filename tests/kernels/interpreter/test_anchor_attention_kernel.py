"""The fused attention kernel against the definition in float64 and beside PyTorch's SDPA."""

import os
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from fairy.kernels.anchor_attention import anchor_attention_reference, anchor_attention_sdpa
from fairy.kernels.anchor_attention_kernel import (
    _MIXED_EXP2,
    CANDIDATES,
    TUNING_DIMS,
    _config,
    default_config,
    launch,
    split_dim,
)

BY_NIGHT = partial(pytest.param, marks=pytest.mark.nightly)

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# name: (groups, frames, tokens, heads, dim, own tokens or None, segments as (shared, length))
SHAPES = {
    "dim 40, shared": (2, 3, 37, 2, 40, 37, [(True, 50)]),
    "dim 64, nothing else": (1, 2, 64, 1, 64, 64, []),
    "dim 80, no own": (2, 3, 20, 2, 80, None, [(True, 33), (False, 5)]),
    "dim 128, one token": (1, 1, 1, 1, 128, 1, [(True, 1)]),
    "dim 128, a transformer's": (1, 2, 37, 2, 128, None, [(False, 37), (True, 50)]),
    "dim 160": (1, 1, 17, 1, 160, 17, [(True, 64)]),
    "dim 8": (2, 3, 9, 2, 8, 9, [(True, 3)]),
    "dim 24": (1, 2, 18, 2, 24, 18, [(False, 21)]),
    "five sources": (1, 3, 33, 1, 48, 33, [(True, 2), (False, 4), (True, 40), (True, 7)]),
    "whole blocks": (1, 2, 32, 1, 40, 32, [(True, 96)]),
}


def _make(shape: tuple, dtype: torch.dtype, *, scale: float = 1.0, seed: int = 0) -> tuple:
    groups, frames, tokens, heads, dim, own, segments = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int, length: int, size: float = 1.0) -> Tensor:
        return (size * torch.randn(groups, count, length, heads * dim, generator=generator)).to(DEVICE, dtype)

    counts = [(1 if shared else frames, length) for shared, length in segments]
    keys = ([draw(frames, own)] if own else []) + [draw(*c) for c in counts]
    values = ([draw(frames, own)] if own else []) + [draw(*c) for c in counts]
    return draw(frames, tokens, scale), keys, values, heads, own is not None


def _contract(q: Tensor, keys: list[Tensor], values: list[Tensor], heads: int, own: bool) -> tuple:
    if own:
        return q, keys[0], values[0], keys[1:], values[1:], heads
    return q, None, None, keys, values, heads


def _exact(q: Tensor, keys: list[Tensor], values: list[Tensor], heads: int, own: bool) -> Tensor:
    wide = (q.double(), [k.double() for k in keys], [v.double() for v in values])
    return anchor_attention_reference(*_contract(*wide, heads, own))


def _small(**tricks: int) -> object:
    return _config(32, 16, 4, 2, **tricks)


def _rms(error: Tensor) -> float:
    return float(error.double().square().mean().sqrt())


@pytest.mark.parametrize("dtype", [torch.float32, BY_NIGHT(torch.float16), torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_error_is_like_that_of_sdpa(name: str, dtype: torch.dtype) -> None:
    """Root-mean-square error against float64 at most 1.25 times SDPA's, in the type at hand."""
    case = _make(SHAPES[name], dtype)
    exact, found = _exact(*case), launch(*case[:4], config=_small())
    sdpa = anchor_attention_sdpa(*_contract(*case))
    assert found.dtype == dtype
    ours, theirs = _rms(found.double() - exact), _rms(sdpa.double() - exact)
    # Where SDPA is exact (one key), what remains is half a unit of the last place.
    floor = torch.finfo(dtype).eps * _rms(exact) / 4
    assert ours <= max(1.25 * theirs, floor), f"{name} {dtype}: {ours:.3e}, SDPA {theirs:.3e}"


@pytest.mark.parametrize("tricks", [BY_NIGHT({"LAZY": 1}), BY_NIGHT({"TMA": 1}), {"LAZY": 1, "TMA": 1}], ids=str)
@pytest.mark.parametrize("name", ["dim 40, shared", "five sources", "dim 160"])
def test_tricks_change_only_rounding(name: str, tricks: dict[str, int]) -> None:
    case = _make(SHAPES[name], torch.float32)
    torch.testing.assert_close(launch(*case[:4], config=_small(**tricks)).double(), _exact(*case), atol=3e-6, rtol=3e-6)


@pytest.mark.parametrize("lazy", [0, 1])
def test_logits_of_eighty(lazy: int) -> None:
    """Scores between about −80 and 80: the running maximum jumps, nothing overflows."""
    q, keys, values, heads, own = _make(SHAPES["dim 40, shared"], torch.float32, scale=25.0)
    scores = torch.einsum("gfsc,gftc->gfst", q[..., :40], keys[0][..., :40]) / 40**0.5
    assert scores.abs().max() > 70
    found = launch(q, keys, values, heads, config=_small(LAZY=lazy))
    torch.testing.assert_close(found.double(), _exact(q, keys, values, heads, own), atol=2e-5, rtol=2e-5)


def test_one_dominating_key() -> None:
    """A key that all queries agree on takes all of the weight: the result is its value."""
    q, keys, values, heads, _ = _make(SHAPES["dim 40, shared"], torch.float16)
    q = torch.ones_like(q)
    keys[1][:, :, 13] = 30.0
    found = launch(q, keys, values, heads, config=_small())
    torch.testing.assert_close(found, values[1][:, :, 13:14].expand_as(found), atol=0, rtol=0)


def test_equal_keys_give_the_mean_of_the_values() -> None:
    q, keys, values, heads, _ = _make(SHAPES["five sources"], torch.float32)
    keys = [torch.full_like(k, 0.5) for k in keys]
    frames = q.shape[1]
    mean = torch.cat([v.expand(-1, frames, -1, -1) for v in values], dim=2).mean(dim=2, keepdim=True)
    torch.testing.assert_close(launch(q, keys, values, heads, config=_small()), mean.expand_as(q), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, BY_NIGHT(torch.float16), BY_NIGHT(torch.bfloat16)], ids=str)
def test_strided_inputs_are_read_in_place(dtype: torch.dtype) -> None:
    """q, k, v as slices of one fused projection, a segment as every other token of a longer one."""
    fused = torch.randn(2, 3, 19, 3 * 80, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
    q, k, v = fused.chunk(3, dim=-1)
    long = torch.randn(2, 1, 44, 160, generator=torch.Generator().manual_seed(2)).to(DEVICE, dtype)
    context_k, context_v = long[:, :, ::2, :80], long[:, :, ::2, 80:]
    found = launch(q, [k, context_k], [v, context_v], 2, config=_small())
    dense = [[t.contiguous() for t in part] for part in ([k, context_k], [v, context_v])]
    torch.testing.assert_close(found, launch(q.contiguous(), *dense, 2, config=_small()), atol=0, rtol=0)


def test_poisoned_output_is_overwritten_and_its_surroundings_are_not() -> None:
    q, keys, values, heads, own = _make(SHAPES["dim 40, shared"], torch.float32)
    room = torch.full((2, 3, 39, 96), float("nan"), device=DEVICE)
    out = room[:, :, 1:38, 8:88]
    found = launch(q, keys, values, heads, config=_small(), out=out)
    assert found.data_ptr() == out.data_ptr()
    torch.testing.assert_close(out.double(), _exact(q, keys, values, heads, own), atol=3e-6, rtol=3e-6)
    out.zero_()
    assert int(room.isnan().sum()) == room.numel() - out.numel()


def test_nan_reaches_exactly_what_read_it() -> None:
    q, keys, values, heads, _ = _make(SHAPES["dim 40, shared"], torch.float32)
    bad_query, bad_key, bad_value = q.clone(), [k.clone() for k in keys], [v.clone() for v in values]
    bad_query[0, 1, 5, 0] = float("nan")  # group 0, frame 1, token 5, head 0
    found = launch(bad_query, keys, values, heads, config=_small()).isnan()
    assert found[0, 1, 5, :40].all()
    assert int(found.sum()) == 40
    bad_key[1][1, 0, 49, 41] = float("nan")  # the last key of the shared segment, head 1
    found = launch(q, bad_key, values, heads, config=_small()).isnan()
    assert found[1, :, :, 40:].all()
    assert int(found.sum()) == found[1, :, :, 40:].numel()
    bad_value[0][0, 2, 0, 3] = float("nan")
    found = launch(q, keys, bad_value, heads, config=_small()).isnan()
    assert found[0, 2, :, 3].all()
    assert int(found.sum()) == found.shape[2]


def test_infinite_scores_are_nan_as_in_sdpa() -> None:
    q, keys, values, heads, own = _make(SHAPES["dim 40, shared"], torch.float32)
    q[0, 0, 0] = float("inf")
    expected = anchor_attention_sdpa(*_contract(q, keys, values, heads, own)).isnan()
    torch.testing.assert_close(launch(q, keys, values, heads, config=_small()).isnan(), expected)


@pytest.mark.parametrize("dim", [8, 16, 24, 40, 48, 64, 80, 96, 128, 160, 256])
def test_dimension_is_split_into_powers_of_two(dim: int) -> None:
    first, second = split_dim(dim)
    assert first + second >= dim
    assert first >= 16
    assert first & (first - 1) == second & (second - 1) == 0
    assert first + second <= max(dim, 16) + 8 or dim == 96, "no more than one padded step"


def test_default_config_computes_too() -> None:
    case = _make((1, 1, 130, 1, 40, 130, [(True, 70)]), torch.float16)
    found = launch(*case[:4], config=default_config(40, torch.float16))
    torch.testing.assert_close(found.double(), _exact(*case), atol=2e-3, rtol=2e-3)


def test_every_problem_to_tune_has_candidates_that_fit_it() -> None:
    for dims in TUNING_DIMS:
        configs = CANDIDATES(dims)
        assert len(set(configs)) == len(configs) > 10
        assert {"head_dim", "element_bytes", "heads", "tokens", "keys", "batch"} <= set(dims)


def test_polynomial_of_the_mixed_exponential() -> None:
    """The PTX text, read line by line and computed in float32: 2^x within 4e-6, tiny below 2^-126, NaN kept."""
    x = np.concatenate([np.linspace(-130, 9, 20001), [-1e30, -np.inf, 0.0, -0.5, 0.5]]).astype(np.float32)
    found, exact = _run_ptx(_MIXED_EXP2.value, x), np.exp2(x.astype(np.float64))
    usual = x >= -126
    assert np.abs(found[usual] / exact[usual] - 1).max() < 4e-6
    assert np.abs(found[~usual]).max() <= 2.0**-125
    assert np.isnan(_run_ptx(_MIXED_EXP2.value, np.array([np.nan], np.float32))).all()


def _run_ptx(text: str, x: np.ndarray) -> np.ndarray:
    """The fourth lane of the inline assembly, whose input is $7 and whose output is $3."""
    registers: dict[str, np.ndarray] = {"$7": x}

    def value(name: str) -> np.ndarray:
        if name.startswith("0f"):
            return np.uint32(int(name[2:], 16)).view(np.float32)
        return registers[name] if name in registers else np.uint32(int(name, 0))

    for line in text.split("\n"):
        words = line.strip().rstrip(";").replace(",", "").split()
        if not words or words[0][0] in "{}." or words[1] in ("$0", "$1", "$2"):
            continue
        kind, out = words[0].split(".")[0], words[1]
        a, *rest = (value(name) for name in words[2:])
        registers[out] = _PTX[kind](a, *rest)
    return registers["$3"]


_PTX = {
    "max": np.maximum,  # keeps NaN, as max.NaN does
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "fma": lambda a, b, c: (a.astype(np.float64) * b + c).astype(np.float32),
    "mul": lambda a, b: a * b,
    "shl": lambda a, b: a << b,
    "mov": lambda a: a.view(np.uint32) if a.dtype == np.float32 else a.view(np.float32),
}
