"""One cell of a benchmark: the same result computed in several ways, timed side by side, with error and bound.

The bound is the larger of the cell's bytes at the speed of a plain copy and its operations at the speed of a large
matrix product, both measured on the same machine in the same run, and of what else the cell names; a fraction of 1.0
means that nothing is left to gain.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairy.benchmarks.timing import Timing, copy_gb_per_s, matmul_tflop_per_s, side_by_side

COLUMNS = ("cell", "way", "ms", "p20…p80", "GB/s", "TFLOP/s", "of bound", "× slower", "error", "measured")


@dataclass(frozen=True, slots=True)
class Cell:
    """What one cell compares.

    Attributes:
        name: shape and type, for the table.
        ways: name to call; the first is our op, all give the same tensor.
        exact: the leading entries of that tensor, from the same inputs in float64.
        num_bytes: what must be read and written at least.
        flops: operations of a matrix product or convolution, 2 a multiply-add; 0 where memory alone bounds.
        dtype: the type whose matrix products set the bound.
        floor_ms: a further bound that the caller computed, such as that of exponentials.
        part: cuts out of a result what `exact` gives; None = its leading entries.
    """

    name: str
    ways: Mapping[str, Callable[[], Tensor]]
    exact: Callable[[], Tensor]
    num_bytes: int
    flops: int = 0
    dtype: torch.dtype = torch.float32
    floor_ms: float = 0.0
    part: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One way in one cell; `slower` is relative to our op, `error` the largest relative to the largest exact value."""

    cell: str
    way: str
    timing: Timing
    gb_per_s: float
    tflop_per_s: float
    of_bound: float
    slower: float
    error: float

    @property
    def ms(self) -> float:
        """The median time, milliseconds."""
        return self.timing.median_ms


RunCell = Callable[[Cell], list[Row]]
"""The fixture `run_cell` of `conftest.py`: measures a cell, prints its rows and keeps their records."""


def measure(cell: Cell, device: torch.device, *, budget_ms: float = 200) -> list[Row]:
    """Time all ways of a cell in turns and compare each with the exact result."""
    exact = cell.exact()
    part = cell.part or (lambda found: found[: len(exact)])
    errors = {name: _error(part(way()), exact) for name, way in cell.ways.items()}
    timings = side_by_side(cell.ways, device=device, budget_ms=budget_ms)
    bound_ms = max(cell.floor_ms, cell.num_bytes / copy_gb_per_s(device) / 1e6)
    if cell.flops:
        bound_ms = max(bound_ms, cell.flops / matmul_tflop_per_s(device, cell.dtype) / 1e9)
    ours_ms = next(iter(timings.values())).median_ms
    return [
        Row(
            cell=cell.name,
            way=name,
            timing=t,
            gb_per_s=cell.num_bytes / t.median_ms / 1e6,
            tflop_per_s=cell.flops / t.median_ms / 1e9,
            of_bound=bound_ms / t.median_ms,
            slower=t.median_ms / ours_ms,
            error=errors[name],
        )
        for name, t in timings.items()
    ]


def table(rows: Sequence[Row]) -> str:
    """The rows as text, in aligned columns."""
    lines = [COLUMNS, *(_texts(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


def compiled(plain: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """What torch.compile makes of a plain form, compiled now; its own limits on recompiling are reset."""
    torch._dynamo.reset()
    made: Callable[[], Tensor] = torch.compile(plain, dynamic=False)
    made()
    return made


def _texts(row: Row) -> tuple[str, ...]:
    return (
        row.cell,
        row.way,
        f"{row.ms:.4g}",
        f"{row.timing.p20_ms:.4g}…{row.timing.p80_ms:.4g}",
        f"{row.gb_per_s:.4g}",
        f"{row.tflop_per_s:.3g}" if row.tflop_per_s else "",
        f"{row.of_bound:.2f}",
        f"{row.slower:.2f}",
        f"{row.error:.1e}",
        ", ".join((row.timing.how, *row.timing.throttled)),
    )


def _error(found: Tensor, exact: Tensor) -> float:
    difference = (found.double() - exact).abs().max()
    return float(difference / exact.abs().max())
