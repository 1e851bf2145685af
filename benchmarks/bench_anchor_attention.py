"""`fairy::anchor_attention` beside what one would use instead: ``pytest benchmarks/bench_anchor_attention.py``.

Twelve named cells by default, all levels of SD1.5 at three sizes, K = 0, 1, 3, 7 and four batches with ``--full``. The
alternatives run SDPA's own kernels on keys and values that were joined beforehand ("joined") or within the measured
time ("joins"), FlexAttention, and the flash-attention and SageAttention packages where they are installed. Ours is
the first line of each cell.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.cells import Cell, RunCell
from fairy.benchmarks.work import BRANCHES, HEADS, anchor_attention_work
from fairy.kernels.anchor_attention import anchor_attention, anchor_attention_reference

GROUPS = BRANCHES
SIZES = {"512×384": (48, 64), "512×512": (64, 64), "1024×576": (72, 128)}  # latents
LEVELS = {0: 40, 1: 80, 2: 160, 3: 160}  # head dimension of SD1.5, 8 heads
SDPA_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """One problem: `frames` in each of three groups attend to their own tokens and to `anchors` shared frames'."""

    name: str
    heads: int
    dim: int
    tokens: int
    anchors: int
    frames: int

    def __str__(self) -> str:
        return self.name


def sd15(size: str, level: int, anchors: int, batch: int) -> Shape:
    """A self-attention layer of Stable Diffusion 1.5, `batch` sample-forwards in all."""
    height, width = SIZES[size]
    tokens = -(-height // 2**level) * -(-width // 2**level)
    return Shape(f"{size} level {level} K={anchors} × {batch}", HEADS, LEVELS[level], tokens, anchors, batch // GROUPS)


def default_shapes() -> list[Shape]:
    """Twelve cells: level 0 in many forms, one of each other level, two of SDXL's."""
    level_0 = [(3, 9), (3, 45), (3, 180), (3, 360), (0, 45), (1, 45), (7, 45)]
    shapes = [sd15("512×384", 0, anchors, batch) for anchors, batch in level_0]
    shapes += [sd15("512×384", level, 3, 45) for level in (1, 2, 3)]
    return [*shapes, Shape("SDXL 64×64 K=3 × 9", 10, 64, 4096, 3, 3), Shape("SDXL 32×32 K=3 × 9", 20, 64, 1024, 3, 3)]


def full_shapes() -> list[Shape]:
    """The whole grid of SD1.5."""
    batches, counts = (9, 45, 180, 360), (0, 1, 3, 7)
    return [sd15(s, level, k, b) for s in SIZES for level in LEVELS for k in counts for b in batches]


def small_shapes() -> list[Shape]:
    """For a CPU: the op's own path at a size of seconds."""
    tiny = [replace(sd15("512×384", level, 3, 9), frames=1) for level in (1, 2, 3)]
    return [*tiny, Shape("embedded model level 0 K=3", 1, 48, 768, 3, 1)]


def make_cell(shape: Shape, dtype: torch.dtype, device: torch.device) -> Cell:
    """Random inputs of a shape, and every way to compute it that this machine has."""
    channels = shape.heads * shape.dim

    def draw(count: int, length: int) -> Tensor:
        return torch.randn(GROUPS, count, length, channels, dtype=dtype, device=device)

    q, k, v = (draw(shape.frames, shape.tokens) for _ in range(3))
    segments = [draw(1, shape.anchors * shape.tokens) for _ in range(2)] if shape.anchors else []
    context_k, context_v = segments[:1], segments[1:]
    ways: dict[str, Callable[[], Tensor]] = {
        "fairy": partial(anchor_attention, q, k, v, context_k, context_v, heads=shape.heads)
    }
    others = alternatives(q, _join(k, context_k), _join(v, context_v), shape.heads)
    if context_k:
        others["SDPA, joins"] = partial(_joins, q, k, v, context_k, context_v, shape.heads)
    ways |= {name: call for name, call in others.items() if _runs(call)}

    def exact() -> Tensor:
        first_k, first_v = ([t[:1].double() for t in part] for part in (context_k, context_v))
        own = (q[:1, :1, :64].double(), k[:1, :1].double(), v[:1, :1].double())
        return anchor_attention_reference(*own, first_k, first_v, shape.heads)

    return Cell(
        f"{shape.name}, {str(dtype).removeprefix('torch.')}",
        ways,
        exact,
        anchor_attention_work(shape.frames, shape.tokens, shape.anchors * shape.tokens, shape.heads, shape.dim, dtype),
        dtype,
        part=lambda found: found[:1, :1, :64],
    )


def alternatives(q: Tensor, k: Tensor, v: Tensor, heads: int) -> dict[str, Callable[[], Tensor]]:
    """Ways on joined keys and values [groups, frames, all tokens, channels]; not every one runs everywhere."""
    by_head = _by_head(q, k, v, heads=heads)
    found: dict[str, Callable[[], Tensor]] = {}
    if q.is_cuda:
        for name, backend in SDPA_BACKENDS.items():
            found[f"{name}, joined"] = partial(_sdpa, backend, *by_head)
        found["flex, joined"] = partial(_flex(), *by_head)
        found |= _packages(*by_head)
    else:
        found["SDPA, joined"] = partial(F.scaled_dot_product_attention, *by_head)
    return {name: partial(_as_ours, call, q.shape) for name, call in found.items()}


def cases(on_gpu: bool, full: bool) -> list[Shape]:
    """The grid that this machine and the option ask for."""
    return small_shapes() if not on_gpu else full_shapes() if full else default_shapes()


@pytest.mark.filterwarnings("ignore")
def test_anchor_attention(case: Shape, device: torch.device, run_cell: RunCell) -> None:
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    rows = run_cell(make_cell(case, dtype, device))
    assert all(row.error < 5e-3 for row in rows if row.way == "fairy")


def _join(own: Tensor, context: Sequence[Tensor]) -> Tensor:
    return torch.cat([own, *(t.expand(-1, own.shape[1], -1, -1) for t in context)], dim=2)


def _joins(
    q: Tensor, k: Tensor, v: Tensor, context_k: Sequence[Tensor], context_v: Sequence[Tensor], heads: int
) -> Tensor:
    by_head = _by_head(q, _join(k, context_k), _join(v, context_v), heads=heads)
    return _as_ours(partial(F.scaled_dot_product_attention, *by_head), q.shape)


def _by_head(*parts: Tensor, heads: int) -> list[Tensor]:
    """[groups, frames, tokens, channels] as [batch, heads, tokens, dim]."""
    return [t.flatten(0, 1).unflatten(-1, (heads, -1)).transpose(1, 2) for t in parts]


def _runs(call: Callable[[], Tensor]) -> bool:
    """Whether an alternative serves this shape at all; what does not is not in the table."""
    try:
        call()
    except Exception:  # each library has its own errors for what it does not serve
        return False
    return True


def _sdpa(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v)


def _flex() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.reset()  # of all shapes together it would compile eight and run the ninth unfused
    made: Callable[[Tensor, Tensor, Tensor], Tensor] = torch.compile(flex_attention, dynamic=False)
    return made


def _packages(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Callable[[], Tensor]]:
    found: dict[str, Callable[[], Tensor]] = {}
    with suppress(ImportError):
        attend = import_module("flash_attn").flash_attn_func
        heads_last = [t.transpose(1, 2) for t in (q, k, v)]
        found["flash-attn, joined"] = lambda: attend(*heads_last).transpose(1, 2)
    with suppress(ImportError):
        sage = import_module("sageattention").sageattn
        found["SageAttention, joined"] = lambda: sage(q, k, v)
    return found


def _as_ours(call: Callable[[], Tensor], shape: torch.Size) -> Tensor:
    """[batch, heads, tokens, dim] in our layout."""
    return call().transpose(1, 2).reshape(shape)
