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
from fairy.runtime.plan.job import Job, plan_job
from fairy.runtime.record.progress import Monitor, Progress
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
def plan(editor: Editor) -> Callable[..., Job]:
    def make(monitor: Monitor | None = None, **changes: object) -> Job:
        params = EditParams("make it red", num_inference_steps=1, micro_batch=3, **changes)
        checkpoint = editor._networks.checkpoint
        return plan_job(checkpoint, FRAMES, params, monitor or Monitor(), latents=None, precision=torch.float32)

    return make


def reads_of(job: Job, taken: list[int] | None = None):
    yield [FRAMES[a] for a in job.anchors]
    for number, part in enumerate(job.parts):
        if taken is not None:
            taken.append(number)
        yield list(FRAMES[part.start : part.stop])


def run(pool: WorkerPool, job: Job) -> np.ndarray:
    """The edited frames, put together as the Editor does."""
    with closing(pool.edit(job, reads_of(job))) as edits:
        _, anchors = next(edits)
        frames = dict(anchors)
        for part, (pictures, edited) in zip(job.parts, edits, strict=True):
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
    job = plan(Monitor(told.append), anchors=anchors)
    with closing(make_pool({}, workers)) as pool:
        pids = pool.pids
        assert len(pids) == workers
        assert np.array_equal(run(pool, job), 255 - FRAMES)
    assert (job.workers, job.lost_workers, job.redone_batches) == (workers, [], 0)
    steps = [p.done for p in told if p.stage == "frames"]
    assert steps == sorted(steps)
    assert steps[-1:] == [job.batches][: job.batches]
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
    job = plan(anchors=3)
    with closing(make_pool(script)) as pool:
        pids = pool.pids
        assert np.array_equal(run(pool, job), 255 - FRAMES)
    assert len(job.lost_workers) == lost, job.lost_workers
    assert all("something terrible happened" in sentence for sentence in job.lost_workers)
    assert job.redone_batches in redone
    assert_gone(pids)


def test_a_hung_worker_is_ended_at_the_deadline(plan) -> None:
    job = plan(anchors=3)
    with closing(make_pool({"cpu:2": {"hang": 1}}, deadline_s=1.0)) as pool:
        pids = pool.pids
        start = time.monotonic()
        assert np.array_equal(run(pool, job), 255 - FRAMES)
        assert 1.0 < time.monotonic() - start < 10
    assert job.lost_workers == ["Worker 2 on cpu:2 was silent for 1 s and was ended."]
    assert_gone(pids)


def test_lost_workers_are_replaced_for_the_next_job(plan) -> None:
    with closing(make_pool({"cpu:1": {"die": 1}})) as pool:
        first = pool.pids
        run(pool, plan(anchors=3))
        assert len(pool.pids) == 2
        job = plan(anchors=3)
        assert np.array_equal(run(pool, job), 255 - FRAMES)
        assert job.workers == 3
        assert len(set(first) & set(pool.pids)) <= 2


def test_all_workers_dead_is_an_error_and_the_sentence_says_why(plan) -> None:
    with (
        closing(make_pool({f"cpu:{i}": {"die": 1} for i in range(2)}, workers=2)) as pool,  # 3 may fall over one part
        pytest.raises(MachineError, match="No worker is left: .*something terrible happened"),
    ):
        run(pool, plan(anchors=3))


def test_a_micro_batch_that_ends_every_worker_does_not_end_all_of_them(plan) -> None:
    script = {f"cpu:{i}": {"die_over": 7} for i in range(5)}
    with closing(make_pool(script, workers=5)) as pool:
        with pytest.raises(MachineError, match="Frames 23 to 25 were given up after 3 workers"):
            run(pool, plan(anchors=[0, 1]))
        assert len(pool.pids) == 2


def test_an_error_of_the_computation_ends_the_job_and_not_the_pool(plan) -> None:
    with closing(make_pool({"cpu:1": {"refuse": 2}})) as pool:
        with pytest.raises(NumericalError, match="not finite"):
            run(pool, plan(anchors=3))
        assert np.array_equal(run(pool, plan(anchors=3)), 255 - FRAMES)


@pytest.mark.parametrize("at", [1, 3, 7])
def test_cancelling_at_any_moment(plan, at: int) -> None:
    cancel, told = threading.Event(), []

    def on_progress(progress: Progress) -> None:
        told.append(progress)
        if len(told) == at:
            cancel.set()

    with closing(make_pool({})) as pool:
        with pytest.raises(Cancelled):
            run(pool, plan(Monitor(on_progress, cancel), anchors=3))
        assert len(told) == at
        assert np.array_equal(run(pool, plan(anchors=3)), 255 - FRAMES)  # nothing of the cancelled job is left


def test_a_reader_that_is_slow_to_take_parts_bounds_what_is_read(plan) -> None:
    job, taken = plan(anchors=0), []
    with closing(make_pool({}, workers=2)) as pool, closing(pool.edit(job, reads_of(job, taken))) as edits:
        next(edits)
        for emitted, _ in enumerate(edits):
            time.sleep(0.02)
            assert len(taken) <= emitted + 6, "more than two parts a worker and two are in memory"
    assert taken == list(range(len(job.parts)))


def test_a_job_that_is_left_in_the_middle_leaves_nothing_behind(plan) -> None:
    with closing(make_pool({})) as pool:
        job = plan(anchors=3)
        edits = pool.edit(job, reads_of(job))
        next(edits)
        next(edits)
        edits.close()
        assert np.array_equal(run(pool, plan(anchors=0)), 255 - FRAMES)
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
