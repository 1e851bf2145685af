"""The clip benchmark: its clip is what it says, its figures follow from its edits, its page opens offline."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from fairy.benchmarks import clip as clip_module
from fairy.benchmarks.clip import Request, Run, heading, run_clip, sample_forwards, table
from fairy.benchmarks.clip_source import INSTRUCTION, PAN, generate_clip, sepia
from fairy.benchmarks.gate import Limits, compare, failed
from fairy.benchmarks.measures import psnr, warp, warp_error
from fairy.benchmarks.page import NO_PLOTS, page, write_page
from fairy.benchmarks.records import RecordFile, read_records
from fairy.kernels.errors import InputError
from fairy.runtime.cli.main import run as run_cli
from training.looks import apply_look

TINY = Request(frames=4, long_side=32, steps=2, repeats=2, anchors=2)


def test_the_clip_moves_as_its_flow_says() -> None:
    made = generate_clip(4, 21, 38)
    right, down = PAN
    for t in range(3):
        before, after = made.source[t], made.source[t + 1]
        assert (after[: 21 - down, : 38 - right] == before[down:, right:]).all()
        assert not (after == before).all()
        moved = warp(before, made.flows[t])
        inside = made.visible[t]
        assert inside.sum() == (21 - down) * (38 - right)
        assert np.abs(moved - after)[inside].max() < 1e-4
    assert warp_error(made.target, made.flows, made.visible) < 1e-6
    assert (generate_clip(4, 21, 38).source == made.source).all()


def test_the_target_is_the_look_that_the_model_was_trained_on() -> None:
    made = generate_clip(2, 24, 32)
    look = apply_look("sepia", (made.source[0] / 255).astype(np.float32))
    assert np.abs(look - sepia(made.source[0] / 255.0)).max() < 1e-6
    assert np.abs(made.target[0] / 255.0 - look).max() <= 0.5 / 255 + 1e-6
    assert psnr(made.source, made.target) < 25, "the instruction changes the picture"


@pytest.fixture(scope="module")
def measured() -> Run:
    return run_clip(TINY)


def test_figures_follow_from_the_edits(measured: Run) -> None:
    assert [way.name for way in measured.ways] == ["2 anchors", "frame by frame"]
    made = generate_clip(4, 24, 32)
    for way, record in zip(measured.ways, measured.records, strict=True):
        assert record.timing is not None
        times = [edit.ms for edit in way.edits]
        assert len(times) == record.timing.runs == 2
        assert record.timing.median_ms == pytest.approx(sum(times) / 2)
        assert record.figures["frames_per_s"] == pytest.approx(4e3 / record.timing.median_ms)
        assert sum(record.figures["stages_ms"].values()) <= max(times) * 1.05
        assert record.quality["psnr_db"].value == psnr(way.frames, made.target)
        assert record.quality["warp_error"].value == warp_error(way.frames, made.flows, made.visible)
        assert record.quality["psnr_to_reference_db"].value == 100, "eager in float32 is the reference itself"
        assert record.figures["peak_bytes"] > 50e6
        assert record.recipe["params"]["anchors"] == list(way.report.anchors)
    one, other = measured.records
    assert one.recipe_sha256 != other.recipe_sha256
    spent = one.figures["stages_ms"]
    # 2 steps · 1 branch (the embedded model's guidance of 1 leaves out the others) · (2 anchors + a batch of 3)
    assert one.figures["ms_per_forward"] == pytest.approx((spent["anchors"] + spent["frames"]) / (2 * 1 * (2 + 3)))


@pytest.mark.parametrize(
    ("anchors", "frames", "micro_batch", "scales", "expected"),
    [(3, 9, 3, (7.5, 1.5), 10 * 3 * 9), (3, 10, 3, (7.5, 1.5), 10 * 3 * 12), (0, 7, 4, (1.0, 1.0), 10 * 1 * 8)],
)
def test_sample_forwards_count_what_was_filled_up(
    anchors: int, frames: int, micro_batch: int, scales: tuple[float, float], expected: int
) -> None:
    params = {"num_inference_steps": 10, "guidance_scale": scales[0], "image_guidance_scale": scales[1]}
    report: Any = SimpleNamespace(
        params=params, anchors=tuple(range(anchors)), num_frames=frames, micro_batch=micro_batch
    )
    assert sample_forwards(report) == expected


def test_the_gate_sees_noise_on_the_edited_frames(measured: Run) -> None:
    """Noise on the frames that a real edit gave, after the same time."""
    way, record = measured.ways[0], measured.records[0]
    rng = np.random.default_rng(0)
    noisy = np.clip(way.frames + rng.normal(0, 5, way.frames.shape), 0, 255).round().astype(np.uint8)
    worse = replace(way, edits=(replace(way.edits[-1], result=replace(way.edits[-1].result, frames=noisy)),))
    clip = generate_clip(4, 24, 32)
    quality = clip_module._quality(worse, way.frames, clip, known_target=True)
    base, new = (RecordFile({record.name: r}, {}) for r in (record, replace(record, quality=quality)))
    (verdict,) = compare(base, new, Limits(min_runs=1, max_spread=1e6))
    bad = {finding.says.split()[0] for finding in verdict.findings if finding.status == "regression"}
    assert bad == {"psnr_db", "warp_error", "psnr_to_reference_db"}
    assert failed([verdict])
    assert not failed(compare(base, base, Limits(min_runs=1, max_spread=1e6)))


class _Page(HTMLParser):
    """What a page refers to, its text, and whether its elements are closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href", "action")]
        self.ids += [value or "" for name, value in attributes if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _parsed(text: str) -> _Page:
    found = _Page()
    found.feed(text)
    found.close()
    assert found.open == []
    return found


def test_the_page_is_whole_and_needs_nothing_else(measured: Run, tmp_path: Path) -> None:
    assert write_page(measured, tmp_path / "page.html") is None
    text = (tmp_path / "page.html").read_text()
    found = _parsed(text)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in found.links), found.links
    assert "script" not in found.tags
    assert "link" not in found.tags
    assert "url(http" not in text
    assert "@import" not in text
    assert found.tags.count("svg") == 2
    assert len(set(found.ids)) == len(found.ids), "identifiers of two plots meet"
    assert {link[1:] for link in found.links if link[0] == "#"} <= set(found.ids)
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert "currentColor" in svg
        assert "#010203" not in svg
    assert found.tags.count("img") == 4, "source, two ways, target"
    assert "prefers-color-scheme: dark" in text
    record = measured.records[0]
    assert record.recipe_sha256 in found.text
    assert f"{record.figures['frames_per_s']:.3g}" in found.text


def test_the_page_escapes_what_it_is_given(measured: Run) -> None:
    evil = replace(measured.ways[0], name="<script>alert(1)</script>")
    evil = replace(evil, params=replace(evil.params, prompt='"><img src=http://x>'))
    found = _parsed(page(replace(measured, ways=(evil, measured.ways[1]))))
    assert "script" not in found.tags
    assert found.tags.count("img") == 4
    assert "<script>alert(1)</script>" in found.text
    assert NO_PLOTS in found.text


def test_without_matplotlib_there_is_a_page_and_a_sentence(
    measured: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert write_page(measured, tmp_path / "page.html") == NO_PLOTS
    assert "fairy-runtime[bench]" in _parsed((tmp_path / "page.html").read_text()).text


def test_the_table_is_one_line_a_way(measured: Run) -> None:
    lines = table(measured).splitlines()
    assert len(lines) == 3
    assert len({len(line) for line in lines}) == 1
    assert {"frames/s", "forward", "MiB", "J/frame", "PSNR", "warp"} <= set(lines[0].split())
    assert "4 frames, 32×24, 2 steps, the embedded model, eager float32 on " in heading(measured)


@pytest.mark.slow
def test_the_command_measures_a_video_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of pictures, with half the precision: then the reference is another computation."""
    from PIL import Image

    folder, out = tmp_path / "clip", tmp_path / "out"
    folder.mkdir()
    for i, frame in enumerate(generate_clip(3, 24, 32).source):
        Image.fromarray(frame).save(folder / f"{i}.png")
    options = ["--video", str(folder), "--prompt", "make it snow", "--frames", "3", "--anchors", "1"]
    tail = ["--steps", "1", "--repeats", "1", "--dtype", "bfloat16", "--out", str(out)]
    assert run_cli(["bench", *options, *tail]) == 0
    stdout = capsys.readouterr().out
    assert "1 anchor" in stdout
    assert str(out / "page.html") in stdout
    records = read_records(out / "record.json").records
    assert set(records) == {f"clip, {way}, eager bfloat16" for way in ("1 anchor", "frame by frame")}
    for record in records.values():
        assert set(record.quality) == {"psnr_to_reference_db"}
        assert 15 < record.quality["psnr_to_reference_db"].value < 99
        assert record.recipe["source"]["clip"] == "given"
        assert record.recipe["params"]["prompt"] == "make it snow"
    assert json.loads((out / "record.json").read_text())["refused"] == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--frames", "1"], "--frames 1 is not possible"),
        (["--repeats", "0"], "--repeats 0 is not possible"),
        (["--video", "clip.mp4"], "needs an instruction"),
        (["--device", "tpu"], "tpu"),
        (["--out", "/no/such/folder"], "/no/such/folder cannot be made"),
        (["--steps", "3", "scaling"], "--steps stands before scaling"),
    ],
)
def test_impossible_options_are_one_sentence(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_cli(["bench", *arguments]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.strip().splitlines()) == 1


def test_a_run_that_throttled_leaves_no_record(
    measured: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hot = tuple(
        replace(record, timing=replace(record.timing, throttled=("power cap",)))  # type: ignore[type-var]
        for record in measured.records
    )
    from fairy.benchmarks import clip_command

    monkeypatch.setattr(clip_command, "run_clip", lambda request, tell: replace(measured, records=hot))
    assert run_cli(["bench", "--out", str(tmp_path / "out")]) == 1
    stdout, stderr = capsys.readouterr()
    assert "the clocks were slowed (power cap)" in stderr
    assert "frames/s" in stdout, "the figures are shown, not kept"
    assert not (tmp_path / "out" / "record.json").exists()


def test_requests_know_when_the_target_is_exact() -> None:
    assert Request().known_target
    assert Request(prompt=INSTRUCTION).known_target
    assert not Request(prompt="make it snow").known_target
    assert not Request(model="another").known_target
    assert not Request(video=Path("x.mp4"), prompt=INSTRUCTION).known_target
    with pytest.raises(InputError, match="long_side = 4"):
        Request(long_side=4)


PEAKS = """
import numpy as np, torch
from fairy.benchmarks.clip import _peak_bytes
peaks = []
for size in (0, 200_000_000, 0):
    with _peak_bytes(torch.device("cpu")) as peak:
        block = np.ones(size, np.uint8)
    del block
    peaks.append(peak[0])
print(*peaks)
"""


def test_peak_memory_is_that_of_the_block() -> None:
    """In a process of its own, for one in which a command ran keeps what it frees."""
    done = subprocess.run([sys.executable, "-P", "-c", PEAKS], capture_output=True, text=True, check=True, cwd="/")
    small, large, again = map(int, done.stdout.split())
    assert large - small > 150e6
    assert large - again > 150e6, "what an earlier block took is not counted"


@pytest.mark.slow
def test_the_clip_benchmark_needs_only_the_installed_package() -> None:
    """Its modules import nothing of the checkout's folders."""
    code = (
        "import sys, fairy.benchmarks.clip_command, fairy.benchmarks.gate, fairy.benchmarks.counts; "
        "print(sorted(n for n in sys.modules if n.split('.')[0] in ('training', 'tests', 'benchmarks', 'examples')))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.strip() == "[]"


def test_joules_a_frame_are_those_between_two_readings(measured: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([100.0, 106.0, 110.0, 118.0])
    monkeypatch.setattr(clip_module, "energy_j", lambda device: next(readings))
    editor: Any = SimpleNamespace(edit=lambda frames, params: measured.ways[0].edits[0].result)
    params = measured.ways[0].params
    edits = tuple(clip_module._edit(editor, measured.source, params, torch.device("cpu")) for _ in range(2))
    assert [edit.joules for edit in edits] == [6.0, 8.0]
    figures = clip_module._figures(replace(measured.ways[0], edits=edits))
    assert figures["joules_per_frame"] == 7.0 / 4
    assert measured.records[0].figures["joules_per_frame"] is None
