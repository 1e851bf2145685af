"""Whole edits by Pix2Video on a small random InstructPix2Pix-type model."""

import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairy.runtime import Cancelled, Editor, EditParams, InputError, Progress
from fairy.runtime.cli.main import run
from fairy.runtime.denoise.prediction import Prediction
from fairy.runtime.denoise.segment_edit import SegmentEdit
from fairy.runtime.methods import Method
from fairy.runtime.plan import memory
from fairy.runtime.video import probe
from tests.runtime.conftest import write_clip

PIX2VIDEO = {"method": "pix2video", "num_inference_steps": 3}
BASE = EditParams("make it red", **PIX2VIDEO)


def edit(editor: Editor, frames: np.ndarray, **changes: object) -> np.ndarray:
    return editor.edit(frames, EditParams("make it red", **{**PIX2VIDEO, **changes})).frames


def levels(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.fixture(scope="module")
def edited(small: Editor, short: np.ndarray) -> np.ndarray:
    return edit(small, short)


@pytest.mark.parametrize("change", [{"order": "step-major"}, {"micro_batch": 1}, {"micro_batch": 2}])
def test_orders_and_batches_agree_within_rounding(small: Editor, short, edited, change: dict) -> None:
    assert levels(edit(small, short, **change), edited) <= 1


def test_the_first_frame_is_edited_as_if_it_were_alone(small: Editor, short, edited) -> None:
    alone = edit(small, short[:1], method="per_frame")
    assert levels(alone, edited[:1]) <= 1
    assert levels(edit(small, short, method="per_frame")[1:], edited[1:]) > 3
    assert levels(edit(small, short[:1]), alone) <= 1


def test_a_frame_depends_on_those_before_it_and_not_on_those_after(small: Editor, short, edited) -> None:
    changed = short.copy()
    changed[3] = 255 - changed[3]
    other = edit(small, changed)
    assert levels(other[:3], edited[:3]) <= 1
    assert all(levels(other[i], edited[i]) > 0 for i in range(3, 6))
    assert levels(edit(small, short[:4]), edited[:4]) <= 1


@pytest.mark.parametrize(
    "change",
    [
        {"delta": 0.0},
        {"delta": 1e4},
        {"update_steps": 0},
        {"layers": "all"},
        {"sampler": "ddim"},
    ],
)
def test_every_parameter_has_an_effect(small: Editor, short, change: dict) -> None:
    strong = {"delta": 3000.0}  # a random network's predictions hardly differ, so that the usual pull is hardly seen
    assert levels(edit(small, short, **strong), edit(small, short, **{**strong, **change})) > 0


def test_per_frame_is_fairy_without_anchors(small: Editor, short) -> None:
    assert np.array_equal(edit(small, short, method="per_frame"), edit(small, short, method="fairy", anchors=0))
    small.warm_up(24, 40, BASE)


def test_the_report_says_what_was_used(small: Editor, short) -> None:
    report = small.edit(short, BASE).report
    told = {"method": "pix2video", "order": "wavefront", "layers": "decoder", "delta": 100.0, "update_steps": 2}
    assert told.items() <= report.params.items()
    assert report.anchors == (0,)
    assert report.bank_bytes > 0
    frugal = small.edit(short, EditParams("make it red", **PIX2VIDEO, order="step-major", micro_batch=1)).report
    assert frugal.bank_bytes < report.bank_bytes


def test_every_shot_is_edited_on_its_own(small: Editor, short) -> None:
    shots = small.edit(short, EditParams("make it red", **PIX2VIDEO, shots=[2, 5]))
    alone = [edit(small, short[a:b]) for a, b in ((0, 2), (2, 5), (5, 6))]
    assert np.array_equal(shots.frames, np.concatenate(alone))
    assert shots.report.anchors == (0, 2, 5)
    told: list[Progress] = []
    small.edit(short, EditParams("make it red", **PIX2VIDEO, shots=[2, 5]), on_progress=told.append)
    assert [p.done for p in told if p.stage == "anchors"] == list(range(1, 10))


def test_frames_leave_as_soon_as_they_are_done(small: Editor, short, monkeypatch: pytest.MonkeyPatch) -> None:
    """In waves, no more frames are at work than there are steps, besides a part."""
    most: list[int] = []
    begin = SegmentEdit.begin_with

    def counted(self: SegmentEdit, frames, *rest: object) -> None:
        begin(self, frames, *rest)  # type: ignore[arg-type]
        most.extend([len(self._frames)] * len(frames))

    monkeypatch.setattr(SegmentEdit, "begin_with", counted)
    frames = np.concatenate([short, short])
    params = EditParams("make it red", method="pix2video", num_inference_steps=2, micro_batch=2)
    parts = list(small.stream(frames, params))
    assert [part.start for part in parts] == [0, *np.cumsum([len(part.frames) for part in parts])[:-1].tolist()]
    assert len(parts) == 6
    assert max(most) <= 2 + 2
    assert len(most) == len(frames)


def test_progress_is_of_units_and_cancelling_stops_it(small: Editor, short) -> None:
    told: list[Progress] = []
    small.edit(short, BASE, on_progress=told.append)
    frames = [p for p in told if p.stage == "frames"]
    assert [p.done for p in frames] == sorted(p.done for p in frames)
    assert (frames[-1].done, frames[-1].total) == (15, 15)
    assert [(p.done, p.total) for p in told if p.stage == "anchors"] == [(1, 3), (2, 3), (3, 3)]
    cancel = threading.Event()

    def stop(progress: Progress) -> None:
        if progress.stage == "frames" and progress.done >= 3:
            cancel.set()

    with pytest.raises(Cancelled):
        small.edit(short, BASE, on_progress=stop, cancel=cancel)


def test_a_batch_that_does_not_fit_is_halved(small: Editor, short, edited, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = Prediction.__call__

    def limited(self: Prediction, steps, scaled):
        if len(steps) > 1:
            raise torch.OutOfMemoryError("no memory")
        return ask(self, steps, scaled)

    monkeypatch.setattr(Prediction, "__call__", limited)
    result = small.edit(short, BASE)
    assert levels(result.frames, edited) <= 1
    assert any("The memory did not suffice for 2 frames at once" in sentence for sentence in result.report.fallbacks)


@pytest.mark.parametrize("which", ["output", "keys"])
def test_what_overflows_in_16_bit_is_computed_again_in_float32(
    small_folder: Path, short, edited, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    ask = Prediction.__call__

    def overflowing(self: Prediction, steps, scaled):
        found = dict(ask(self, steps, scaled))
        if self.precision != torch.float32 and (2, 1) in self.context.units(steps):
            name = "output" if which == "output" else next(name for name in found if name != "output")
            found[name] = torch.full_like(found[name], torch.inf)
        return found

    monkeypatch.setattr(Prediction, "__call__", overflowing)
    with Editor.from_pretrained(small_folder, device="cpu", dtype="bfloat16") as half:
        result = half.edit(short, BASE)
    assert any("computed again in float32" in sentence for sentence in result.report.fallbacks)
    assert np.abs(result.frames.astype(int) - edited).mean() < 12  # bfloat16 up to there


def test_the_methods_that_the_documentation_adds(small: Editor, short: np.ndarray) -> None:
    """docs/methods.md's page of code, as it stands there."""
    text = (Path(__file__).resolve().parents[3] / "docs" / "methods.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    window, first = names["SLIDING_WINDOW"], names["FIRST_FRAME"]
    changed = short.copy()
    changed[1] = 255 - changed[1]
    one, other = edit(small, short, method=window), edit(small, changed, method=window)
    assert levels(other[0], one[0]) == 0
    assert all(levels(other[i], one[i]) > 0 for i in range(1, 6))
    alone, beside = edit(small, short, method=first), edit(small, changed, method=first)
    assert levels(np.delete(beside, 1, 0), np.delete(alone, 1, 0)) <= 1
    assert levels(edit(small, short, method=first, order="step-major"), alone) <= 1
    assert names["edit_with_a_window"](small, short).report.params["method"] == "sliding_window"


def test_rules_that_read_ahead_are_refused(small: Editor, short) -> None:
    ahead = Method("ahead", lambda i, _: (i + 1,) if i < 5 else (), False, "decoder", "first", ("wavefront",))
    with pytest.raises(InputError, match="'ahead' lets frame 0 read"):
        edit(small, short, method=ahead)


def test_rules_that_an_order_cannot_serve_are_refused() -> None:
    with pytest.raises(InputError, match="'mine' cannot have the order 'parallel'"):
        Method("mine", lambda i, _: (0,), True, "all", "none", ("parallel",))
    with pytest.raises(InputError, match="'mine' needs an order, and anchors = 'first'"):
        Method("mine", lambda i, _: (), True, "all", "none", ("wavefront",))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "tokenflow"}, "method = 'tokenflow' is not known"),
        ({"method": ["fairy"]}, r"method = \['fairy'\] is not known"),
        ({"method": "pix2video", "anchors": 3}, "anchors = 3 does not fit the method pix2video"),
        ({"method": "pix2video", "anchors": 0}, "anchors = 0 does not fit"),
        ({"method": "per_frame", "anchors": [1]}, r"anchors = \[1\] does not fit the method per_frame"),
        ({"method": "pix2video", "continue_look": True}, "continue_look does not fit"),
        (
            {"method": "fairy", "order": "wavefront"},
            "order = 'wavefront' does not fit the method fairy; choose parallel",
        ),
        ({"method": "pix2video", "order": "parallel"}, "choose wavefront or step-major"),
        ({"order": "sideways"}, "order = 'sideways' is not known"),
        ({"delta": 3.0}, "delta does not fit the method fairy"),
        ({"method": "pix2video", "delta": -1.0}, "delta = -1 is not possible"),
        ({"method": "pix2video", "update_steps": 1.5}, "update_steps = 1.5 is not possible"),
        ({"source_prompt": 3}, "source_prompt must be text"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        EditParams("make it red", **options)


def test_what_a_model_or_a_machine_cannot_serve_is_refused(
    small: Editor, short, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="source_prompt is for depth-conditioned models"):
        edit(small, short, source_prompt="a cat")
    with pytest.raises(InputError, match="the method per_frame asks for none"):
        small.edit(short, EditParams("x", method="per_frame"), preview=tmp_path / "p.png")
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10_000)
    with pytest.raises(InputError, match=r'only 0.0 GB are free; choose order="step-major" or a smaller long side'):
        edit(small, short)
    with pytest.raises(InputError, match=r"free; choose a smaller long side"):
        edit(small, short, order="step-major")


def test_the_command_line(small_folder: Path, short, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, out, preview = write_clip(tmp_path / "clip.mp4", short), tmp_path / "out.mp4", tmp_path / "first.png"
    words = ["edit", str(clip), "make it red", "-o", str(out), "--model", str(small_folder), "--device", "cpu"]
    words += ["--method", "pix2video", "--steps", "2", "--quiet"]
    assert run([*words, "--preview", str(preview), "--order", "step-major", "--update-steps", "1"]) == 0
    assert probe(out).num_frames == 6
    assert preview.exists()
    assert run([*words, "--workers", "2"]) == 2
    assert "2 processes cannot share the method pix2video" in capsys.readouterr().err
    assert run([*words, "--anchors", "2"]) == 2
    assert "--anchors 2 does not fit the method pix2video" in capsys.readouterr().err
    assert run([*words, "--resume"]) == 2
    assert "resume does not fit the method pix2video" in capsys.readouterr().err


@pytest.mark.parametrize("anchors", [0, 2])
def test_fairy_runs_in_the_order_of_the_scheduler(
    small: Editor, short, anchors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call of the UNet in a real edit, by graph and number of frames, against the scheduler's batches."""
    calls: list[tuple[str, int]] = []
    backend = small._networks.backend
    engine = backend.engine

    def spied(graph, precision=None):
        made = engine(graph, precision)
        return _Spy(made, calls) if graph.layers else made

    monkeypatch.setattr(backend, "engine", spied)
    params = EditParams("make it red", num_inference_steps=2, anchors=anchors, micro_batch=2)
    report = small.edit(short, params).report
    chosen = report.anchors
    expected: list[tuple[str, int]] = []
    if chosen:
        expected += [("unet_anchor", len(chosen))] * 2
    batches = -(-(6 - len(chosen)) // 2)  # the last one is filled up
    expected += [("unet_frame" if chosen else "unet", 2)] * (2 * batches)
    assert calls == expected


class _Spy:
    """An engine that tells which graph was called with how many frames."""

    def __init__(self, engine, calls: list[tuple[str, int]]) -> None:
        self.engine, self.calls = engine, calls

    def __call__(self, inputs, out=None):
        self.calls.append((self.engine.spec.graph.name, inputs["sample"].shape[1]))
        return self.engine(inputs, out)
