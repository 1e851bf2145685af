"""An edit that was interrupted goes on where it was, with the same bytes, and trusts nothing that is not its own."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from fairy.kernels.errors import Cancelled, MachineError
from fairy.runtime import Editor, EditParams, Progress
from fairy.runtime.denoise.segment_edit import SegmentEdit
from fairy.runtime.plan.plan import Plan
from fairy.runtime.video import VideoWriter
from tests.runtime.conftest import make_frames, write_clip

PARAMS = EditParams("make it snow", num_inference_steps=2, anchors=2, micro_batch=2, seed=5)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", make_frames(12), sound=False)


def interrupt(editor: Editor, video: Path, out: Path, after: int, params: EditParams = PARAMS) -> None:
    """Edit until so many micro-batches are done."""
    cancel = Event()

    def on_progress(progress: Progress) -> None:
        if progress.stage == "frames" and progress.done > after * 2:
            cancel.set()

    with pytest.raises(Cancelled):
        editor.edit_file(video, out, params, on_progress=on_progress, cancel=cancel)


def count_denoised(editor: Editor, monkeypatch: pytest.MonkeyPatch, roles: tuple[str, ...] = ("frames",)) -> list[int]:
    done: list[int] = []
    really = SegmentEdit.compute

    def counted(self, task, *rest):
        if task.role in roles:
            done.extend(task.frames)
        return really(self, task, *rest)

    monkeypatch.setattr(SegmentEdit, "compute", counted)
    return done


@pytest.mark.parametrize("keep_details", [False, True])
def test_it_goes_on_from_the_finished_micro_batches(
    editor: Editor, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_details: bool
) -> None:
    whole, out = tmp_path / "whole.mp4", tmp_path / "out.mp4"
    params = replace(PARAMS, keep_details=keep_details)
    expected = editor.edit_file(video, whole, params)
    interrupt(editor, video, out, 3, params)
    assert not out.exists()
    kept = sorted(path.name.split("-")[0] for path in (tmp_path / "out.mp4.job").iterdir())
    assert kept == ["000000", "000001", "000002", "anchors", "identity"]
    denoised, told = count_denoised(editor, monkeypatch), []
    report = editor.edit_file(video, out, params, resume=True, on_progress=told.append)
    assert len(denoised) == 10 - 3 * 2
    assert (report.resumed_batches, expected.resumed_batches) == (3, 0)
    assert report.frames_sha256 == expected.frames_sha256
    assert out.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "out.mp4.job").exists()
    frames = [p.done for p in told if p.stage == "frames"]
    assert frames == sorted(frames)
    assert frames[-1] == 10


def test_it_goes_on_into_another_container(
    editor: Editor, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file could not be finished, its frames were computed all the same."""
    expected = editor.edit_file(video, tmp_path / "whole.mkv", PARAMS)
    monkeypatch.setattr(VideoWriter, "close", failing)
    with pytest.raises(MachineError, match="the trailer") as caught:
        editor.edit_file(video, tmp_path / "out.mov", PARAMS)
    assert any("--resume" in note and "another container" in note for note in caught.value.__notes__)
    monkeypatch.undo()
    denoised = count_denoised(editor, monkeypatch, ("frames", "anchors"))
    report = editor.edit_file(video, tmp_path / "out.mkv", PARAMS, resume=True)
    assert denoised == []  # not even the anchors
    assert any("out.mov.job" in note for note in report.notes)
    assert report.frames_sha256 == expected.frames_sha256
    assert (tmp_path / "out.mkv").read_bytes() == (tmp_path / "whole.mkv").read_bytes()
    assert not list(tmp_path.glob("*.job"))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"shots": (7,)}, {"keep_details": True}])
def test_where_all_was_computed_workers_only_decode(
    checkpoint_folder: Path, editor: Editor, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict
) -> None:
    """But for what is damaged, and for the bank that this needs."""
    params = replace(PARAMS, **changes)
    expected = editor.edit_file(video, tmp_path / "whole.mkv", params).frames_sha256
    with Editor.from_pretrained(checkpoint_folder, device="cpu", workers=2) as crew:
        with monkeypatch.context() as patch:
            patch.setattr(VideoWriter, "close", failing)
            for name in ("out.mov", "spoilt.mov"):
                with pytest.raises(MachineError, match="the trailer"):
                    crew.edit_file(video, tmp_path / name, params)
        decoded = crew.edit_file(video, tmp_path / "out.mkv", params, resume=True)
        flip_a_bit(part(tmp_path / "spoilt.mov.job", 1))
        mended = crew.edit_file(video, tmp_path / "spoilt.mkv", params, resume=True)
    assert decoded.frames_sha256 == mended.frames_sha256 == expected
    assert not {"anchors", "frames"} & set(decoded.times_ms)
    assert {"anchors", "frames"} <= set(mended.times_ms)
    assert any("damaged" in note for note in mended.notes)


def test_the_look_goes_on_from_a_shot_that_was_finished(
    editor: Editor, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next shot needs the keys and values of an anchor that need not be computed for its own frames."""
    params = replace(PARAMS, shots=(6,), continue_look=True)
    expected = editor.edit_file(video, tmp_path / "whole.mp4", params).frames_sha256
    interrupt(editor, video, tmp_path / "out.mp4", after=2, params=params)
    assert editor.edit_file(video, tmp_path / "out.mp4", params, resume=True).frames_sha256 == expected


def failing(_: object) -> None:
    raise MachineError("Writing failed: the trailer.")


def test_without_being_asked_it_begins_anew(editor: Editor, video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    interrupt(editor, video, out, 2)
    mine = tmp_path / "out.mp4.job" / "notes of mine.txt"
    mine.write_text("keep me")
    assert editor.edit_file(video, out, PARAMS).resumed_batches == 0
    assert [path.name for path in (tmp_path / "out.mp4.job").iterdir()] == [mine.name]


@pytest.mark.parametrize(
    ("spoil", "resumed", "note"),
    [
        (lambda job: part(job, 1).write_bytes(b"nonsense"), 2, "000001-.*.safetensors .* is damaged"),
        (lambda job: flip_a_bit(part(job, 2)), 2, "000002-.*.safetensors .* is damaged"),
        (lambda job: part(job, 0).unlink(), 2, None),
        (lambda job: part(job, 0).replace(str(part(job, 0)).replace("000000", "000004")), 2, None),
        (lambda job: next(job.glob("identity-*")).write_text("{}"), 0, "is of another edit .another"),
        (lambda job: next(job.glob("identity-*")).write_text("[oh"), 0, "its identity cannot be read"),
    ],
)
def test_what_is_wrong_is_computed_again(
    editor: Editor, video: Path, tmp_path: Path, spoil, resumed: int, note: str | None
) -> None:
    import re

    out = tmp_path / "out.mp4"
    expected = editor.edit_file(video, tmp_path / "whole.mp4", PARAMS).frames_sha256
    interrupt(editor, video, out, 3)
    spoil(tmp_path / "out.mp4.job")
    report = editor.edit_file(video, out, PARAMS, resume=True)
    assert report.frames_sha256 == expected
    assert report.resumed_batches == resumed
    assert note is None or any(re.search(note, sentence) for sentence in report.notes), report.notes


def part(job: Path, number: int) -> Path:
    """The file of a finished micro-batch."""
    return next(job.glob(f"{number:06d}-*.safetensors"))


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)


def test_another_edit_or_a_changed_video_is_not_gone_on_with(editor: Editor, video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    interrupt(editor, video, out, 2)
    other = EditParams("make it night", num_inference_steps=2, anchors=2, micro_batch=2, seed=5)
    report = editor.edit_file(video, out, other, resume=True)
    assert report.resumed_batches == 0
    assert any("another params" in note for note in report.notes)
    interrupt(editor, video, out, 2)
    write_clip(video, make_frames(12, seed=9), sound=False)
    report = editor.edit_file(video, out, PARAMS, resume=True)
    assert report.resumed_batches == 0
    assert any("another source" in note for note in report.notes)
    report = editor.edit_file(video, out, PARAMS, resume=True)
    assert any("There is no out.mp4.job" in note for note in report.notes)


def test_a_wrong_option_costs_nothing_of_what_was_finished(editor: Editor, video: Path, tmp_path: Path) -> None:
    """An edit with another seed, resumed or not, and the same one begun anew leave it for the one that goes on."""
    out = tmp_path / "out.mp4"
    whole = editor.edit_file(video, tmp_path / "whole.mp4", PARAMS)
    interrupt(editor, video, out, 3)
    other = interrupted_at_the_anchors(editor, video, out, replace(PARAMS, seed=6), resume=True)
    assert not getattr(other, "__notes__", []), "nothing of that edit is kept"
    same = interrupted_at_the_anchors(editor, video, out, PARAMS)
    assert "add --resume" in same.__notes__[0]
    report = editor.edit_file(video, out, PARAMS, resume=True)
    assert (report.resumed_batches, report.frames_sha256) == (3, whole.frames_sha256)
    assert not (tmp_path / "out.mp4.job").exists()


def interrupted_at_the_anchors(editor: Editor, video: Path, out: Path, params: EditParams, **more: bool) -> Cancelled:
    """What an edit raises that is cancelled once it has begun."""
    cancel = Event()

    def on_progress(progress: Progress) -> None:
        if progress.stage == "anchors":
            cancel.set()

    with pytest.raises(Cancelled) as caught:
        editor.edit_file(video, out, params, on_progress=on_progress, cancel=cancel, **more)
    return caught.value


def test_beginning_anew_says_what_was_there(editor: Editor, video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    interrupt(editor, video, out, 3)
    report = editor.edit_file(video, out, PARAMS)
    assert any("held 3 finished micro-batches" in note and "--resume" in note for note in report.notes)


def test_the_last_of_the_disk_is_for_the_video(
    editor: Editor, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Plan, "likely_bytes", 1 << 60)
    report = editor.edit_file(video, tmp_path / "out.mp4", PARAMS)
    assert any("which the edited video needs" in note for note in report.notes), report.notes
    assert not (tmp_path / "out.mp4.job").exists()


def test_a_disk_that_takes_no_journal_costs_the_journal_only(editor: Editor, video: Path, tmp_path: Path) -> None:
    (tmp_path / "out.mp4.job").write_text("in the way")
    report = editor.edit_file(video, tmp_path / "out.mp4", PARAMS)
    assert any("could not be written" in note for note in report.notes)
    assert (tmp_path / "out.mp4").exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.nightly), 2])
def test_a_killed_command_goes_on(checkpoint_folder: Path, editor: Editor, tmp_path: Path, workers: int) -> None:
    """SIGKILL in the middle; then --resume, with another number of workers than before."""
    video, out = write_clip(tmp_path / "clip.mp4", make_frames(40), sound=False), tmp_path / "out.mp4"
    expected = editor.edit_file(video, tmp_path / "whole.mp4", PARAMS).frames_sha256
    command = [sys.executable, "-m", "fairy.runtime.cli.main", "edit", str(video), PARAMS.prompt, "-o", str(out)]
    command += ["--model", str(checkpoint_folder), "--steps", "2", "--anchors", "2", "--micro-batch", "2", "--quiet"]
    command += ["--seed", "5"]
    process = subprocess.Popen([*command, "--workers", str(workers)])
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("out.mp4.job/000002-*.safetensors")) and time.monotonic() < deadline:
            assert process.poll() is None, "the edit ended before it could be killed"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert not out.exists()
    with Editor.from_pretrained(checkpoint_folder, device="cpu", workers=3 - workers) as other:
        report = other.edit_file(video, out, PARAMS, resume=True)
    assert report.frames_sha256 == expected
    assert report.resumed_batches >= 3
    assert np.array_equal(np.frombuffer(out.read_bytes(), np.uint8), np.fromfile(tmp_path / "whole.mp4", np.uint8))
    assert not (tmp_path / "out.mp4.job").exists()
