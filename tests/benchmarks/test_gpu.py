"""The prepared GPU run with tiny parts on the CPU: limits hold, failures are rows, nothing is lost; what it decides."""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fairy.benchmarks.gpu.model import write_model
from fairy.benchmarks.gpu.plan import CALLS, FIGURES, LENT_S, Part, parts, total_s
from fairy.benchmarks.gpu.results import MARKS, commit, make_gains, measured_steps, read_out, summary
from fairy.benchmarks.gpu.results import main as results_main
from fairy.benchmarks.gpu.run import ROOT, main, run_all, run_part
from fairy.benchmarks.ladder.networks import SMALL
from fairy.benchmarks.records import FORMAT, Quality, make_record, read_records, write_records
from fairy.benchmarks.timing import Timing
from fairy.kernels.gains import gain, parse_gains
from fairy.kernels.tune import write_table
from fairy.kernels.tuning import Config, Entry, Table
from fairy.runtime.cli.main import run as run_cli

CPU = torch.device("cpu")


def _python(code: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *arguments)


ERROR = {"error": Quality(1e-6, "lower")}
WRITES = "import json, sys; print('done'); json.dump({'ms': 1.5}, open(sys.argv[1], 'w'))"


def test_every_kind_of_end_is_a_row_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = (
        Part(1, "sleeps", _python("import time; print('asleep', flush=True); time.sleep(60)"), 1.0),
        Part(1, "fails", _python("print('first'); raise SystemExit('the reason')"), 20),
        Part(1, "is missing", ("/no/such/program",), 20),
        Part(1, "works", _python(WRITES, FIGURES), 20),
    )
    start = time.monotonic()
    outcomes = run_all(mine, tmp_path, CPU, "out")
    assert time.monotonic() - start < 20
    rows = {row["name"]: row for row in json.loads((tmp_path / "out.json").read_text())["parts"]}
    assert (
        [o.status for o in outcomes] == [r["status"] for r in rows.values()] == ["late", "failed", "failed", "passed"]
    )
    assert rows["sleeps"]["reason"] == "stopped at its limit of 1 s"
    assert "asleep" in rows["sleeps"]["output"]
    assert rows["fails"]["reason"] == "exit code 1: the reason"
    assert "could not be started" in rows["is missing"]["reason"]
    assert rows["works"]["figures"] == {"ms": 1.5}
    assert rows["works"]["reason"] is None
    assert "works" in capsys.readouterr().out


def test_figures_that_are_no_json_are_no_figures(tmp_path: Path) -> None:
    code = "import sys; open(sys.argv[1], 'w').write('{')"
    outcome = run_part(Part(1, "breaks off", _python(code, FIGURES), 20), tmp_path)
    assert (outcome.status, outcome.figures) == ("passed", None)


def test_the_records_of_all_parts_are_one_file_that_the_gate_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {name: make_record(name, {"n": name}, torch.device("cpu"), counts={"launches": 3}) for name in ("a", "b")}
    hot = replace(kept["b"], name="hot", timing=Timing(1, 1, 1, 5, "graph", ("power cap",)), quality=ERROR)
    files = {}
    for name, records in (("one", [kept["a"]]), ("two", [kept["b"], hot])):
        files[name] = tmp_path / f"{name}.json"
        write_records(files[name], records)
    copy = "import shutil, sys; shutil.copyfile(sys.argv[1], sys.argv[2])"
    mine = [Part(1, name, _python(copy, str(path), FIGURES), 20) for name, path in files.items()]
    (tmp_path / "out").mkdir()
    run_all([*mine, Part(1, "fails", _python("raise SystemExit(3)"), 20)], tmp_path / "out", CPU, "call")
    out = tmp_path / "out" / "call.json"
    found = read_records(out)
    assert found.records == kept
    assert list(found.refused) == ["hot"]
    assert [part["figures"] for part in json.loads(out.read_text())["parts"]] == [None] * 3
    assert run_cli(["bench", "gate", str(out), str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 pass"


def test_a_late_part_leaves_no_process_behind(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    child = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert run_part(Part(1, "parent", _python(code), 3.0), tmp_path).status == "late"
    pid = int(mark.read_text())
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _runs(pid):
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    """Whether the process is there and no zombie that waits for its new parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_what_was_measured_is_there_after_every_part(tmp_path: Path) -> None:
    out = tmp_path / "call.json"
    look = f"import json; assert [p['name'] for p in json.load(open({str(out)!r}))['parts']] == ['one']"
    outcomes = run_all((Part(1, "one", _python(""), 20), Part(1, "two", _python(look), 20)), tmp_path, CPU, "call")
    assert [o.status for o in outcomes] == ["passed", "passed"], outcomes


def test_a_part_that_is_stopped_leaves_its_log_and_what_it_told(tmp_path: Path) -> None:
    code = (
        "import json, sys, time; print('hi', flush=True); json.dump({'a': 1}, open(sys.argv[1], 'w')); time.sleep(60)"
    )
    outcome = run_part(Part(1, "two words, one", _python(code, FIGURES), 3.0), tmp_path)
    assert (outcome.status, outcome.figures) == ("late", {"a": 1})
    assert (tmp_path / "two-words-one.log").read_text().startswith("hi\n")


def test_the_list_and_the_limits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split(" s  ")[1] for line in lines] == [part.name for part in parts()]
    assert last == f"at most {total_s():g} s with both starts, of 900 s"
    assert total_s() <= LENT_S
    for call, most in zip(CALLS, (380, 470), strict=True):
        assert sum(part.limit_s for part in parts() if part.call == call) <= most
    assert len({part.slug for part in parts()}) == len(parts())


def test_every_benchmark_of_an_op_is_in_a_part() -> None:
    files = {f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("bench_*.py")}
    named = {argument for part in parts() for argument in part.command}
    assert files - named == {"benchmarks/bench_engines.py"}  # TensorRT's engines, which no lent machine has


def test_without_a_gpu_one_sentence_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["1", str(tmp_path / "none")]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err == "This needs a CUDA GPU, and the machine has none that torch can use.\n"
    assert os.listdir(tmp_path) == []


GPU = {"gpu": "NVIDIA H100 80GB HBM3", "capability": "9.0", "torch": "2.11.0", "triton": "3.6.0", "cpu": "x"}


def _record(recipe: dict[str, object], ms: float, quality: dict[str, Quality] | None = None) -> object:
    made = make_record(" ".join(map(str, recipe.values())), recipe, CPU, counts={"n": 1})
    figures = {"of_matmul": 0.5}
    return replace(made, timing=Timing(ms, ms, ms, 5, "events", ()), quality=quality or ERROR, figures=figures)


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """What a run on a GPU left."""
    out = tmp_path / "out"
    out.mkdir()
    times = {("geglu", "level 0 × 9", "fairy"): 1.0, ("geglu", "level 0 × 9", "eager"): 2.0}
    times |= {("geglu", "level 0 × 360", "fairy"): 9.0, ("geglu", "level 0 × 360", "eager"): 1.0}
    times |= {("guidance_step", "3 frames, float16", way): ms for way, ms in (("fairy", 4.0), ("eager", 1.0))}
    times |= {("upsample_conv", "decoder × 9", "fairy"): 1.0}
    records = [_record({"benchmark": b, "cell": cell, "way": way}, ms) for (b, cell, way), ms in times.items()]
    write_records(out / "elementwise-ops.json", records)
    difference = {"difference": Quality(1e-3, "lower", 1e-2)}
    rungs = [_record({"benchmark": "ladder", "rung": rung}, 7e3, difference) for rung in ("geglu", "a")]
    write_records(out / "ladder.json", rungs)
    (out / "micro-batches.json").write_text(json.dumps({"ms_a_frame_and_step": {"3": 2.0, "8": 1.99}}))
    rows = [{"name": "edit", "status": "late", "seconds": 3.0, "reason": "stopped", "figures": None, "output": ""}]
    content = {"format": FORMAT, "machine": GPU, "parts": rows, "records": [], "refused": []}
    (out / "call-1.json").write_text(json.dumps(content))
    run = {"num_frames": 120, "seconds": 9.5, "frames_per_s": 12.6, "backend": "cuda-graphs", "precision": "float16"}
    (out / "edit.json").write_text(json.dumps({"edit_1": run | {"fallbacks": [], "frames_sha256": "ab" * 32}}))
    entry = Entry((("rows", 3),), Config((("ROWS", 4),), 4, 1), 0.1)
    write_table(Table("geglu", GPU["gpu"], ("element_bytes",), (entry,), (), (9, 0)), out / "configs")
    return out


def test_gains_are_of_an_edits_own_sizes(left: Path) -> None:
    table = make_gains(read_out(left))
    assert table["capability"] == [9, 0]
    assert table["ops"]["geglu"] == [{"case": "level 0 × 9", "ours_ms": 1.0, "plain_ms": 2.0}]
    assert gain(table["ops"]["guidance_step"]) == pytest.approx(0.25)
    assert set(table["ops"]) == {"geglu", "guidance_step"}  # what has nothing beside it says nothing
    assert parse_gains(json.dumps(table)) == table


def test_results_go_to_their_places(left: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "docs").mkdir(parents=True)
    (checkout / "docs" / "speed.md").write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    found = read_out(left)
    written = commit(found, left, checkout)
    assert {path.name for path in written} == {
        "gains-sm_90.json", "geglu,device_name=NVIDIA_H100_80GB_HBM3.json", "call-1.json", "summary.md", "speed.md",
    }  # fmt: skip
    page = (checkout / "docs" / "speed.md").read_text()
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "old" not in page
    assert page.index("| ladder a ") < page.index("| ladder geglu "), "rungs are not in the ladder's order"
    text = (checkout / "benchmarks" / "results" / "gpu" / "nvidia-h100-80gb-hbm3" / "summary.md").read_text()
    assert text == summary(found)
    assert "120 frames in 9.50 s (12.6 frames/s), backend cuda-graphs" in text
    assert "geglu: 2.00 times as fast as torch" in text
    assert "| edit | late: stopped | 3.0 |" in text


def test_the_page_has_a_place_for_what_is_measured() -> None:
    page = (ROOT / "docs" / "speed.md").read_text()
    assert all(page.count(mark) == 1 for mark in MARKS)
    assert measured_steps({"records": [], "machine": GPU}) == "No rung of the ladder was measured."


def test_a_folder_without_results_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert results_main([str(tmp_path)]) == 2
    assert "holds no results of a run on a GPU" in capsys.readouterr().err


def test_the_random_model_is_the_same_every_time(tmp_path: Path) -> None:
    size = replace(SMALL, height=64, width=64)
    written = []
    for name in ("one", "two"):
        torch.manual_seed(len(written))  # whatever was drawn before
        folder = write_model(tmp_path / name, size, CPU, torch.float32)
        written.append({p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    assert len(written[0]) > 5
    assert written[0] == written[1]
