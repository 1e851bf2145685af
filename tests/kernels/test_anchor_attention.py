"""`fairy::anchor_attention` against its definition in higher precision, on shapes that hurt."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from fairy.kernels import anchor_attention as op_module
from fairy.kernels.anchor_attention import (
    anchor_attention,
    anchor_attention_reference,
    anchor_attention_sdpa,
)
from fairy.kernels.errors import InputError

SEGMENTS = {
    "none": [],
    "shared": [("shared", 5)],
    "one token": [("shared", 1)],
    "per frame": [("frame", 6)],
    "four": [("shared", 3), ("frame", 2), ("shared", 1), ("frame", 7)],
}
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def _inputs(
    segments: str, *, own: bool = True, frames: int = 3, tokens: int = 7, heads: int = 2, dim: int = 8, seed: int = 0
) -> tuple[Tensor, Tensor | None, Tensor | None, list[Tensor], list[Tensor], int]:
    generator = torch.Generator().manual_seed(seed)

    def make(count: int, length: int) -> Tensor:
        return torch.randn(2, count, length, heads * dim, generator=generator, dtype=torch.float64)

    sizes = [(1 if kind == "shared" else frames, length) for kind, length in SEGMENTS[segments]]
    q, k, v = make(frames, tokens), make(frames, tokens), make(frames, tokens)
    context_k, context_v = [make(*size) for size in sizes], [make(*size) for size in sizes]
    return q, k if own else None, v if own else None, context_k, context_v, heads


def _plain(q: Tensor, k: Tensor | None, v: Tensor | None, ck: list[Tensor], cv: list[Tensor], heads: int) -> Tensor:
    """The formula written frame by frame, head by head, with Python loops."""
    out = torch.empty_like(q)
    dim = q.shape[3] // heads
    for g, f, h in itertools.product(range(q.shape[0]), range(q.shape[1]), range(heads)):
        at = slice(h * dim, (h + 1) * dim)
        keys = [t[g, f if t.shape[1] > 1 else 0][:, at] for t in ([k] if k is not None else []) + ck]
        values = [t[g, f if t.shape[1] > 1 else 0][:, at] for t in ([v] if v is not None else []) + cv]
        weights = torch.softmax(q[g, f, :, at] @ torch.cat(keys).T / dim**0.5, dim=-1)
        out[g, f, :, at] = weights @ torch.cat(values)
    return out


def _cast(args: tuple, dtype: torch.dtype) -> tuple:
    def cast(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.to(dtype)

    q, k, v, ck, cv, heads = args
    return cast(q), cast(k), cast(v), [t.to(dtype) for t in ck], [t.to(dtype) for t in cv], heads


CASES = [(s, own) for s in SEGMENTS for own in (True, False) if own or SEGMENTS[s]]


@pytest.mark.parametrize(("segments", "own"), CASES)
@pytest.mark.parametrize("frames", [1, 3])
def test_reference_is_the_formula(segments: str, own: bool, frames: int) -> None:
    args = _inputs(segments, own=own, frames=frames)
    torch.testing.assert_close(anchor_attention_reference(*args), _plain(*args), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("segments", "own"), CASES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("tokens", "heads", "dim"), [(1, 1, 8), (7, 2, 40), (33, 8, 16)])
def test_op_against_float64(segments: str, own: bool, dtype: torch.dtype, tokens: int, heads: int, dim: int) -> None:
    exact = _inputs(segments, own=own, tokens=tokens, heads=heads, dim=dim)
    rounded = _cast(exact, dtype)
    expected = anchor_attention_reference(*_cast(rounded, torch.float64))
    found = anchor_attention(*rounded[:5], heads=heads)
    assert found.dtype == dtype
    assert found.is_contiguous()
    torch.testing.assert_close(found.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_shared_keys_equal_expanded_ones() -> None:
    q, k, v, ck, cv, heads = _inputs("shared")
    wide_k, wide_v = [t.expand(-1, 3, -1, -1) for t in ck], [t.expand(-1, 3, -1, -1) for t in cv]
    one = anchor_attention(q, k, v, ck, cv, heads=heads)
    torch.testing.assert_close(one, anchor_attention(q, k, v, wide_k, wide_v, heads=heads), atol=1e-12, rtol=1e-12)


def test_bank_equals_concatenation_and_order_does_not_matter() -> None:
    q, k, v, ck, cv, heads = _inputs("four")
    frames = q.shape[1]
    joined_k = torch.cat([k, *[t.expand(-1, frames, -1, -1) for t in ck]], 2)
    joined_v = torch.cat([v, *[t.expand(-1, frames, -1, -1) for t in cv]], 2)
    bank = anchor_attention(q, k, v, ck, cv, heads=heads)
    torch.testing.assert_close(bank, anchor_attention(q, joined_k, joined_v, heads=heads), atol=1e-12, rtol=1e-12)
    turned = anchor_attention(q, k, v, ck[::-1], cv[::-1], heads=heads)
    torch.testing.assert_close(bank, turned, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("scale", [80.0, 1e-8])
def test_extreme_logits(scale: float) -> None:
    args = _cast(_inputs("four"), torch.float32)
    q, rest = args[0] * scale, args[1:]
    expected = anchor_attention_reference(q.double(), *_cast((q, *rest), torch.float64)[1:])
    found = anchor_attention(q, *rest[:4], heads=rest[4])
    assert bool(torch.isfinite(found).all())
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


def test_one_dominating_key_wins_wherever_it_is() -> None:
    q, k, v, ck, cv, heads = _inputs("four", heads=1)
    ck[2][:] = 1e3 * torch.sign(q.mean((1, 2), keepdim=True))
    q = ck[2].expand_as(q) / 1e3
    found = anchor_attention(q, k, v, ck, cv, heads=heads)
    torch.testing.assert_close(found, cv[2].expand_as(q), atol=1e-9, rtol=1e-9)


def test_nan_in_one_frame_stays_there() -> None:
    q, k, v, ck, cv, heads = _inputs("shared")
    k[0, 1, 2] = float("nan")
    found = anchor_attention(q, k, v, ck, cv, heads=heads)
    assert bool(torch.isnan(found[0, 1]).all())
    assert bool(torch.isfinite(found[0, [0, 2]]).all())
    assert bool(torch.isfinite(found[1]).all())


def test_strided_inputs() -> None:
    fused = torch.randn(2, 3, 7, 3, 16, dtype=torch.float64)
    q, k, v = fused.unbind(3)
    assert not q.is_contiguous()
    expected = anchor_attention_reference(q.contiguous(), k.contiguous(), v.contiguous(), [], [], 2)
    torch.testing.assert_close(anchor_attention(q, k, v, heads=2), expected, atol=1e-12, rtol=1e-12)


def test_inputs_are_left_alone() -> None:
    args = _inputs("four")
    before = _cast(args, torch.float64)
    copies = [t.clone() for t in (before[0], before[1], before[2], *before[3], *before[4])]
    anchor_attention(*args[:5], heads=args[5])
    for t, copy in zip((args[0], args[1], args[2], *args[3], *args[4]), copies, strict=True):
        assert torch.equal(t, copy)


@pytest.mark.parametrize(("segments", "own"), CASES)
def test_opcheck(segments: str, own: bool) -> None:
    torch.library.opcheck(torch.ops.fairy.anchor_attention, _cast(_inputs(segments, own=own), torch.float32))


def test_exports_with_dynamic_shapes() -> None:
    class Module(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, ck: Tensor, cv: Tensor) -> Tensor:
            return anchor_attention(q, k, v, [ck], [cv], heads=2)

    q, k, v, ck, cv, _ = _inputs("shared")
    frames, tokens, length = (torch.export.Dim(name, min=2, max=64) for name in ("frames", "tokens", "length"))
    own = {1: frames, 2: tokens}
    exported = torch.export.export(
        Module(), (q, k, v, *ck, *cv), dynamic_shapes=(own, own, own, {2: length}, {2: length})
    )
    assert any("fairy.anchor_attention" in str(node.target) for node in exported.graph.nodes)
    q, k, v, ck, cv, _ = _inputs("one token", frames=5, tokens=11, seed=3)
    wide_k, wide_v = torch.cat([*ck] * 4, 2), torch.cat([*cv] * 4, 2)
    expected = anchor_attention_reference(q, k, v, [wide_k], [wide_v], 2)
    torch.testing.assert_close(exported.module()(q, k, v, wide_k, wide_v), expected, atol=1e-12, rtol=1e-12)


def test_sdpa_path_never_joins_keys_of_all_frames() -> None:
    """The largest tensor made on the way holds one frame's keys, not every frame's."""
    frames, length = 16, 512
    q, k, v = (torch.randn(1, frames, 4, 8) for _ in range(3))
    bank_k, bank_v = (torch.randn(1, 1, length, 8) for _ in range(2))
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        anchor_attention_sdpa(q, k, v, [bank_k], [bank_v], 1)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert 0 < largest < frames * length * 8 * 4 / 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: (a[0][0], *a[1:]), "4 dimensions|has 3"),
        (lambda a: (*a[:5], 3), "does not divide"),
        (lambda a: (a[0], None, *a[2:]), "together"),
        (lambda a: (a[0], None, None, [], [], 2), "nothing to attend"),
        (lambda a: (*a[:3], a[3], [], 2), "same number"),
        (lambda a: (*a[:3], a[3] * 5, a[4] * 5, 2), "at most 4"),
        (lambda a: (*a[:3], [a[3][0][:1]], [a[4][0][:1]], 2), "groups and channels"),
        (lambda a: (*a[:3], [a[3][0].expand(-1, 2, -1, -1)], [a[4][0].expand(-1, 2, -1, -1)], 2), "3 frames"),
        (lambda a: (*a[:3], [a[3][0].float()], [a[4][0].float()], 2), "one type"),
    ],
)
def test_wrong_inputs_are_refused_in_a_sentence(change, words: str) -> None:
    q, k, v, ck, cv, heads = change(_inputs("shared"))
    with pytest.raises(InputError, match=words):
        anchor_attention(q, k, v, ck, cv, heads=heads)


class _FakeCuda:
    """As much of a CUDA tensor as the choice of a path looks at."""

    is_cuda = True

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float16) -> None:
        self.shape, self.dtype = shape, dtype

    def numel(self) -> int:
        return math.prod(self.shape)


@pytest.mark.parametrize(
    ("shape", "dtype", "segments", "heads", "kernel"),
    [
        ((3, 5, 64, 320), torch.float16, 1, 8, True),
        ((3, 5, 64, 320), torch.float32, 4, 8, True),
        ((3, 5, 64, 320), torch.float16, 0, 8, False),  # nothing to join: SDPA
        ((3, 5, 64, 320), torch.float64, 1, 8, False),
        ((3, 5, 64, 512), torch.float16, 1, 1, False),  # one head of 512
        ((3, 0, 64, 320), torch.float16, 1, 8, False),
    ],
)
def test_kernel_runs_where_it_serves(
    shape: tuple[int, ...], dtype: torch.dtype, segments: int, heads: int, kernel: bool
) -> None:
    chosen = op_module._served_by_kernel(_FakeCuda(shape, dtype), [None] * segments, heads)  # type: ignore[arg-type]
    assert chosen == (kernel and op_module.HAS_TRITON)
    assert not op_module._served_by_kernel(torch.zeros(1, 1, 2, 8), [torch.zeros(1)], 1), "never on the CPU"
