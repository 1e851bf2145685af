"""Moments that are hard to hit from outside: a cancel between claim and order, a table that fails under a job."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from fairy.runtime.service import dispatcher as module
from fairy.runtime.service.dispatcher import Dispatcher
from fairy.runtime.service.editor_link import EditorLost
from fairy.runtime.service.events import Events
from fairy.runtime.service.files import DataFolder
from fairy.runtime.service.jobs import JobStore
from fairy.runtime.service.metrics import Metrics
from tests.runtime.service.test_jobs import a_job, put

DONE = {
    "num_frames": 1, "width": 2, "height": 2, "frames_sha256": "x", "notes": [], "seconds": "1", "gpu_bytes": 0,
    "report": {"source": {"path": "/secret"}, "times_ms": {"frames": 1.0}},
}  # fmt: skip


class Puppet:
    """An editor that does what a test says."""

    def __init__(self, script: Callable[["Puppet", dict[str, Any]], AsyncIterator[dict[str, Any]]]) -> None:
        self.number, self.starts, self.alive, self.ready, self.pid = 0, 0, False, True, 1
        self.cancelled: list[str] = []
        self.orders: list[str] = []
        self.usual: dict[str, Any] = {}
        self._script = script

    async def start(self) -> str:
        self.alive, self.starts = True, self.starts + 1
        return "m"

    async def stop(self, grace_s: float) -> None:
        self.alive = False

    def cancel(self, job_id: str) -> None:
        self.cancelled.append(job_id)

    async def edit(self, order: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        self.orders.append(order["id"])
        async for message in self._script(self, order):
            yield message


async def completes(_: Puppet, order: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    Path(order["folder"]).mkdir(exist_ok=True)
    yield {"id": order["id"], "completed": dict(DONE)}


def _dispatcher(tmp_path: Path, link: Puppet) -> tuple[Dispatcher, JobStore]:
    folder = DataFolder(tmp_path / "data")
    store = JobStore(folder.rows)
    return Dispatcher([link], store, folder, Events(), Metrics(), 100.0), store  # type: ignore[list-item]


async def _until(happened: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not happened():
            await asyncio.sleep(0.01)


def _status(store: JobStore, job_id: str) -> str:
    job = store.get(job_id)
    assert job is not None
    return job.status


def test_a_job_that_is_cancelled_before_its_order_is_never_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Puppet(completes)
    dispatcher, store = _dispatcher(tmp_path, link)
    job = put(store, a_job())
    assert job is not None
    tell = dispatcher.tell
    told: list[str] = []

    async def tell_and_cancel(job_id: str) -> None:
        told.append(job_id)
        if len(told) == 1:  # the job was claimed, the editor has not heard of it
            await dispatcher.cancel(job)
        await tell(job_id)

    monkeypatch.setattr(dispatcher, "tell", tell_and_cancel)

    async def run() -> None:
        dispatcher.start()
        await _until(lambda: _status(store, job.id) == "failed")
        await asyncio.sleep(0.1)
        await dispatcher.drain(1.0)

    asyncio.run(run())
    assert link.orders == []


def test_a_table_that_fails_under_a_job_costs_neither_the_job_nor_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RESTART_S", 0.01)
    link = Puppet(completes)
    dispatcher, store = _dispatcher(tmp_path, link)
    first, second = (put(store, a_job()) for _ in range(2))
    assert first is not None
    assert second is not None
    failures = [sqlite3.OperationalError("database or disk is full")] * 2
    complete, put_back = store.complete, store.put_back

    def failing(what: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if failures:
                raise failures.pop()
            return what(*arguments)

        return call

    monkeypatch.setattr(store, "complete", failing(complete))
    monkeypatch.setattr(store, "put_back", failing(put_back))

    async def run() -> None:
        dispatcher.start()
        await _until(lambda: _status(store, first.id) == _status(store, second.id) == "completed")
        await dispatcher.drain(1.0)

    asyncio.run(run())
    assert link.starts == 2
    assert sorted(link.orders) == sorted([first.id, first.id, second.id])


def test_an_editor_that_is_lost_thrice_costs_its_job(tmp_path: Path) -> None:
    async def dies(link: Puppet, order: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        link.alive = False
        yield {"id": order["id"], "stage": "frames", "done": 1, "total": 2}
        raise EditorLost("signal SIGKILL")

    link = Puppet(dies)
    dispatcher, store = _dispatcher(tmp_path, link)
    job = put(store, a_job())
    assert job is not None

    async def run() -> None:
        dispatcher.start()
        await _until(lambda: _status(store, job.id) == "failed")
        await dispatcher.drain(1.0)

    asyncio.run(run())
    ended = store.get(job.id)
    assert ended is not None
    assert (ended.error_code, ended.attempts, len(link.orders)) == ("editor_lost", 3, 3)


def test_a_job_that_breaks_the_service_s_own_work_does_not_block_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RESTART_S", 0.01)

    async def nonsense_or_done(link: Puppet, order: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        if order["id"] == poison.id:
            yield {"id": order["id"], "completed": {"nothing": 1}}
            return
        async for message in completes(link, order):
            yield message

    link = Puppet(nonsense_or_done)
    dispatcher, store = _dispatcher(tmp_path, link)
    poison, other = put(store, a_job()), put(store, a_job())
    assert poison is not None
    assert other is not None

    async def run() -> None:
        dispatcher.start()
        await _until(lambda: _status(store, poison.id) == "failed" and _status(store, other.id) == "completed")
        await dispatcher.drain(1.0)

    asyncio.run(run())
    ended = store.get(poison.id)
    assert ended is not None
    assert (ended.error_code, ended.attempts) == ("internal_error", 3)


def test_a_lost_editor_and_a_table_that_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RESTART_S", 0.01)

    async def dies_once(link: Puppet, order: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        if len(link.orders) == 1:
            link.alive = False
            raise EditorLost("signal SIGKILL")
        async for message in completes(link, order):
            yield message

    link = Puppet(dies_once)
    dispatcher, store = _dispatcher(tmp_path, link)
    job = put(store, a_job())
    assert job is not None
    failures = [sqlite3.OperationalError("database or disk is full")] * 3
    put_back = store.put_back

    def failing(job_id: str) -> None:
        if failures:
            raise failures.pop()
        put_back(job_id)

    monkeypatch.setattr(store, "put_back", failing)

    async def run() -> None:
        dispatcher.start()
        await _until(lambda: _status(store, job.id) == "completed")
        await dispatcher.drain(1.0)

    asyncio.run(run())


def test_deleting_a_running_job_waits_for_its_editor_and_leaves_nothing(tmp_path: Path) -> None:
    async def until_cancelled(link: Puppet, order: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        Path(order["folder"]).mkdir()
        while order["id"] not in link.cancelled:
            yield {"id": order["id"], "stage": "frames", "done": 1, "total": 2}
            await asyncio.sleep(0.01)
        yield {"id": order["id"], "failed": "It was cancelled.", "code": "cancelled"}

    link = Puppet(until_cancelled)
    dispatcher, store = _dispatcher(tmp_path, link)
    job = put(store, a_job())
    assert job is not None

    async def run() -> None:
        dispatcher.start()
        await _until(lambda: dispatcher.record(job) and store.get(job.id).status == "in_progress")  # type: ignore[union-attr]
        await dispatcher.forget(job)
        await dispatcher.drain(1.0)

    asyncio.run(run())
    assert store.get(job.id) is None
    assert not any((tmp_path / "data" / "jobs").iterdir())
