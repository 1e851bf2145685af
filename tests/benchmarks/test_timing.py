"""The clock of the benchmarks: it measures what passes, alternates, warms up apart, and says where."""

import time
from collections.abc import Callable

import pytest
import torch

from benchmarks.nvml import named_throttles
from benchmarks.timing import copy_gb_per_s, machine, side_by_side, summarise, time_ms

CPU = torch.device("cpu")


def _sleeper(seconds: float, log: list[str] | None = None, name: str = "") -> Callable[[], None]:
    def call() -> None:
        if log is not None:
            log.append(name)
        time.sleep(seconds)

    return call


def test_it_measures_the_time_that_passes() -> None:
    timing = time_ms(_sleeper(0.01), device=CPU, budget_ms=60)
    assert 10 <= timing.p20_ms <= timing.median_ms <= timing.p80_ms
    assert timing.median_ms < 400  # a loaded machine may be late, not by so much
    assert timing.how == "clock"


def test_alternatives_take_turns_after_a_warm_up_of_their_own() -> None:
    log: list[str] = []
    calls = {name: _sleeper(seconds, log, name) for name, seconds in (("slow", 0.1), ("fast", 0.001))}
    found = side_by_side(calls, device=CPU, budget_ms=10, min_runs=6)
    assert list(found) == ["slow", "fast"]
    assert found["slow"].median_ms >= 100 > found["fast"].median_ms, "a busy machine only ever adds to a sleep"
    assert [t.runs for t in found.values()] == [6, 6]
    assert log[-12:] == ["slow", "fast"] * 6
    warm_up = log[:-12]
    assert warm_up == sorted(warm_up, reverse=True), "each is warmed up by itself"
    assert set(warm_up) == {"slow", "fast"}


def test_the_budget_bounds_the_runs() -> None:
    assert time_ms(_sleeper(0.005), device=CPU, budget_ms=50, min_runs=1).runs <= 10
    assert time_ms(lambda: None, device=CPU).runs == 200


def test_a_failing_call_is_not_hidden() -> None:
    def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        side_by_side({"a": fail}, device=CPU)


def test_percentiles_are_those_of_the_runs() -> None:
    timing = summarise([5.0, 1.0, 2.0, 4.0, 3.0, 6.0], "clock", ())
    assert (timing.median_ms, timing.p20_ms, timing.p80_ms) == pytest.approx((3.5, 2.0, 5.0))


def test_only_real_slowdowns_are_named() -> None:
    assert named_throttles(0x1 | 0x2 | 0x10 | 0x100) == set()  # idle, application clocks, sync boost, display
    assert named_throttles(0x4 | 0x40) == {"power cap", "hardware thermal"}


def test_the_machine_is_named() -> None:
    found = machine(CPU)
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert found["cpu"]
    assert found["threads"] == torch.get_num_threads()
    assert copy_gb_per_s(CPU) > 0.1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_the_device_is_measured_not_the_launch() -> None:
    device = torch.device("cuda")
    x = torch.ones(2**28, device=device)
    timing = time_ms(lambda: x.mul_(1.0), device=device)
    assert timing.how == "graph"
    assert timing.median_ms > 2 * 2**30 / 1e13 * 1e3  # 2 GiB moved; no GPU moves 10 TB/s
    uncapturable = time_ms(lambda: float(x[0]), device=device)
    assert uncapturable.how == "events"
    assert machine(device)["gpu"]
