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
        """Remove what is due now; the jobs that went."""
        now, gone = time.time(), []
        for job in self._store.finished_before(now - self._keep_s):
            gone += self._removed(job)
        self._remove_unused(now)
        excess = self._folder.held_bytes() - self._most_bytes
        for job in self._store.finished_before(now) if excess > 0 else ():
            if excess <= 0:
                break
            before = self._folder.held_bytes()
            gone += self._removed(job)
            self._remove_unused(now)
            excess -= before - self._folder.held_bytes()
        return gone

    def _removed(self, job: Job) -> list[Job]:
        if job.id in self._reading or not self._store.delete(job.id):
            return []
        self._folder.remove_job(job.id)
        return [job]

    def _remove_unused(self, now: float) -> None:
        for source_id in self._store.unused_sources(now - _UNUSED_S):
            if self._store.forget_source(source_id):
                self._folder.remove_source(source_id)
