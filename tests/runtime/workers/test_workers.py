"""Real worker processes with a random model: the same bytes for any number of them, whatever happens to one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from fairy.kernels.errors import InputError
from fairy.runtime import Editor, EditParams, Progress
from fairy.runtime import editor as editor_module
from fairy.runtime.record.edit_report import EditResult
from fairy.runtime.workers.pool import PoolOptions, WorkerPool
from tests.runtime.conftest import make_frames, write_clip

SILENT_S = 15.0
PARAMS = EditParams("make it red", num_inference_steps=2)
FRAMES = make_frames(12)
pytestmark = pytest.mark.slow


def other_pool(**changes: object):
    """What makes a pool with other options than those of `Editor.from_pretrained`."""

    def make(options: PoolOptions) -> WorkerPool:
        return WorkerPool(replace(options, **changes))

    return make


@pytest.fixture(scope="module")
def crew(checkpoint_folder: Path) -> Iterator[Editor]:
    """An Editor with three workers."""
    with Editor.from_pretrained(checkpoint_folder, device="cpu", workers=3) as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(editor: Editor) -> EditResult:
    """What one process makes of it."""
    return editor.edit(FRAMES, PARAMS)


def signal_at(crew: Editor, stage: str, done: int, number: int, which: signal.Signals):
    """Send a worker a signal at the moment this step is told."""
    sent = []

    def on_progress(progress: Progress) -> None:
        if not sent and progress.stage == stage and progress.done >= done:
            sent.append(os.kill(crew._executor._workers[number].pid, which))

    return on_progress


def test_three_workers_make_the_bytes_of_one(crew: Editor, undisturbed: EditResult) -> None:
    shared = crew.edit(FRAMES, PARAMS)
    assert np.array_equal(shared.frames, undisturbed.frames)
    assert shared.report.frames_sha256 == undisturbed.report.frames_sha256
    assert shared.report.bank_bytes == undisturbed.report.bank_bytes > 0
    assert (shared.report.workers, shared.report.lost_workers) == (3, ())


@pytest.mark.parametrize(
    "changes",
    [
        {"noise": "per-frame", "anchors": 0},
        {"anchors": 1, "layers": "decoder"},
        {"anchors": 2, "keep_details": True},
    ],
)
def test_other_parameters_reach_the_workers(crew: Editor, editor: Editor, changes: dict) -> None:
    params, latents = replace(PARAMS, num_inference_steps=1, **changes), None
    if changes["anchors"] == 1:
        latents = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    shared = crew.edit(FRAMES[:6], params, latents=latents)
    assert np.array_equal(shared.frames, editor.edit(FRAMES[:6], params, latents=latents).frames)


def test_the_written_files_are_the_same_too(crew: Editor, editor: Editor, clip: Path, tmp_path: Path) -> None:
    files = []
    for i, each in enumerate((editor, crew)):
        out, beside = tmp_path / f"out{i}.mp4", tmp_path / f"beside{i}.mp4"
        each.edit_file(clip, out, PARAMS, compare=beside, preview=tmp_path / f"anchors{i}.png")
        files.append([path.read_bytes() for path in (out, beside, tmp_path / f"anchors{i}.png")])
    assert files[0] == files[1]


@pytest.mark.parametrize("workers", [pytest.param(2, marks=pytest.mark.nightly), 4])
def test_any_number_of_workers_writes_the_same_file(
    checkpoint_folder: Path, editor: Editor, tmp_path: Path, workers: int
) -> None:
    """Also when one of them is killed half-way."""
    video = write_clip(tmp_path / "clip.mp4", make_frames(16))
    params = replace(PARAMS, num_inference_steps=1, micro_batch=2)
    editor.edit_file(video, tmp_path / "one.mp4", params)
    with Editor.from_pretrained(checkpoint_folder, device="cpu", workers=workers) as several:
        report = several.edit_file(video, tmp_path / "several.mp4", params)
        killing = signal_at(several, "frames", 3, 1, signal.SIGKILL)
        killed = several.edit_file(video, tmp_path / "killed.mp4", params, on_progress=killing)
    assert (report.workers, report.lost_workers, len(killed.lost_workers)) == (workers, (), 1)
    one = (tmp_path / "one.mp4").read_bytes()
    assert one == (tmp_path / "several.mp4").read_bytes() == (tmp_path / "killed.mp4").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "killed.mp4", "one.mp4", "several.mp4"]


@pytest.mark.parametrize(
    ("stage", "done", "number", "which"),
    [
        ("frames", 3, 2, signal.SIGKILL),  # in phase B
        ("anchors", 1, 1, signal.SIGKILL),  # one that receives the bank, during the broadcast
        ("anchors", 1, 0, signal.SIGKILL),  # the one that sends it
        ("anchors", 1, 0, signal.SIGSTOP),  # the same one, hung
    ],
)
def test_a_lost_worker_changes_no_byte(
    crew: Editor,
    undisturbed: EditResult,
    stage: str,
    done: int,
    number: int,
    which: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = "ended (signal SIGKILL)"
    if which == signal.SIGSTOP:
        impatient = replace(crew._executor._options, deadline_s=SILENT_S)
        monkeypatch.setattr(crew._executor, "_options", impatient)
        expected = f"was silent for {SILENT_S:g} s"
    result = crew.edit(FRAMES, PARAMS, on_progress=signal_at(crew, stage, done, number, which))
    assert np.array_equal(result.frames, undisturbed.frames)
    sentence = result.report.lost_workers[0]  # where the machine is busy, others may be silent for as long
    assert len(result.report.lost_workers) == 1 or which == signal.SIGSTOP
    assert sentence.startswith(f"Worker {number} on cpu {expected}")
    assert result.report.redone_batches <= 2


def test_a_worker_out_of_memory_goes_on_with_smaller_batches(
    checkpoint_folder: Path, undisturbed: EditResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Path(__file__).with_name("faulty_worker.py")
    monkeypatch.setattr(editor_module, "WorkerPool", other_pool(command=(sys.executable, "-P", str(script), "2")))
    with Editor.from_pretrained(checkpoint_folder, device="cpu", workers=2) as short_of_memory:
        result = short_of_memory.edit(FRAMES, PARAMS)
    assert np.abs(result.frames.astype(int) - undisturbed.frames).max() <= 1  # rounding
    assert any("did not suffice for 3 frames at once; 2 were" in sentence for sentence in result.report.fallbacks)
    assert result.report.lost_workers == ()


def children_of(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def what_runs(process: psutil.Process) -> str:
    """The last word of its command line; "" where it has just ended."""
    try:
        return process.cmdline()[-1]
    except (psutil.Error, IndexError):
        return ""


def start_cli(arguments: list[str], folder: Path) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """`fairy edit` with two workers, once it has begun to edit frames, and its worker processes."""
    command = [sys.executable, "-P", "-m", "fairy.runtime.cli.main", "edit", *arguments, "--workers", "2"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    end = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < end:
        running = {child: what_runs(child) for child in children_of(process.pid)}
        nurseries = {child.pid for child, what in running.items() if what == "fairy.runtime.workers.nursery"}
        found = [child for child in running if child.ppid() in nurseries]
        if len(found) == 2 and "fairy.runtime.video.encoder" in running.values():
            time.sleep(2)
            return process, found
        time.sleep(0.1)
    process.kill()
    raise AssertionError(process.communicate()[1])


@pytest.mark.parametrize(
    ("which", "code"),
    [pytest.param(signal.SIGINT, 130, marks=pytest.mark.nightly), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_no_worker_outlives_its_controller(
    checkpoint_folder: Path, tmp_path: Path, which: signal.Signals, code: int
) -> None:
    """Ctrl-C and a killed controller; one of its workers is stopped, so that only the kernel can end it."""
    clip = write_clip(tmp_path / "clip.mp4", make_frames(30), sound=False)
    arguments = [str(clip), "make it red", "-o", "out.mp4", "--model", str(checkpoint_folder), "--steps", "50"]
    process, workers = start_cli([*arguments, "--device", "cpu", "--quiet"], tmp_path)
    workers[1].suspend()
    process.send_signal(which)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    gone, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive, f"{alive} are left of {gone}"
    assert not (tmp_path / "out.mp4").exists()
    if which == signal.SIGINT:
        assert "Interrupted" in errors


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"workers": 0}, "workers = 0 is not possible; it must be a whole number from 1 to 64"),
        ({"workers": 2.5}, "workers = 2.5"),
        ({"gpus": 2}, "gpus = 2 is not possible on the device cpu"),
        ({"gpus": True}, "gpus = True"),
    ],
)
def test_numbers_of_workers_that_are_not_possible(checkpoint_folder: Path, options: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Editor.from_pretrained(checkpoint_folder, device="cpu", **options)


@pytest.mark.parametrize("continued", [False, True])
def test_shots_are_the_same_on_any_number_of_workers(crew: Editor, editor: Editor, continued: bool) -> None:
    params = replace(PARAMS, anchors=2, shots=(5, 6), prompts={9: "make it night"}, continue_look=continued)
    alone, together = editor.edit(FRAMES, params), crew.edit(FRAMES, params)
    assert np.array_equal(alone.frames, together.frames)
    assert alone.report.segments == together.report.segments
    assert together.report.lost_workers == ()


@pytest.mark.parametrize("continued", [False, True])
def test_a_worker_lost_in_a_shot_changes_no_byte_of_the_next(crew: Editor, editor: Editor, continued: bool) -> None:
    params = replace(PARAMS, anchors=2, shots=(7,), continue_look=continued)
    alone = editor.edit(FRAMES, params)
    killed = crew.edit(FRAMES, params, on_progress=signal_at(crew, "anchors", 1, 0, signal.SIGKILL))
    assert np.array_equal(alone.frames, killed.frames)
    assert len(killed.report.lost_workers) == 1
