"""What goes: results that are old, the oldest where the folder is too full, uploads that no job needs."""

import asyncio
import time
from collections.abc import Callable

from fairy.runtime.service.events import Events
from fairy.runtime.service.files import DataFolder
from fairy.runtime.service.jobs import Job, JobStore

_EVERY_S = 30.0
_UNUSED_S = 600.0
"""An upload whose job is not made yet is left alone for so long."""


class Reading:
    """Which jobs' files are being sent to somebody; those are not removed meanwhile."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def begin(self, job_id: str) -> Callable[[], None]:
        """Somebody reads; call what is returned at the end."""
        self._counts[job_id] = self._counts.get(job_id, 0) + 1

        def end() -> None:
            self._counts[job_id] -= 1
            if not self._counts[job_id]:
                del self._counts[job_id]

        return end

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._counts


class Housekeeping:
    """Removes what is due."""

    def __init__(
        self, store: JobStore, folder: DataFolder, events: Events, reading: Reading, *, keep_s: float, most_bytes: int
    ) -> None:
        self._store, self._folder, self._events, self._reading = store, folder, events, reading
        self._keep_s, self._most_bytes = keep_s, most_bytes

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            for job in await asyncio.to_thread(self.sweep):
                self._events.tell(job.owner, job.id, "deleted", {"id": job.id})
            await asyncio.sleep(_EVERY_S)

    def sweep(self) -> list[Job]:
        """Remove what is due now; the jobs that went.

        Results go for want of room only where that makes the room: what waits and runs is never removed.
        """
        now, gone = time.time(), []
        for job in self._store.finished_before(now - self._keep_s):
            gone += self._removed(job)
        self._remove_unused(now)
        self._folder.reserve()
        excess = self._folder.held_bytes() - self._most_bytes
        finished = self._store.finished_before(now) if excess > 0 else []
        self._folder.too_full = excess > 0 and (
            sum(job.bytes for job in finished) + self._folder.bytes_of_sources(finished) < excess
        )
        if self._folder.too_full:
            return gone
        for job in finished:
            before = self._folder.held_bytes()
            if before <= self._most_bytes:
                break
            gone += self._removed(job)
            self._remove_unused(now)
        return gone

    def _removed(self, job: Job) -> list[Job]:
        if job.id in self._reading:
            return []
        self._folder.remove_job(job.id)  # first, for a full disk takes no change of the rows
        return [job] if self._store.delete(job.id) else []

    def _remove_unused(self, now: float) -> None:
        for source_id in self._store.unused_sources(now - _UNUSED_S):
            if self._store.forget_source(source_id):
                self._folder.remove_source(source_id)
