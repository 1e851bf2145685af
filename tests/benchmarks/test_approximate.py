"""The table of approximations from real edits of tiny clips, and its figures against values worked out by hand."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.measures import psnr
from fairy.benchmarks import approximate
from fairy.kernels.errors import InputError
from fairy.runtime.cli.main import app
from tests.conftest import ROOT

GUIDED = str(ROOT / "training" / "checkpoints" / "embedded4")  # ten steps with guidance, of which some can be left out
SMALL = {"model": GUIDED, "clips": 1, "frames": 5, "size": 64, "repeats": 1, "decoder": "tiny", "device": "cpu"}
SMALL |= {"dtype": "auto", "backend": "eager", "threads": 1, "out": None, "tell": str}


def figures(row: str, clip: str, seconds: float, psnr_target_db: float | None) -> approximate.Figures:
    exact = None if row == approximate.EXACT else 30.0
    return approximate.Figures(row, clip, seconds, 6.0 / seconds, 12.5, exact, psnr_target_db, 3.0, 0.5)


def test_table_has_means_over_clips_and_says_nothing_where_there_is_nothing() -> None:
    rows = [figures("exact", "a", 6.0, 20.0), figures("exact", "b", 6.0, None)]
    rows += [figures("quick", "a", 2.0, 18.0), figures("quick", "b", 3.0, None)]
    lines = approximate.table(rows).splitlines()
    assert len(lines) == 4
    cells = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    assert cells == ["exact", "6", "1", "12.5", "–", "20", "3", "0.5"]
    cells = [cell.strip() for cell in lines[3].split("|")[1:-1]]
    assert cells[:2] == ["quick", "2.5 (2…3)"]
    assert cells[2] == "2.5 (2…3)"
    assert cells[4:6] == ["30", "18"]


@pytest.mark.slow
def test_every_way_edits_and_is_compared(tmp_path: Path) -> None:
    text, written = approximate.run(**{**SMALL, "out": tmp_path / "new"})
    assert str(tmp_path / "new" / "results.json") in written
    assert (tmp_path / "new" / "results.md").read_text() == text
    data = json.loads((tmp_path / "new" / "results.json").read_text())
    found = {f["row"]: f for f in data["figures"]}
    assert list(found) == list(approximate.WAYS) == list(data["ways"])
    assert all(re.search(rf"^\| {re.escape(row)} \|", text, re.MULTILINE) for row in found)
    assert data["machine"]["threads"] == 1
    exact, eight_bit = found["exact"], found["bank in 8 bit"]
    assert exact["psnr_exact_db"] is None
    assert exact["speedup"] == 1.0
    others = [f["psnr_exact_db"] for f in found.values() if f is not exact]
    assert len(set(others)) == len(others)  # each approximates in a way of its own
    assert all(8 < value < 90 for value in others)
    assert eight_bit["bank_mb"] < 0.3 * exact["bank_mb"]  # 8 bit of 32
    assert found["Euler, 5 steps"]["bank_mb"] == pytest.approx(exact["bank_mb"] / 2)


@pytest.mark.slow
def test_figures_are_those_of_the_edits(tmp_path: Path) -> None:
    """The small decoder's row, edited anew by hand."""
    from benchmarks.clips import make_clip
    from fairy.runtime import Editor, EditParams

    list(approximate.run(**{**SMALL, "out": tmp_path}))
    data = json.loads((tmp_path / "results.json").read_text())
    row = next(f for f in data["figures"] if f["row"] == "small decoder")
    clip = make_clip(0, approximate.INSTRUCTIONS[0], num_frames=5, size=64)
    edits = []
    for decoder in (None, "tiny"):
        with Editor.from_pretrained(GUIDED, device="cpu", decoder=decoder) as editor:
            edits.append(editor.edit(clip.source, EditParams(clip.prompt)).frames)
    error = np.mean((edits[0].astype(float) - edits[1]) ** 2)
    assert row["psnr_exact_db"] == pytest.approx(10 * np.log10(255**2 / error))
    assert row["psnr_target_db"] == pytest.approx(psnr(edits[1], clip.target))


@pytest.mark.parametrize(("name", "value"), [("clips", 0), ("frames", 1), ("size", 16), ("repeats", 0)])
def test_what_cannot_be_measured_is_refused(name: str, value: int) -> None:
    result = CliRunner().invoke(app, ["bench", "approximate", f"--{name}", str(value)])
    assert isinstance(result.exception, InputError) or result.exit_code == 2
    with pytest.raises(InputError, match=f"{name} = {value} is not possible"):
        next(approximate.run(**{**SMALL, name: value}))


def test_a_wheel_without_training_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "__file__", str(tmp_path / "benchmarks" / "approximate.py"))
    with pytest.raises(InputError, match="only a checkout has"):
        next(approximate.run(**SMALL))
