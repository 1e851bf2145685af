"""The scaling study: the simulation against exact arithmetic and against real processes, and what is shown of it."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairy.benchmarks.scaling.costs import (
    computed_costs,
    measure_costs,
    measure_handout_ms,
    peak_bytes,
    read_costs,
    save_costs,
)
from fairy.benchmarks.scaling.placement import Link, Placement, Workload, plan_placement
from fairy.benchmarks.scaling.rehearsal import compare, rehearse
from fairy.benchmarks.scaling.report import LINKS, draw, study, table
from fairy.benchmarks.scaling.simulation import LOSSES, simulate, work_ms
from fairy.kernels.errors import InputError, MachineError
from fairy.runtime.cli.main import run as run_cli
from fairy.runtime.plan.batches import default_micro_batch
from fairy.runtime.plan.choose_anchors import choose_anchors
from fairy.runtime.plan.stage_costs import StageCosts

GPU = computed_costs(400)
# Stages long enough that a loaded machine's late wake-ups stay small beside them.
SLEEPS = replace(
    GPU,
    text_ms=10,
    encode_ms=10,
    decode_ms=15,
    anchors_step_ms=50,
    frames_step_ms=55,
    handout_ms=1,
    bank_step_bytes=1_000_000,
)


def _plan(frames: int, steps: int, costs: StageCosts, workers: int, link: Link) -> Placement:
    workload = Workload(frames, choose_anchors(costs.anchors, frames), steps)
    return plan_placement(workload, costs, num_workers=workers, link=link, micro_batch=costs.micro_batch)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Placement, StageCosts, Link]:
    """A planned job with any costs."""
    times = st.floats(0.1, 1e3)
    names = ("text_ms", "encode_ms", "decode_ms", "anchors_step_ms", "frames_step_ms", "handout_ms")
    anchors = draw(st.integers(0, 9))
    costs = replace(
        GPU, anchors=anchors, micro_batch=default_micro_batch(anchors), **{name: draw(times) for name in names}
    )
    link = Link("any", draw(st.floats(0.01, 1e3)), draw(st.floats(0, 5)), draw(st.sampled_from(["ring", "tree"])))
    frames = draw(st.integers(max(anchors, 1), 300))
    return _plan(frames, draw(st.integers(1, 12)), costs, draw(st.integers(1, 40)), link), costs, link


@given(cases())
@settings(max_examples=60, deadline=None)
def test_all_worker_time_is_either_work_or_a_loss_with_a_reason(case: tuple[Placement, StageCosts, Link]) -> None:
    placement, costs, link = case
    found = simulate(placement, costs, link)
    assert set(found.losses_ms) == set(LOSSES)
    assert min(found.losses_ms.values()) >= -1e-6
    paid = placement.num_workers * found.makespan_ms
    assert found.work_ms + sum(found.losses_ms.values()) == pytest.approx(paid, rel=1e-9)
    assert 0 < found.efficiency <= 1 + 1e-9
    assert len(found.part_ends_ms) == placement.batches


@given(cases())
@settings(max_examples=60, deadline=None)
def test_the_planner_is_right_but_for_what_it_leaves_out(case: tuple[Placement, StageCosts, Link]) -> None:
    """It leaves out that the controller may be busy and that the last micro-batch may have fewer frames to decode."""
    placement, costs, link = case
    costs = replace(costs, handout_ms=0.0)
    workload = placement.workload
    whole = placement.batches * placement.micro_batch + len(workload.anchors)
    full = _plan(max(whole, 1), workload.num_inference_steps, costs, placement.num_workers, link)
    assert simulate(full, costs, link).makespan_ms == pytest.approx(full.makespan_ms, rel=1e-9)
    ragged = _plan(workload.num_frames, workload.num_inference_steps, costs, placement.num_workers, link)
    assert simulate(ragged, costs, link).makespan_ms <= ragged.makespan_ms * (1 + 1e-9)


def test_one_worker_does_all_stages_one_after_another() -> None:
    placement = _plan(121, 10, GPU, 1, LINKS[0])
    by_hand = GPU.text_ms + 121 * (GPU.encode_ms + GPU.decode_ms) + 10 * GPU.anchors_step_ms + 400 * GPU.frames_step_ms
    found = simulate(placement, GPU, LINKS[0])
    assert found.makespan_ms == pytest.approx(by_hand, rel=1e-12)
    assert work_ms(placement, GPU) == pytest.approx(by_hand, rel=1e-12)
    assert (found.efficiency, found.bottleneck) == (pytest.approx(1.0), "none")


def test_each_bottleneck_is_named_where_it_is_the_one() -> None:
    def bottleneck(costs: StageCosts, frames: int, workers: int, gb_per_s: float, bank: str) -> str:
        link = Link("link", gb_per_s)
        placement = _plan(frames, 10, costs, workers, link)
        assert placement.bank == bank
        return simulate(placement, costs, link).bottleneck

    assert bottleneck(GPU, 120, 64, 300, "broadcast") == "tail"
    assert bottleneck(GPU, 120, 8, 300, "broadcast") == "phase A"
    assert bottleneck(GPU, 1000, 32, 0.5, "recompute") == "repeated"
    assert bottleneck(replace(GPU, handout_ms=50.0), 1000, 32, 300, "broadcast") == "controller"
    assert bottleneck(replace(GPU, encode_ms=150.0), 27, 4, 6, "broadcast") == "link"


def test_eight_workers_reach_the_goal_over_a_fast_link() -> None:
    (case,) = study(GPU, num_inference_steps=10, frames=[120], workers=[8], links=[LINKS[0]])
    assert case.efficiency >= 0.95
    assert case.basis == "computed"


def test_a_hundred_thousand_frames_on_64_workers_are_simulated_in_seconds() -> None:
    started = time.process_time()
    (case,) = study(GPU, num_inference_steps=10, frames=[100_000], workers=[64], links=[LINKS[1]])
    assert case.efficiency > 0.99
    assert time.process_time() - started < 10


def _children_of_rehearsals() -> set[str]:
    """Command lines of processes that a rehearsal started."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "fairy.benchmarks.scaling.rehearsal" in line and str(os.getpid()) not in path.parts:
            found.add(line)
    return found


def _assert_no_child_is_left() -> None:
    end = time.monotonic() + 20  # a process that was told to end takes its time on a busy machine
    while _children_of_rehearsals():
        assert time.monotonic() < end, _children_of_rehearsals()
        time.sleep(0.1)


@pytest.mark.slow
def test_real_processes_take_what_was_simulated() -> None:
    """Sleeping workers over gloo and a file. Other programs make them late; nothing makes them much too early."""
    rows = rehearse(SLEEPS, workers=(1, 2, 4), num_frames=39, num_inference_steps=2, deadline_s=120)
    print(compare(rows))
    assert [row.workers for row in rows] == [1, 2, 4]
    for row in rows:
        assert sorted(row.parts) == list(range(12))
        assert row.deviation >= -0.1, compare(rows)
        assert 0.98 * row.planned_ms <= row.simulated_ms
    assert rows[0].planned_ms == pytest.approx(10 + 39 * 25 + 2 * 50 + 12 * (1 + 2 * 55))
    assert rows[0].planned_ms > 1.8 * rows[1].planned_ms > 3 * rows[2].planned_ms
    _assert_no_child_is_left()


@pytest.mark.slow
def test_a_rehearsal_that_passes_its_deadline_ends_all_its_processes() -> None:
    with pytest.raises(MachineError, match="not done after 2 s"):
        rehearse(replace(SLEEPS, frames_step_ms=60_000), workers=(2,), deadline_s=2)
    _assert_no_child_is_left()


def test_too_many_workers_are_not_rehearsed() -> None:
    with pytest.raises(InputError, match="13 workers have only 12 micro-batches"):
        rehearse(SLEEPS, workers=(13,), num_frames=39)


@pytest.mark.slow
def test_costs_are_measured_with_the_embedded_model_and_kept(tmp_path: Path) -> None:
    costs, device = measure_costs(device="cpu", long_side=64, backend="eager")
    assert costs.measured
    assert "64×48" in costs.name
    times = (costs.text_ms, costs.encode_ms, costs.decode_ms, costs.anchors_step_ms, costs.frames_step_ms)
    assert all(0.05 < ms < 60_000 for ms in times)
    assert costs.decode_ms < costs.frames_step_ms * 20
    assert costs.weights_bytes > 10**7
    assert costs.unet_frame_bytes > 64 * 48 * 4
    assert costs.vae_bytes > 64 * 48 * 3 * 4
    save_costs(costs, tmp_path / "costs.json", device)
    assert read_costs(tmp_path / "costs.json") == costs
    assert json.loads((tmp_path / "costs.json").read_text())["machine"]["cpu"]


def test_the_peak_is_what_tensors_take_at_once() -> None:
    def call() -> None:
        a = torch.empty(1_000_000)
        b = torch.empty(3_000_000)
        del a
        torch.empty(500_000)
        del b
        torch.empty(3_500_000)

    assert peak_bytes(call, torch.device("cpu")) == 16_000_000


def test_handing_out_more_takes_longer() -> None:
    assert 0 < measure_handout_ms(1_000) < measure_handout_ms(8_000_000)


def test_computed_costs_are_operations_over_rate() -> None:
    assert GPU.measured is False
    assert GPU.frames_step_ms == pytest.approx(9 * 784.1e9 / 400e12 * 1e3)
    assert computed_costs(800).decode_ms == pytest.approx(GPU.decode_ms / 2)
    assert GPU.bank_step_bytes == 3 * 3 * 34_652_160
    with pytest.raises(InputError, match="tflops = 0"):
        computed_costs(0)


def test_the_command_prints_draws_and_writes_what_it_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, data = tmp_path / "scaling.png", tmp_path / "scaling.json"
    options = ["--tflops", "400", "--frames", "1000,120", "--workers", "1,8", "--link", "fast=300", "--link", "slow=1"]
    code = run_cli(["bench", "scaling", *options, "--plot", str(picture), "--json", str(data)])
    text = capsys.readouterr().out
    assert code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    content = json.loads(data.read_text())
    assert StageCosts.from_json(content["stage_costs"]) == GPU
    assert "computed from operations at an assumed rate" in text
    rows = [line for line in text.splitlines() if re.match(r" *(120|1 000) +(fast|slow)", line)]
    assert len(rows) == 4
    assert all(row.endswith("computed") for row in rows)
    assert len(content["cases"]) == 8
    for case in content["cases"]:
        assert f"{100 * case['efficiency']:.1f} %{'*' * (case['bank'] == 'recompute')} {case['bottleneck']}" in text
        assert sum(case["losses"].values()) == pytest.approx(1 - case["efficiency"], abs=1e-9)


def test_costs_from_a_file_are_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_costs(replace(GPU, name="from a file", measured=True), tmp_path / "costs.json", torch.device("cpu"))
    options = ["--costs", str(tmp_path / "costs.json"), "--frames", "120", "--workers", "8"]
    assert run_cli(["bench", "scaling", *options]) == 0
    text = capsys.readouterr().out
    assert text.startswith("from a file: 10 steps")
    assert "stage costs, measured" in text
    assert text.count("  computed\n") == len(LINKS)  # the links are assumed all the same


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--frames", "120,0"], "--frames '120,0' is no list"),
        (["--workers", "x"], "--workers 'x' is no list"),
        (["--link", "fast"], "--link 'fast' is not NAME=GB/s"),
        (["--link", "a=0"], "a at 0.0 GB/s"),
        (["--link", "a=1", "--link", "a=2"], "names one link twice"),
        (["--tflops", "-1"], "--tflops -1 is not a rate"),
        (["--tflops", "400", "--costs", "costs.json"], "choose one"),
        (["--costs", "missing.json"], "missing.json cannot be read"),
        (["--tflops", "400", "--memory-gb", "4"], "choose anchors = 1 or long_side = 384"),
        (["--tflops", "400", "--frames", "120", "--plot", "drawing.xyz"], "drawing.xyz has no ending of a picture"),
    ],
)
def test_wrong_options_are_refused_with_a_sentence(
    options: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_cli(["bench", "scaling", *options]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out


def test_without_matplotlib_only_drawing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = study(GPU, num_inference_steps=2, frames=[30], workers=[1, 2])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "computed" in table(found)
    with pytest.raises(MachineError, match="needs the package matplotlib"):
        draw(found, "", tmp_path / "x.png")


def test_the_help_loads_no_benchmarks() -> None:
    code = "import sys; from fairy.runtime.cli.main import run; run(['bench', 'scaling', '--help']); print(sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True)
    assert "--tflops" in done.stdout
    assert "fairy.benchmarks.scaling'" not in done.stdout
    assert "'torch'" not in done.stdout
