"""The ladder, tiny: rungs compute the same edit, times of a clip follow from their parts, records and options hold."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fairy.benchmarks.counts import counting
from fairy.benchmarks.ladder import climb as climbing
from fairy.benchmarks.ladder.case import Case, Lap, Laps, clock_of, make_case, matmul_tflop_per_s
from fairy.benchmarks.ladder.climb import Climb, clip_flops, clip_ms, ladder_of, make_rungs, run_climb, table, unet_ms
from fairy.benchmarks.ladder.networks import FULL, Flops, Size, count_flops, make_networks, unet_graphs
from fairy.benchmarks.records import read_records
from fairy.export.bases.stable_diffusion import UNetGraph
from fairy.export.shapes import random_inputs
from fairy.export.steps import STEPS
from fairy.kernels.errors import InputError

CPU = torch.device("cpu")
TINY = Size(
    "tiny",
    64,
    64,
    frames=2,
    anchors=2,
    tokens=5,
    unet={
        "block_out_channels": (8, 16, 16, 16),
        "cross_attention_dim": 8,
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    },
    vae={"block_out_channels": (4, 4, 8, 8), "norm_num_groups": 2, "layers_per_block": 1},
)


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case(TINY, make_networks(TINY, CPU, torch.float32), CPU, torch.float32)


def test_all_rungs_compute_the_same_edit(case: Case) -> None:
    """Each against eager's latents; what diffusers computes by itself shows that eager's are right."""
    rungs = make_rungs(case, Climb(compiled=False))
    references = climbing._references(case)
    assert not torch.allclose(references[True], references[False], atol=1e-3)  # anchors matter
    assert [rung.key for rung in rungs] == ["a", "b", "c", "d", *ladder_of("cpu", Climb(compiled=False))]
    for rung in rungs:
        lap = rung.run()
        if rung.name.endswith(", approximate"):
            assert 1e-4 < climbing._difference(lap, references[rung.anchored]) < 0.1
        else:
            torch.testing.assert_close(lap.latents, references[rung.anchored], atol=3e-3, rtol=1e-4, msg=rung.name)
            assert climbing._difference(lap, references[rung.anchored]) < 1e-4
        assert climbing._difference(lap, references[not rung.anchored]) > 1e-3
        assert (lap.anchors_ms is not None) == rung.anchored
        assert min(lap.encode_ms, lap.decode_ms, *lap.frames_ms) > 0
        again = rung.run().latents
        assert torch.equal(lap.latents, again), rung.name


def test_a_clip_is_the_sum_of_its_parts(case: Case) -> None:
    lap = Lap(2.0, 3.0, (10.0, 20.0), (100.0, 200.0), 2, torch.zeros(1))
    anchors, batches = 100.0 + 9 * 200, 59  # 118 frames in pairs
    assert clip_ms(lap, case) == 120 * 5 + anchors + batches * (10 + 9 * 20)
    assert unet_ms(lap, case) == clip_ms(lap, case) - 600
    plain = replace(lap, anchors_ms=None, frames=7)
    assert clip_ms(plain, case) == 600 + 18 * 190  # the last batch is filled up
    flops = Flops({"unet": 1, "unet_anchor": 10, "unet_frame": 100}, 1000, 10000)
    assert clip_flops(flops, case, anchored=False) == 30 * 120 + 120 * 11000
    assert clip_flops(flops, case, anchored=True) == 30 * (2 * 10 + 118 * 100) + 120 * 11000


@pytest.mark.parametrize("name", ["unet", "unet_anchor", "unet_frame"])
def test_operations_are_those_that_run(name: str, case: Case) -> None:
    """Counted while the plain graph really runs: another way than by meta tensors and a formula."""
    graph = unet_graphs(case.networks.unet)[name]
    frames = TINY.anchors if name == "unet_anchor" else 1
    sizes = {"groups": 1, "frames": frames, "tokens": 5, "height": 8, "width": 8}
    sizes |= {f"context_{level}": TINY.anchors * (8 >> level) ** 2 for level in range(4)}
    inputs = random_inputs(graph, sizes, torch.float32, seed=0)
    with torch.inference_mode(), counting() as counts:
        UNetGraph(case.networks.unet, graph)(*inputs.values())
    # The frames of a batch share the text's keys and values, which every sample-forward is counted with.
    shared = (frames - 1) * sum(4 * 5 * 8 * layer.channels for layer in graph.layers)
    assert count_flops(TINY).unet[name] * frames == counts["flops"] + shared


def test_operations_in_full_size_are_those_of_the_public_configuration() -> None:
    found = count_flops(FULL)
    assert found.unet == {"unet": 580_310_056_960, "unet_anchor": 718_116_536_320, "unet_frame": 787_019_776_000}
    assert (round(found.encode / 1e9, 1), round(found.decode / 1e9, 1)) == (831.1, 1879.4)


def test_steps_can_be_left_out_and_named() -> None:
    on = ladder_of("cpu", Climb(without=("fused-qkv",), compiled=False))
    assert "fused-qkv" not in on
    assert not {"inductor", "cuda-graphs", "geglu"} & set(on)
    assert ladder_of("cuda", Climb()) == tuple(step.name for step in STEPS)
    assert ladder_of("cuda", Climb(), approximate=False) == tuple(step.name for step in STEPS if step.exact)
    with pytest.raises(InputError, match="without = 'qkv' is no step"):
        Climb(without=("qkv",))
    with pytest.raises(InputError, match="repeats = 0"):
        Climb(repeats=0)


def test_an_unknown_rung_names_the_known_ones(case: Case) -> None:
    with pytest.raises(InputError, match="There is no rung 'e' here; choose from a, b, c, d, one-batch, "):
        make_rungs(case, Climb(("a", "e"), compiled=False))
    with pytest.raises(InputError, match="There is no rung 'inductor' here"):
        make_rungs(case, Climb(("inductor",), compiled=False))
    assert [rung.key for rung in make_rungs(case, Climb(("d", "b"), compiled=False))] == ["b", "d"]


class _Paced:
    """A rung that takes known times."""

    anchored = True

    def __init__(self, key: str, case: Case, log: list[str]) -> None:
        self.key, self.name, self._case, self._log = key, f"rung {key}", case, log

    def run(self) -> Lap:
        self._log.append(self.key)
        slow = 2.0 if self.key == "b" else 1.0
        return Lap(slow, slow, (slow, slow), (slow, slow), 2, torch.ones(2, 4, 8, 8), 2**20)


def test_rungs_take_turns_and_become_records(case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log: list[str] = []
    monkeypatch.setattr(climbing, "make_rungs", lambda case, climb: [_Paced(key, case, log) for key in "ab"])
    monkeypatch.setattr(climbing, "_references", lambda case: {True: torch.full((2, 4, 8, 8), 0.8)})
    kept: list[int] = []
    records = run_climb(case, Climb(repeats=3), keep=lambda so_far: kept.append(len(so_far)))
    assert log == ["a", "a", "b", "b", *["a", "b"] * 2]
    assert kept == [1, 2, 2, 2, 2, 2]  # what a climb that is stopped leaves
    a, b = records
    assert a.timing is not None
    assert b.timing is not None
    assert b.timing.median_ms == 2 * a.timing.median_ms
    assert a.quality["difference"].value == pytest.approx(0.25)
    assert a.figures["frames_per_s"] == pytest.approx(120e3 / a.timing.median_ms)
    assert a.figures["joules_per_frame"] is None
    assert a.figures["of_matmul"] == pytest.approx(2 * b.figures["of_matmul"])
    assert a.recipe_sha256 != b.recipe_sha256
    rows = table(records).splitlines()
    assert rows[1].split()[:2] == ["rung", "a"]
    assert re.search(r"1\s+-\s+2.5e-01$", rows[1])


def test_power_is_what_the_counter_moved_by(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    spent = iter([100.0, 112.0])
    monkeypatch.setattr(climbing, "energy_j", lambda device: next(spent))
    monkeypatch.setattr(climbing, "_ENERGY_S", 0.05)
    log: list[str] = []
    started = time.perf_counter()
    watts = climbing._watts(_Paced("a", case, log), CPU)
    assert watts is not None
    assert 12 / (time.perf_counter() - started) <= watts <= 12 / 0.05
    assert log
    monkeypatch.setattr(climbing, "energy_j", lambda device: None)
    assert climbing._watts(_Paced("a", case, log), CPU) is None


def test_the_clock_sees_what_passes() -> None:
    """With one thread it counts what this process computes, whatever else the machine does meanwhile."""
    before = torch.get_num_threads()
    laps = Laps(CPU)
    time.sleep(0.05)
    asleep = laps.lap()
    started = time.process_time()
    while time.process_time() - started < 0.05:
        pass
    laps.after_step(0)
    assert before == 1
    assert clock_of(CPU) == "processor time"
    assert asleep < 45 < laps.times[1]
    try:
        torch.set_num_threads(2)
        walls = Laps(CPU)
        time.sleep(0.05)
        assert walls.lap() >= 50
    finally:
        torch.set_num_threads(before)


def test_the_ceiling_is_a_rate_that_a_processor_can_have() -> None:
    a = torch.randn(768, 768)
    started = time.process_time()
    for _ in range(5):
        a @ a
    seconds = (time.process_time() - started) / 5
    found = matmul_tflop_per_s(CPU, torch.float32)
    assert 0.2 < found / (2 * 768**3 / seconds / 1e12) < 5


def test_the_command_writes_records_and_prints_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairy.benchmarks.ladder import command
    from fairy.runtime.cli.bench import bench

    monkeypatch.setattr(command, "SMALL", TINY)
    arguments = ["ladder", "--small", "--rungs", "a,d,static-input", "--without", "text-kv", "--repeats", "1"]
    done = CliRunner().invoke(bench, [*arguments, "--out", str(tmp_path / "new")])
    assert done.exit_code == 0, done.output
    assert "+ static-input" in done.output
    assert "tiny networks with random weights, 64×64" in done.output
    records = read_records(tmp_path / "new" / "ladder-tiny.json").records
    assert list(records) == ["diffusers, frame by frame", "ours, without steps", "+ static-input"]
    assert all(record.recipe["without"] == ["text-kv"] for record in records.values())
    assert (tmp_path / "new" / "ladder-tiny.txt").read_text().count("\n") == 7


def test_impossible_options_are_sentences(tmp_path: Path) -> None:
    from fairy.benchmarks.ladder.command import run

    options = {"small": False, "rungs": None, "without": (), "compiled": None, "repeats": 1, "micro_batch": None}
    options |= {"device": "cpu", "dtype": "auto", "threads": 1, "out": None, "tell": print}
    with pytest.raises(InputError, match="takes hours on a CPU; add --small"):
        list(run(**options))
    with pytest.raises(InputError, match="cannot be made"):
        list(run(**options | {"small": True, "out": tmp_path / "no" / "such"}))


def test_the_committed_ladder_is_one() -> None:
    folder = Path(climbing.__file__).resolve().parent.parent / "results" / "ladder"
    content = json.loads((folder / "ladder-small.json").read_text())
    assert [entry["recipe"]["rung"] for entry in content["records"]][:4] == ["a", "b", "c", "d"]
    assert all(
        record.quality["difference"].value < 1e-3
        for record in read_records(folder / "ladder-small.json").records.values()
    )
