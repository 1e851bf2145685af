"""How long a call takes on its device: warmed up apart, with cold caches, side by side with its alternatives.

On a CUDA GPU a call is captured into a CUDA graph where it can be, so that Python's and the launches' own time is not
measured; before every run a buffer larger than the L2 cache is written; the time is that between two CUDA events. On
the CPU it is the wall clock's. Alternatives take turns round by round, so that drifting clocks favour none.
"""

import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairy.benchmarks.nvml import gpu_facts, gpu_state, throttle_reasons

Call = Callable[[], object]
Watch = Callable[[], Callable[[], float]]  # does one run, gives what later tells its milliseconds


@dataclass(frozen=True, slots=True)
class Timing:
    """The distribution of one call's time.

    Attributes:
        median_ms, p20_ms, p80_ms: percentiles over the runs, milliseconds.
        runs: how many were measured.
        how: "graph" (a CUDA graph replayed), "events" (launches between CUDA events) or "clock" (CPU).
        throttled: why the GPU slowed its clocks during the runs, where NVML can be asked; such figures are no good.
    """

    median_ms: float
    p20_ms: float
    p80_ms: float
    runs: int
    how: str
    throttled: tuple[str, ...] = ()


def time_ms(
    call: Call, *, device: torch.device, budget_ms: float = 300, min_runs: int = 5, graph: bool = True
) -> Timing:
    """The time of one call; `side_by_side` says how."""
    return side_by_side({"": call}, device=device, budget_ms=budget_ms, min_runs=min_runs, graph=graph)[""]


def side_by_side(
    calls: Mapping[str, Call],
    *,
    device: torch.device,
    budget_ms: float = 300,
    min_runs: int = 5,
    max_runs: int = 200,
    graph: bool = True,
) -> dict[str, Timing]:
    """Time alternatives in turns, one run of each a round.

    Args:
        calls: name to call; each computes on `device`.
        device: CUDA or CPU.
        budget_ms: about how long the runs of one call take together, its warm-up apart.
        min_runs, max_runs: bounds of the number of rounds, whatever the budget.
        graph: on CUDA, replay a recording of the call; False = launch it, for calls that wait or record themselves.

    Returns:
        The timing of every call, in the order given.
    """
    on_gpu = device.type == "cuda"
    watches: dict[str, tuple[Watch, str]] = {
        name: _gpu_watch(call, device, graph=graph) if on_gpu else (partial(_clock, call), "clock")
        for name, call in calls.items()
    }
    longest_ms = max(_warm_up(watch, device) for watch, _ in watches.values())
    rounds = min(max_runs, max(min_runs, int(budget_ms / max(longest_ms, 1e-3))))
    before = throttle_reasons(device)
    runs: dict[str, list[Callable[[], float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (watch, _) in watches.items():
            runs[name].append(watch())
    throttled = tuple(sorted(before | throttle_reasons(device)))
    _synchronise(device)
    return {name: summarise([read() for read in runs[name]], how, throttled) for name, (_, how) in watches.items()}


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on: processor, GPU with driver, clocks and limits, versions."""
    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("fairy-runtime", "torch", "triton", "diffusers")},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            **gpu_facts(device),
            **gpu_state(device),
        }
    return found


@cache
def copy_gb_per_s(device: torch.device) -> float:
    """Bytes read and written by copying a large tensor, 10⁹ a second: the roof of whatever is bound by memory."""
    size = 2**30 if device.type == "cuda" else 2**26
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timing = time_ms(lambda: target.copy_(source), device=device)
    return 2 * size / timing.median_ms / 1e6


@cache
def matmul_tflop_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """10¹² operations a second of one large square matrix product: the roof of whatever is bound by arithmetic."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    timing = time_ms(lambda: a @ b, device=device)
    return 2 * size**3 / timing.median_ms / 1e9


def _clock(call: Call) -> Callable[[], float]:
    start = time.perf_counter_ns()
    call()
    ms = (time.perf_counter_ns() - start) / 1e6
    return lambda: ms


def _gpu_watch(call: Call, device: torch.device, *, graph: bool) -> tuple[Watch, str]:
    call()
    torch.cuda.synchronize(device)
    launched = partial(_between_events, call, device), "events"
    if not graph:
        return launched
    before = torch.cuda.current_stream(device)
    try:
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded, stream=torch.cuda.Stream(device)):
            call()
        return partial(_between_events, recorded.replay, device), "graph"
    except Exception:  # whatever cannot be captured, for reasons of its own, is launched
        torch.cuda.set_stream(before)  # which a capture that failed does not do
        torch.cuda.synchronize(device)
        return launched


def _between_events(call: Call, device: torch.device) -> Callable[[], float]:
    """One run after the L2 cache was overwritten, which also lets the host run ahead of the GPU."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    _l2_flush(device).zero_()
    start.record()
    call()
    end.record()
    return partial(_elapsed, start, end)


def _elapsed(start: torch.cuda.Event, end: torch.cuda.Event) -> float:
    end.synchronize()
    return float(start.elapsed_time(end))


@cache
def _l2_flush(device: torch.device) -> Tensor:
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    return torch.empty(max(4 * l2_bytes, 2**28), dtype=torch.uint8, device=device)


def _warm_up(watch: Watch, device: torch.device, at_least_ms: float = 25) -> float:
    """Run until clocks and caches have settled; milliseconds of the last run."""
    spent_ms = ms = 0.0
    for _ in range(100):
        ms = watch()()
        spent_ms += ms
        if spent_ms >= at_least_ms:
            break
    return ms


def summarise(times_ms: list[float], how: str, throttled: tuple[str, ...]) -> Timing:
    """The distribution of measured times."""
    wanted = torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)
    median, p20, p80 = torch.tensor(times_ms, dtype=torch.float64).quantile(wanted).tolist()
    return Timing(median, p20, p80, len(times_ms), how, throttled)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
