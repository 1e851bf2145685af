"""One cell of a benchmark: the same result computed in several ways, timed side by side, with error and bounds.

"Of roof" sets a time beside roofs that were measured on the same machine in the same run: the cell's bytes at the speed
of a plain copy, its operations at that of a large matrix product, its exponentials at the clock that the driver names.
"Share of bound" sets it beside the GPU's published peaks (`fairy.benchmarks.bounds`) and names what binds; it is empty
on a device whose peaks are not known. 1.0 means that nothing is left to gain.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairy.benchmarks.bounds import SPECIALS_A_CLOCK, Resource, Work, device_bound
from fairy.benchmarks.timing import Timing, copy_gb_per_s, matmul_tflop_per_s, side_by_side

COLUMNS = (
    "cell",
    "way",
    "ms",
    "p20…p80",
    "share of bound",
    "GB/s",
    "TFLOP/s",
    "of roof",
    "× slower",
    "error",
    "measured",
)


@dataclass(frozen=True, slots=True)
class Cell:
    """What one cell compares.

    Attributes:
        name: shape and type, for the table.
        ways: name to call; the first is our op, all give the same tensor.
        exact: the leading entries of that tensor, from the same inputs in float64.
        work: what must be done at least.
        dtype: of inputs and result.
        part: cuts out of a result what `exact` gives; None = its leading entries.
    """

    name: str
    ways: Mapping[str, Callable[[], Tensor]]
    exact: Callable[[], Tensor]
    work: Work
    dtype: torch.dtype = torch.float32
    part: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One way in one cell.

    Attributes:
        of_bound: by the roofs measured in the same run. share_of_bound, bound_by: by published peaks; None where the
            device's are not known.
        slower: relative to our op. error: the largest, relative to the largest exact value.
    """

    cell: str
    way: str
    timing: Timing
    gb_per_s: float
    tflop_per_s: float
    of_bound: float
    slower: float
    error: float
    share_of_bound: float | None = None
    bound_by: Resource | None = None

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
    work, bound, roof_ms = cell.work, device_bound(cell.work, device), _roof_ms(cell.work, device)
    ours_ms = next(iter(timings.values())).median_ms
    return [
        Row(
            cell=cell.name,
            way=name,
            timing=t,
            gb_per_s=work.num_bytes / t.median_ms / 1e6,
            tflop_per_s=work.flops / t.median_ms / 1e9,
            of_bound=roof_ms / t.median_ms,
            slower=t.median_ms / ours_ms,
            error=errors[name],
            share_of_bound=None if bound is None else bound.share(t.median_ms),
            bound_by=None if bound is None else bound.binding,
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


def _roof_ms(work: Work, device: torch.device) -> float:
    """The least time by what this machine was measured to do."""
    roof_ms = work.num_bytes / copy_gb_per_s(device) / 1e6
    if work.flops and work.dtype.itemsize > 1:  # torch has no plain product in 8 bit to measure
        roof_ms = max(roof_ms, work.flops / matmul_tflop_per_s(device, work.dtype) / 1e9)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        clock_hz = getattr(properties, "clock_rate", 1_755_000) * 1e3
        roof_ms = max(roof_ms, 1e3 * work.specials / (SPECIALS_A_CLOCK * properties.multi_processor_count * clock_hz))
    return roof_ms


def _texts(row: Row) -> tuple[str, ...]:
    return (
        row.cell,
        row.way,
        f"{row.ms:.4g}",
        f"{row.timing.p20_ms:.4g}…{row.timing.p80_ms:.4g}",
        "" if row.share_of_bound is None else f"{row.share_of_bound:.2f} ({row.bound_by})",
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
