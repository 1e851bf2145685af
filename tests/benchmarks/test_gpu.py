"""The standing GPU script with tiny parts on the CPU: limits hold, failures are rows, nothing is lost."""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import FIGURES, PARTS, Part, main, run_all, run_part
from fairy.benchmarks.records import Quality, make_record, read_records, write_records
from fairy.benchmarks.timing import Timing
from fairy.runtime.cli import run as run_cli


def _python(code: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *arguments)


ERROR = {"error": Quality(1e-6, "lower")}
WRITES = "import json, sys; print('done'); json.dump({'ms': 1.5}, open(sys.argv[1], 'w'))"


def test_every_kind_of_end_is_a_row_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = (
        Part("sleeps", _python("import time; print('asleep', flush=True); time.sleep(60)"), 1.0),
        Part("fails", _python("print('first'); raise SystemExit('the reason')"), 20),
        Part("is missing", ("/no/such/program",), 20),
        Part("works", _python(WRITES, FIGURES), 20),
    )
    start = time.monotonic()
    outcomes = run_all(parts, tmp_path / "out.json", torch.device("cpu"))
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


def test_figures_that_are_no_json_are_no_figures() -> None:
    outcome = run_part(Part("breaks off", _python("import sys; open(sys.argv[1], 'w').write('{')", FIGURES), 20))
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
    parts = [Part(name, _python(copy, str(path), FIGURES), 20) for name, path in files.items()]
    out = tmp_path / "out.json"
    run_all([*parts, Part("fails", _python("raise SystemExit(3)"), 20)], out, torch.device("cpu"))
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
    assert run_part(Part("parent", _python(code), 3.0)).status == "late"
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
    out = tmp_path / "out.json"
    look = f"import json; assert [p['name'] for p in json.load(open({str(out)!r}))['parts']] == ['one']"
    outcomes = run_all((Part("one", _python(""), 20), Part("two", _python(look), 20)), out, torch.device("cpu"))
    assert [o.status for o in outcomes] == ["passed", "passed"], outcomes


def test_the_list_and_the_limits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" s  ")[1] for line in lines] == [part.name for part in PARTS]
    assert sum(part.limit_s for part in PARTS if part.name != "ladder") <= 9 * 60
    assert all(part.limit_s <= 9 * 60 for part in PARTS)
    assert len({part.name for part in PARTS}) == len(PARTS)


def test_every_benchmark_of_an_op_is_a_part() -> None:
    files = {f"benchmarks/{path.name}" for path in (gpu.ROOT / "benchmarks").glob("bench_*.py")}
    assert files <= {argument for part in PARTS for argument in part.command}


def test_without_a_gpu_one_sentence_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--out", str(tmp_path / "none.json")]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err == "This needs a CUDA GPU, and the machine has none that torch can use.\n"
    assert os.listdir(tmp_path) == []
