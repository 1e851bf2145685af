"""Workers that are forked: the model lies in memory once, each end is told, and all of them end with the nursery."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fairy.runtime import Editor, EditParams, MachineError, Progress
from fairy.runtime.workers import nursery
from fairy.runtime.workers.nursery import Forked, Nursery, can_fork
from tests.runtime.conftest import make_frames

WORKERS = 3
PARAMS = EditParams("make it red", num_inference_steps=2, micro_batch=2)
FRAMES = make_frames(10)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def crew(checkpoint_folder: Path) -> Iterator[Editor]:
    with Editor.from_pretrained(checkpoint_folder, device="cpu", workers=WORKERS) as made:
        yield made


def _share_of_memory(pid: int) -> int:
    """KiB of a process, of which pages that n processes share count for 1/n."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))


def test_weights_and_libraries_lie_in_memory_once(crew: Editor, editor: Editor) -> None:
    assert crew.edit(FRAMES, PARAMS).report.frames_sha256 == editor.edit(FRAMES, PARAMS).report.frames_sha256
    pool = crew._executor
    together = [pool._nurseries[0]._process.pid, *pool.pids]
    assert len(together) == 1 + WORKERS
    # What an edit of tiny frames takes for itself is the rest; each by itself would be four times a process.
    assert sum(map(_share_of_memory, together)) < 2 * max(map(_resident, together))


@pytest.mark.nightly
def test_threads_of_one_worker_are_its_own(checkpoint_folder: Path, editor: Editor) -> None:
    """The nursery has one thread; its workers compute with as many as they are told."""
    with Editor.from_pretrained(checkpoint_folder, device="cpu", workers=2, threads=2) as crew:
        (there,) = crew._executor._nurseries
        assert len(os.listdir(f"/proc/{there._process.pid}/task")) == 1
        assert crew.edit(FRAMES[:4], PARAMS).report.workers == 2


def test_a_nursery_that_is_killed_takes_its_workers_along(crew: Editor, editor: Editor) -> None:
    """The job says so; the next one has a new nursery and new workers."""
    (before,) = crew._executor._nurseries
    pids = crew._executor.pids

    def on_progress(progress: Progress) -> None:
        if progress.stage == "frames" and before.alive:
            os.kill(before._process.pid, signal.SIGKILL)

    with pytest.raises(MachineError, match="No worker is left"):
        crew.edit(FRAMES, PARAMS, on_progress=on_progress)
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    again = crew.edit(FRAMES, PARAMS)
    assert again.report.frames_sha256 == editor.edit(FRAMES, PARAMS).report.frames_sha256
    assert again.report.workers == WORKERS
    assert crew._executor._nurseries[0] is not before


def test_how_a_worker_ended_is_told(crew: Editor) -> None:
    crew.edit(FRAMES[:2], PARAMS)
    worker = crew._executor._workers[1]
    os.kill(worker.pid, signal.SIGTERM)
    assert worker._process.wait(timeout=20) == -signal.SIGTERM
    assert worker.last_words() == "signal SIGTERM"
    assert not worker.alive
    worker.kill()  # nothing is left to be killed


def test_a_child_that_is_gone_before_it_is_heard_of_is_told_all_the_same() -> None:
    """And what answers too late is not taken for the next answer."""
    process = subprocess.Popen(["true"])
    process.wait()
    gone = Forked(process.pid, threading.Condition())
    gone.kill()
    gone.ended(0)
    assert gone.poll() == gone.wait(1) == 0


def test_a_nursery_that_does_not_answer_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nursery, "COMMAND", ("sleep", "60"))
    deaf = Nursery({}, dict(os.environ))
    try:
        assert deaf.alive
        with (tmp_path / "errors").open("wb") as errors, pytest.raises(OSError, match="did not answer"):
            deaf.fork(errors, 0.1)
        assert not deaf.alive
    finally:
        deaf.close()


def test_only_cpus_are_shared_so() -> None:
    assert can_fork([torch.device("cpu")] * 2)
    assert not can_fork([torch.device("cuda", 0), torch.device("cuda", 1)])
