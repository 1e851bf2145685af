"""The benchmark kit: errors against the exact result, rates from bytes and time, a table, figures as JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.cells import Cell, measure, table
from fairy.benchmarks.bounds import Work
from fairy.benchmarks.gate import compare, failed
from fairy.benchmarks.records import RecordFile, read_records
from fairy.benchmarks.timing import copy_gb_per_s

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def test_rows_say_error_rate_and_ratio() -> None:
    x = torch.linspace(-4, 2, 1 << 20)
    ways = {"ours": lambda: x * 2, "off": lambda: x * 2 + 0.4, "long": lambda: (x.double().exp().log() * 2).float()}
    cell = Cell("made up", ways, lambda: 2 * x[: 1 << 19].double(), Work(2 * x.nbytes))
    rows = measure(cell, CPU, budget_ms=20)
    assert [row.way for row in rows] == ["ours", "off", "long"]
    assert rows[0].error < 1e-7
    assert rows[1].error == pytest.approx(0.4 / 8, rel=1e-3)
    assert rows[0].slower == 1
    assert rows[2].slower > 2
    for row in rows:
        assert row.gb_per_s == pytest.approx(2 * x.nbytes / row.ms / 1e6)
        assert row.of_bound == pytest.approx(row.gb_per_s / copy_gb_per_s(CPU))
    lines = table(rows).splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1


@pytest.mark.slow
def test_a_benchmark_runs_and_keeps_its_figures(tmp_path: Path) -> None:
    figures, stores = tmp_path / "figures.json", tmp_path / "stored.json"
    command = [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", "benchmarks/bench_guidance_step.py"]
    done = subprocess.run(
        [*command, "-k", "3", f"--figures={figures}", f"--benchmark-json={stores}"],
        cwd=ROOT,
        # pytest-benchmark times nothing in a process that believes to be one of several
        env={name: v for name, v in os.environ.items() if "XDIST" not in name} | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = read_records(figures).records
    assert set(found) == {f"guidance_step, 3 frames, float32, {way}" for way in ("fairy", "eager")}
    for record in found.values():
        assert record.machine["torch"] == torch.__version__
        assert record.timing is not None
        assert record.timing.runs >= 5
        assert 0 < record.quality["error"].value < 1e-5
    assert "× slower" in done.stdout
    (stored,) = json.loads(stores.read_text())["benchmarks"]  # what pytest-benchmark keeps
    ours = found["guidance_step, 3 frames, float32, fairy"]
    assert stored["stats"]["rounds"] >= 5
    assert stored["extra_info"]["recipe_sha256"] == ours.recipe_sha256
    assert stored["extra_info"]["on_the_device"]["fairy"]["median_ms"] == ours.timing.median_ms  # type: ignore[union-attr]
    assert not failed(compare(RecordFile(found, {}), RecordFile(found, {})))
