"""What a GPU allows at best: published peaks as data, the work of a call, and the share of its bound that a time is.

A call moves bytes, multiplies matrices, computes on single values, and takes exponentials. Each has a peak; were all
perfectly overlapped, the slowest would be the whole time. That is the bound, and its name says what would have to be
saved. Peaks are those of the makers' sheets, which no real clock holds for long: a share of 1.0 is not to be had.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

Resource = Literal["memory", "tensor cores", "vector units", "special functions"]
RESOURCES: tuple[Resource, ...] = ("memory", "tensor cores", "vector units", "special functions")

# Results of exp2, reciprocal and their like in a clock of one multiprocessor of all GPUs below: CUDA C++ Programming
# Guide, "Throughput of Native Arithmetic Instructions". FlashAttention-3 (arXiv 2407.08608) comes to the same 3.9·10¹²
# a second for an H100.
SPECIALS_A_CLOCK = 16
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Peak:
    """What one GPU can do in a second, dense (no sparsity), by its maker's figures.

    Attributes:
        name: what tables call it.
        devices: what torch calls it; other models of the family (PCIe, NVL, laptops) have other peaks.
        bytes_per_s: of its memory, read and written.
        flop_per_s: of matrix products by the type of what is multiplied, summed in float32. Float32 itself is
            multiplied without tensor cores, by the vector units, whose peak this is too.
        multiprocessors, clock_hz: the clock at which the peaks of 16 bit are given; Hopper's float32 is given at 1.98
            GHz, at which exponentials would be 8 % faster too.
        source: where the figures are published.
    """

    name: str
    devices: tuple[str, ...]
    bytes_per_s: float
    flop_per_s: Mapping[torch.dtype, float]
    multiprocessors: int
    clock_hz: float
    source: str

    @property
    def specials_per_s(self) -> float:
        """Exponentials, reciprocals and their like."""
        return SPECIALS_A_CLOCK * self.multiprocessors * self.clock_hz


def _flops(half: float, single: float, eighth: float | None) -> dict[torch.dtype, float]:
    """Peaks by type, from 10¹² a second."""
    found = dict.fromkeys(_HALF, half * 1e12) | {torch.float32: single * 1e12}
    return found if eighth is None else found | {torch.float8_e4m3fn: eighth * 1e12}


PEAKS = (
    Peak("H100", ("NVIDIA H100 80GB HBM3",), 3.35e12, _flops(989.4, 66.9, 1978.9), 132, 1.83e9,
         "NVIDIA H100 Tensor Core GPU data sheet and architecture white paper, SXM5"),
    Peak("H200", ("NVIDIA H200",), 4.8e12, _flops(989.4, 66.9, 1978.9), 132, 1.83e9,
         "NVIDIA H200 Tensor Core GPU data sheet, SXM"),
    Peak("A100", ("NVIDIA A100-SXM4-80GB",), 2.039e12, _flops(312, 19.5, None), 108, 1.41e9,
         "NVIDIA A100 80GB data sheet and Ampere architecture white paper, SXM4"),
    Peak("RTX 4090", ("NVIDIA GeForce RTX 4090",), 1.008e12, _flops(165.2, 82.6, 330.3), 128, 2.52e9,
         "NVIDIA Ada GPU architecture white paper, appendix A, float32 accumulation"),
    Peak("L4", ("NVIDIA L4",), 0.3e12, _flops(121, 30.3, 242), 58, 2.04e9,
         "NVIDIA L4 Tensor Core GPU data sheet (its figures with sparsity, halved)"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Work:
    """What a call does at least, with exponentials on the units for special functions.

    Attributes:
        num_bytes: inputs and results, not what passes between its own launches; an input that does not stay on the chip
            between two uses counts twice.
        flops: of matrix products and convolutions, 2 a multiply-add; 0 where there are none.
        dtype: the type of what they multiply.
        vector_flops: operations on single values in float32, 2 a multiply-add.
        specials: exponentials, reciprocals and their like.
    """

    num_bytes: int
    flops: int = 0
    dtype: torch.dtype = torch.float32
    vector_flops: int = 0
    specials: int = 0


@dataclass(frozen=True, slots=True)
class Bound:
    """The least time of some work on a GPU: milliseconds of every resource, of which the longest binds."""

    resources_ms: Mapping[Resource, float]

    @property
    def binding(self) -> Resource:
        """What would have to be saved for the work to be faster."""
        return max(RESOURCES, key=lambda name: self.resources_ms[name])

    @property
    def ms(self) -> float:
        """The bound itself."""
        return self.resources_ms[self.binding]

    def share(self, measured_ms: float) -> float:
        """How much of a measured time the bound is: 1.0 would leave nothing to gain."""
        return self.ms / measured_ms


def bound_of(work: Work, peak: Peak) -> Bound | None:
    """The bound of some work on a GPU; None where it does not multiply the work's type, as an A100 does not float8."""
    if work.flops and work.dtype not in peak.flop_per_s:
        return None
    seconds: dict[Resource, float] = {
        "memory": work.num_bytes / peak.bytes_per_s,
        "tensor cores": work.flops / peak.flop_per_s[work.dtype] if work.flops else 0.0,
        "vector units": work.vector_flops / peak.flop_per_s[torch.float32],
        "special functions": work.specials / peak.specials_per_s,
    }
    return Bound({name: s * 1e3 for name, s in seconds.items()})


def peak_named(device_name: str) -> Peak | None:
    """The peaks of a GPU by the name that torch gives it; None where none are known."""
    return next((peak for peak in PEAKS if device_name in peak.devices), None)


def device_bound(work: Work, device: torch.device) -> Bound | None:
    """The bound of some work on this machine's device; None where its peaks are not known."""
    peak = peak_named(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if peak is None else bound_of(work, peak)


__all__ = [
    "PEAKS",
    "RESOURCES",
    "SPECIALS_A_CLOCK",
    "Bound",
    "Peak",
    "Resource",
    "Work",
    "bound_of",
    "device_bound",
    "peak_named",
]
