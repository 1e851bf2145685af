"""One job on several workers: order, faults and deadlines, with workers that invert pixels instead of editing."""

import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from fairy.kernels.errors import Cancelled, MachineError, NumericalError
from fairy.runtime import Editor, EditParams
from fairy.runtime.plan.plan import plan_edit
from fairy.runtime.record.progress import Monitor, Progress
from fairy.runtime.record.run import Run
from fairy.runtime.workers.pool import PoolOptions, WorkerPool

PUPPET = Path(__file__).with_name("puppet.py")
FRAMES = np.random.default_rng(0).integers(0, 256, (40, 6, 10, 3), np.uint8)


def make_pool(script: dict, workers: int = 3, deadline_s: float = 20.0, start_deadline_s: float = 20.0) -> WorkerPool:
    devices = tuple(torch.device("cpu", i) for i in range(workers))
    command = (sys.executable, "-S", str(PUPPET), json.dumps(script))
    times = {"deadline_s": deadline_s, "start_deadline_s": start_deadline_s}
    here = Path("none")
    return WorkerPool(PoolOptions(here, None, devices, torch.float32, "eager", here, command=command, **times))


@pytest.fixture
def plan(editor: Editor) -> Callable[..., Run]:
    def make(monitor: Monitor | None = None, **changes: object) -> Run:
        params = EditParams("make it red", num_inference_steps=1, micro_batch=3, **changes)
        checkpoint = editor._networks.checkpoint
        monitor = monitor or Monitor()
        return Run.of(plan_edit(checkpoint, FRAMES, params, monitor, latents=None, precision=torch.float32), monitor)

    return make


def reads_of(run: Run, taken: list[int] | None = None):
    yield [FRAMES[a] for a in run.plan.anchors]
    for number, part in enumerate(run.plan.parts):
        if taken is not None:
            taken.append(number)
        yield list(FRAMES[part.start : part.stop])


def edited(pool: WorkerPool, run: Run) -> np.ndarray:
    """The edited frames, put together as the Editor does."""
    with closing(pool.edit(run, reads_of(run))) as edits:
        _, anchors = next(edits)
        frames = dict(anchors)
        for part, (pictures, edited) in zip(run.plan.parts, edits, strict=True):
            assert np.array_equal(np.stack(pictures), FRAMES[part.start : part.stop])
            frames |= edited
    return np.stack([frames[i] for i in range(len(FRAMES))])


def assert_gone(pids: tuple[int, ...]) -> None:
    end = time.monotonic() + 5
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < end, f"workers {pids} are still there"
        time.sleep(0.02)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("anchors", [0, 3, 40])
def test_every_frame_comes_once_and_in_order(plan, workers: int, anchors: int) -> None:
    told: list[Progress] = []
    run = plan(Monitor(told.append), anchors=anchors)
    with closing(make_pool({}, workers)) as pool:
        pids = pool.pids
        assert len(pids) == workers
        assert np.array_equal(edited(pool, run), 255 - FRAMES)
    assert (run.tally.workers, run.tally.lost_workers, run.tally.redone_batches) == (workers, [], 0)
    steps = [p.done for p in told if p.stage == "frames"]
    assert steps == sorted(steps)
    assert steps[-1:] == [run.plan.batches][: run.plan.batches]
    assert_gone(pids)


@pytest.mark.parametrize(
    ("script", "lost", "redone"),
    [
        ({"cpu:1": {"die": 2}}, 1, {1, 2}),
        ({"cpu:0": {"die": 0}}, 1, {0, 1}),  # the leader, in phase A
        ({"cpu:0": {"die": 1}}, 1, {1, 2}),
        ({"cpu:1": {"die": 0}, "cpu:2": {"die": 1}}, 2, {1, 2, 3, 4}),
        ({"cpu:0": {"void": True}}, 0, {0}),
        ({"cpu:1": {"lost": True}, "cpu:2": {"lost": True}}, 0, {0}),
        ({"cpu:0": {"die": 0}, "cpu:1": {"lost": True}}, 1, {0, 1}),
        ({"cpu:0": {"stuck": True}, "cpu:2": {"die": 0, "waits": True}}, 1, {1, 2}),
        ({"cpu:0": {"stuck": True}, "cpu:1": {"lost": True}}, 0, {0}),
    ],
)
def test_whatever_happens_to_workers_the_result_is_the_same(plan, script: dict, lost: int, redone: set[int]) -> None:
    run = plan(anchors=3)
    with closing(make_pool(script)) as pool:
        pids = pool.pids
        assert np.array_equal(edited(pool, run), 255 - FRAMES)
    assert len(run.tally.lost_workers) == lost, run.tally.lost_workers
    assert all("something terrible happened" in sentence for sentence in run.tally.lost_workers)
    assert run.tally.redone_batches in redone
    assert_gone(pids)


def test_a_hung_worker_is_ended_at_the_deadline(plan) -> None:
    run = plan(anchors=3)
    with closing(make_pool({"cpu:2": {"hang": 1}}, deadline_s=1.0)) as pool:
        pids = pool.pids
        start = time.monotonic()
        assert np.array_equal(edited(pool, run), 255 - FRAMES)
        assert 1.0 < time.monotonic() - start < 10
    (sentence,) = run.tally.lost_workers
    assert sentence.startswith("Worker 2 on cpu:2 was silent for 1 s and was ended; worker_timeout_s")
    assert_gone(pids)


def test_lost_workers_are_replaced_for_the_next_job(plan) -> None:
    with closing(make_pool({"cpu:1": {"die": 1}})) as pool:
        first = pool.pids
        edited(pool, plan(anchors=3))
        assert len(pool.pids) == 2
        run = plan(anchors=3)
        assert np.array_equal(edited(pool, run), 255 - FRAMES)
        assert run.tally.workers == 3
        assert len(set(first) & set(pool.pids)) <= 2


def test_all_workers_dead_is_an_error_and_the_sentence_says_why(plan) -> None:
    with (
        closing(make_pool({f"cpu:{i}": {"die": 1} for i in range(2)}, workers=2)) as pool,  # 3 may fall over one part
        pytest.raises(MachineError, match="No worker is left: .*something terrible happened"),
    ):
        edited(pool, plan(anchors=3))


def test_a_micro_batch_that_ends_every_worker_does_not_end_all_of_them(plan) -> None:
    script = {f"cpu:{i}": {"die_over": 7} for i in range(5)}
    with closing(make_pool(script, workers=5)) as pool:
        with pytest.raises(MachineError, match="Frames 23 to 25 were given up after 3 workers"):
            edited(pool, plan(anchors=[0, 1]))
        assert len(pool.pids) == 2


def test_an_error_of_the_computation_ends_the_job_and_not_the_pool(plan) -> None:
    with closing(make_pool({"cpu:1": {"refuse": 2}})) as pool:
        with pytest.raises(NumericalError, match="not finite"):
            edited(pool, plan(anchors=3))
        assert np.array_equal(edited(pool, plan(anchors=3)), 255 - FRAMES)


@pytest.mark.parametrize("at", [1, 3, 7])
def test_cancelling_at_any_moment(plan, at: int) -> None:
    cancel, told = threading.Event(), []

    def on_progress(progress: Progress) -> None:
        told.append(progress)
        if len(told) == at:
            cancel.set()

    with closing(make_pool({})) as pool:
        with pytest.raises(Cancelled):
            edited(pool, plan(Monitor(on_progress, cancel), anchors=3))
        assert len(told) == at
        assert np.array_equal(edited(pool, plan(anchors=3)), 255 - FRAMES)  # nothing of the cancelled job is left


def test_a_reader_that_is_slow_to_take_parts_bounds_what_is_read(plan) -> None:
    run, taken = plan(anchors=0), []
    with closing(make_pool({}, workers=2)) as pool, closing(pool.edit(run, reads_of(run, taken))) as edits:
        next(edits)
        for emitted, _ in enumerate(edits):
            time.sleep(0.02)
            assert len(taken) <= emitted + 6, "more than two parts a worker and two are in memory"
    assert taken == list(range(len(run.plan.parts)))


def test_a_job_that_is_left_in_the_middle_leaves_nothing_behind(plan) -> None:
    with closing(make_pool({})) as pool:
        run = plan(anchors=3)
        edits = pool.edit(run, reads_of(run))
        next(edits)
        next(edits)
        edits.close()
        assert np.array_equal(edited(pool, plan(anchors=0)), 255 - FRAMES)
        pids = pool.pids
    assert_gone(pids)


def test_workers_that_do_not_start() -> None:
    with pytest.raises(MachineError, match="loading the model took more than 0.5 s"):
        make_pool({"cpu:1": {"deaf": True}}, start_deadline_s=0.5)
    with pytest.raises(MachineError, match="chose different backends|eager"):
        make_pool({"cpu:1": {"backend": "onnxruntime"}})


def test_a_pool_that_was_forgotten_ends_its_workers() -> None:
    pool = make_pool({})
    pids = pool.pids
    del pool
    assert_gone(pids)
