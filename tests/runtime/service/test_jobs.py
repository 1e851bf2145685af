"""Rows, turns and places; what goes when it is old or the folder is full."""

import os
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fairy.kernels.errors import InputError
from fairy.runtime.service.events import KEPT, Events
from fairy.runtime.service.files import DataFolder, new_id
from fairy.runtime.service.housekeeping import Housekeeping, Reading
from fairy.runtime.service.jobs import Job, JobStore, KeyReused, SourceGone, StoredSource
from fairy.runtime.service.records import Live


def a_job(owner: str = "a", **more: Any) -> Job:
    values: dict[str, Any] = {
        "place": 0,
        "id": new_id("video"),
        "owner": owner,
        "source_id": new_id("source"),
        "status": "queued",
        "priority": 0,
        "prompt": "make it snow",
        "model": "m",
        "created_at": time.time(),
        "fingerprint": os.urandom(4).hex(),
        "asked": {"params": {}, "container": "mp4", "crf": 18, "compare": False},
    }
    return Job(**(values | more))


def put(store: JobStore, job: Job, *, most_waiting: int = 9, most_of_owner: int = 9) -> Job | None:
    """The job in the queue, with a source of its own."""
    if store.source(job.source_id) is None:
        store.add_source(StoredSource(job.source_id, job.owner, "a.mp4", 5, "", time.time()))
    return store.add(job, most_waiting=most_waiting, most_of_owner=most_of_owner)


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "jobs.sqlite3")


def _add(store: JobStore, *jobs: Job) -> list[str]:
    for job in jobs:
        assert put(store, job, most_waiting=100, most_of_owner=100) is not None
    return [job.id for job in jobs]


def test_turns_are_fair_between_keys_and_the_told_places_come_true(store: JobStore) -> None:
    jobs = [a_job("a") for _ in range(4)] + [a_job("b") for _ in range(2)] + [a_job("c", priority=1)]
    _add(store, *jobs)
    told = store.queue()
    taken = []
    while (job := store.claim()) is not None:
        assert store.queue() == told[len(taken) + 1 :]
        taken.append(job.id)
    assert taken == told
    owners = [next(j.owner for j in jobs if j.id == job_id) for job_id in taken]
    assert owners == ["c", "a", "b", "a", "b", "a", "a"]


def test_limits_of_the_queue(store: JobStore) -> None:
    assert put(store, a_job("a"), most_waiting=2, most_of_owner=1) is not None
    assert put(store, a_job("a"), most_waiting=2, most_of_owner=1) is None
    assert put(store, a_job("b"), most_waiting=2, most_of_owner=1) is not None
    assert put(store, a_job("c"), most_waiting=2, most_of_owner=1) is None


def test_a_key_that_was_used_for_less_makes_nothing(store: JobStore) -> None:
    first = a_job(idempotency="k/0", fingerprint="x")
    assert put(store, first) is not None
    longer = [a_job(idempotency=f"k/{i}", fingerprint="x", source_id=first.source_id) for i in range(2)]
    with pytest.raises(KeyReused):
        store.add_all(longer, most_waiting=9, most_of_owner=9)
    with pytest.raises(KeyReused):
        put(store, a_job(idempotency="k/0", fingerprint="y"))
    same = put(store, a_job(idempotency="k/0", fingerprint="x"))
    assert same is not None
    assert (same.id, len(store.queue())) == (first.id, 1)
    with pytest.raises(SourceGone):
        store.add(a_job(), most_waiting=9, most_of_owner=9)


def test_a_full_disk_makes_room_for_the_rows(tmp_path: Path) -> None:
    asked = []
    store = JobStore(tmp_path / "jobs.sqlite3", lambda: asked.append(1))
    store._writer.execute("PRAGMA max_page_count = 12")

    def fill() -> None:
        while True:
            put(store, a_job(prompt="x" * 2000), most_waiting=99, most_of_owner=99)

    with pytest.raises(sqlite3.OperationalError, match="full"):
        fill()
    assert asked == [1]
    assert not store._writer.in_transaction
    store._writer.execute("PRAGMA max_page_count = 1000")
    assert put(store, a_job(), most_waiting=99, most_of_owner=99) is not None


def test_an_end_and_a_cancel_cannot_both_win(store: JobStore) -> None:
    (job_id,) = _add(store, a_job())
    store.claim()
    assert store.fail(job_id, "cancelled", "It was cancelled.")
    assert not store.complete(job_id, {}, 0)
    assert not store.fail(job_id, "machine_failed", "x")
    job = store.get(job_id)
    assert job is not None
    assert (job.status, job.error_code) == ("failed", "cancelled")


def test_what_ran_waits_again_in_its_old_place(store: JobStore, tmp_path: Path) -> None:
    ids = _add(store, a_job(), a_job())
    store.claim()
    store.close()
    again = JobStore(tmp_path / "jobs.sqlite3")
    assert again.put_all_back() == 1
    assert again.queue() == ids
    job = again.claim()
    assert job is not None
    assert (job.id, job.attempts) == (ids[0], 1)


def test_pages(store: JobStore) -> None:
    ids = _add(store, *(a_job() for _ in range(5)), a_job("b"))[:5]
    first = store.page("a", limit=2, after=None, newest_first=True)
    second = store.page("a", limit=9, after=first[-1].place, newest_first=True)
    assert [job.id for job in first + second] == ids[::-1]
    assert [job.id for job in store.page("a", limit=9, after=None, newest_first=False)] == ids


def _finished(store: JobStore, folder: DataFolder, age_s: float, size: int) -> str:
    source = StoredSource(new_id("source"), "a", "x.mp4", size, "", time.time() - 10_000)
    store.add_source(source)
    folder.source(source.id).write_bytes(b"s" * size)
    (job_id,) = _add(store, replace(a_job(), source_id=source.id))
    while (job := store.claim()) is not None:
        store.complete(job.id, {}, size)
    folder.job(job_id).mkdir()
    (folder.job(job_id) / "result.mp4").write_bytes(b"r" * size)
    with store._writing() as db:
        db.execute("UPDATE jobs SET completed_at = ? WHERE id = ?", (time.time() - age_s, job_id))
    return job_id


def test_old_results_go_then_the_oldest_of_a_full_folder_and_never_one_that_is_read(
    store: JobStore, tmp_path: Path
) -> None:
    folder, reading = DataFolder(tmp_path / "data"), Reading()
    keeper = Housekeeping(store, folder, Events(), reading, keep_s=1000, most_bytes=250_000)
    old, older_but_read, first, second, third = (
        _finished(store, folder, age, 50_000) for age in (2000, 3000, 300, 200, 100)
    )
    end = reading.begin(older_but_read)
    gone = {job.id for job in keeper.sweep()}
    assert gone == {old, first, second}  # 5 x 100 kB: the old one, and of the others until 250 kB are left
    assert not folder.job(first).exists()
    assert folder.job(older_but_read).exists()
    end()
    assert {job.id for job in keeper.sweep()} == {older_but_read}
    assert store.known() == {third}
    assert folder.held_bytes() < 250_000


def test_a_folder_that_is_full_of_what_waits_loses_no_result_and_takes_no_more(store: JobStore, tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    keeper = Housekeeping(store, folder, Events(), Reading(), keep_s=1000, most_bytes=250_000)
    kept = _finished(store, folder, 100, 20_000)
    waiting = a_job()
    put(store, waiting)
    folder.source(waiting.source_id).write_bytes(b"w" * 400_000)
    assert keeper.sweep() == []
    assert folder.too_full
    assert folder.job(kept).exists()
    store.fail(waiting.id, "cancelled", "x")
    store.delete(waiting.id)
    folder.remove_source(waiting.source_id)
    assert keeper.sweep() == []
    assert not folder.too_full


def test_one_service_holds_a_folder(tmp_path: Path) -> None:
    first, second = DataFolder(tmp_path / "data"), DataFolder(tmp_path / "data")
    with first.held():
        upload = first.incoming()
        upload.touch()
        with pytest.raises(InputError, match="used by another service"), second.held():
            pass
        assert upload.exists()
    with second.held():
        assert not upload.exists()


def test_what_no_row_knows_is_removed(store: JobStore, tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    kept = _finished(store, folder, 0, 10)
    stranger, upload = folder.job(new_id("video")), folder.source(new_id("source"))
    stranger.mkdir()
    upload.touch()
    folder.incoming().touch()
    again = DataFolder(tmp_path / "data")
    with again.held():
        again.remove_strangers(store.known(), store.known_sources())
    assert not stranger.exists()
    assert not upload.exists()
    assert folder.job(kept).exists()
    assert not any((tmp_path / "data" / "incoming").iterdir())
    with pytest.raises(ValueError, match="is no id"):
        folder.job("../x")


def test_events_keep_the_last_ones_for_those_who_come_back() -> None:
    events = Events()
    for number in range(KEPT + 5):
        events.tell("a" if number % 2 else "b", str(number), "video", {})
    known = events.since(0, lambda event: True)
    assert len(known) == KEPT
    assert events.remembers(known[0].number - 1)
    assert not events.remembers(known[0].number - 2)
    assert not events.remembers(5)
    later = events.since(known[-3].number, lambda event: event.owner == "a")
    assert [event.owner for event in later] == ["a"]


def test_percent_grows_and_the_time_left_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    live, now = Live(), 100.0
    monkeypatch.setattr("fairy.runtime.service.records.time.monotonic", lambda: now)
    percents = [live.percent]
    for stage, total in (("probe", 0), ("anchors", 10), ("frames", 20)):
        for done in range(total + 1):
            now += 1
            live.note(stage, done, total)
            percents.append(live.percent)
            if stage == "frames" and done == 15:
                assert live.eta_s == 5.0
    assert percents == sorted(percents)
    assert percents[-1] == 99
