"""Hands waiting jobs to warm editors and records what becomes of them; one task for each editor process.

A job whose editor ends under it waits again and goes on from its journal, at most `_MOST_ATTEMPTS` times in all.
"""

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from opentelemetry import trace  # which FastAPI brings; without an SDK it does nothing

from fairy.kernels.errors import FairyError, InputError
from fairy.runtime.files import write_atomically
from fairy.runtime.service.editor_link import EditorLink, EditorLost
from fairy.runtime.service.events import Events
from fairy.runtime.service.files import VARIANTS, DataFolder
from fairy.runtime.service.jobs import Job, JobStore
from fairy.runtime.service.metrics import Metrics
from fairy.runtime.service.records import Live, public_report, video_of

log = logging.getLogger("fairy.service")
_TRACER = trace.get_tracer("fairy.service")
_MOST_ATTEMPTS = 3
_RESTART_S = 5.0
"""Between two tries to start an editor that does not start."""
_CANCEL_S = 60.0
"""An editor that has not heard of a cancel by then is ended."""
_ENDS_EDITOR = ("out_of_memory", "internal_error")
"""After these an editor may be of no use and ends; the next job gets a new one."""
_MOST_TOLD = 50
_INTERNAL = "The service met an internal error with this video; its log says more."


class Dispatcher:
    """The editors and what they are doing. Used from the event loop's thread; rows are changed in others."""

    def __init__(
        self,
        links: list[EditorLink],
        store: JobStore,
        folder: DataFolder,
        events: Events,
        metrics: Metrics,
        keep_s: float,
    ) -> None:
        self.draining = self._drained = False
        self.fatal: FairyError | None = None
        self._links, self._store, self._folder = links, store, folder
        self._events, self._metrics, self._keep_s = events, metrics, keep_s
        self._wake = asyncio.Condition()
        self._live: dict[str, Live] = {}
        self._running: dict[str, EditorLink] = {}
        self._cancelled: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._insisting: set[asyncio.Task[None]] = set()
        self.failed = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether any editor has its model loaded, and new jobs are taken."""
        return not self.draining and any(link.ready for link in self._links)

    @property
    def editors(self) -> list[EditorLink]:
        """All of them."""
        return self._links

    def start(self) -> None:
        """Start the editors; whatever waits is begun as soon as one is ready."""
        self._tasks = [asyncio.create_task(self._serve(link)) for link in self._links]

    async def wake(self) -> None:
        """There is a new job."""
        async with self._wake:
            self._wake.notify_all()

    async def drain(self, grace_s: float) -> None:
        """Take no further job; running ones get `grace_s`, then wait for the next start with their journals kept.

        The second time it does nothing.
        """
        self.draining = True
        if self._drained:
            return
        self._drained = True
        await self.wake()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s if self._running else 0.01)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(link.stop(2.0) for link in self._links))
        await asyncio.to_thread(self._store.put_all_back)

    async def cancel(self, job: Job) -> bool:
        """Stop a job wherever it is; False where it had ended."""
        failed = await asyncio.to_thread(
            self._store.fail, job.id, "cancelled", "The edit was cancelled; no video was written."
        )
        if failed:
            link = self._running.get(job.id)
            self._metrics.ended("cancelled")
            if link is not None:
                self._cancelled.add(job.id)
                link.cancel(job.id)
                self._insisting.add(asyncio.create_task(self._insist(job.id, link)))
            else:
                await asyncio.to_thread(self._folder.remove_job, job.id)
                await self._tell_waiting()
            await self.tell(job.id)
        return failed

    async def forget(self, job: Job) -> None:
        """Stop a job and remove it with everything it wrote."""
        await self.cancel(job)
        while job.id in self._running:
            await asyncio.sleep(0.02)
        await asyncio.to_thread(self._folder.remove_job, job.id)  # first, for a full disk takes no change of the rows
        await asyncio.to_thread(self._store.delete, job.id)
        self._events.tell(job.owner, job.id, "deleted", {"id": job.id})

    async def _insist(self, job_id: str, link: EditorLink) -> None:
        """End an editor that does not hear that its job is cancelled."""
        pid, ends = link.pid, time.monotonic() + _CANCEL_S
        while self._running.get(job_id) is link and time.monotonic() < ends:
            await asyncio.sleep(0.05)
        if self._running.get(job_id) is link and link.pid == pid:
            log.error("an editor did not stop", extra={"job": job_id, "editor": link.number})
            await link.stop(0.0)
        self._insisting = {task for task in self._insisting if not task.done()}

    def record(self, job: Job) -> dict[str, Any]:
        """The job as clients see it."""
        return self.records([job])[0]

    def records(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """Jobs as clients see them."""
        waits = any(job.status == "queued" for job in jobs)
        places = {job_id: place for place, job_id in enumerate(self._store.queue())} if waits else {}
        return [
            video_of(
                job,
                source=self._store.source(job.source_id),
                live=self._live.get(job.id),
                place=places.get(job.id, 0),
                keep_s=self._keep_s,
            )
            for job in jobs
        ]

    async def _tell_waiting(self) -> None:
        """Let those who wait know their new places."""
        if not self._events.listeners:
            return
        jobs = await asyncio.to_thread(self._store.unfinished)
        waiting = [job for job in jobs if job.status == "queued"][:_MOST_TOLD]
        for job, record in zip(waiting, await asyncio.to_thread(self.records, waiting), strict=True):
            self._events.tell(job.owner, job.id, "video", record)

    async def tell(self, job_id: str) -> None:
        """Let listeners know how a job stands."""
        job = await asyncio.to_thread(self._store.get, job_id)
        if job is not None:
            self._events.tell(job.owner, job.id, "video", await asyncio.to_thread(self.record, job))

    async def _serve(self, link: EditorLink) -> None:
        """One editor's life. What fails unexpectedly, as on a full disk, is tried again; no job is lost by it."""
        while not self.draining:
            try:
                if not link.alive and not await self._started(link):
                    continue
                job = await asyncio.to_thread(self._store.claim)
                if job is None:
                    await self._wait_for_work()
                else:
                    await self._do(link, job)
            except Exception:
                log.exception("the dispatcher failed", extra={"editor": link.number})
                await asyncio.sleep(_RESTART_S)

    async def _wait_for_work(self) -> None:
        async with self._wake:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), 1.0)

    async def _started(self, link: EditorLink) -> bool:
        began = time.monotonic()
        try:
            model = await link.start()
        except FairyError as error:
            log.error("an editor did not start: %s", error, extra={"editor": link.number})
            if isinstance(error, InputError) or link.starts == 1:
                self.fatal = error
                self.failed.set()
            await asyncio.sleep(_RESTART_S)
            return False
        if link.starts > 1:
            self._metrics.restarts.inc()
        seconds = round(time.monotonic() - began, 1)
        log.info("an editor is ready", extra={"editor": link.number, "model": model, "seconds": seconds})
        return True

    async def _do(self, link: EditorLink, job: Job) -> None:
        """One job by one editor."""
        live = self._live[job.id] = Live()
        self._running[job.id] = link
        began = time.monotonic()
        log.info("job begins", extra={"job": job.id, "owner": job.owner, "attempt": job.attempts})
        outcome: dict[str, Any] | None = None
        try:
            await self.tell(job.id)
            await self._tell_waiting()
            known = await asyncio.to_thread(self._store.get, job.id)
            if known is None or known.status != "in_progress" or job.id in self._cancelled:
                await asyncio.to_thread(self._folder.remove_job, job.id)
                return
            with _TRACER.start_as_current_span("edit", attributes={"fairy.job": job.id, "fairy.attempt": job.attempts}):
                async for message in link.edit(self._order(job)):
                    if "stage" in message:
                        await self._progress(job, live, message)
                    elif "preview" in message:
                        await asyncio.to_thread(self._store.note_preview, job.id)
                        await self.tell(job.id)
                    else:
                        outcome = message
                assert outcome is not None
                await self._record(job, outcome)
            if outcome.get("code") in _ENDS_EDITOR:
                await link.stop(1.0)  # it is ending by itself
        except EditorLost as lost:
            await self._lost(job, str(lost))
        except Exception as error:
            await link.stop(0.0)  # wherever it is with this job
            await self._again(job, error)
            raise
        finally:
            self._running.pop(job.id, None)
            self._live.pop(job.id, None)
            self._cancelled.discard(job.id)
            self._metrics.seconds.labels("whole").observe(time.monotonic() - began)
        await self.tell(job.id)

    async def _again(self, job: Job, error: Exception) -> None:
        """A job under which something failed waits again; where that is not the disk's fault, not for ever."""
        if isinstance(error, sqlite3.Error | OSError) or job.attempts < _MOST_ATTEMPTS:
            await self._surely(self._store.put_back, job.id)
            return
        await self._surely(self._store.fail, job.id, "internal_error", _INTERNAL)
        self._metrics.ended("internal_error")
        await asyncio.to_thread(self._folder.remove_job, job.id)

    async def _surely(self, change: Callable[..., Any], *arguments: Any) -> None:
        """Change a row, as soon as the disk takes that; at the service's end all that ran is put back anyway."""
        while not self.draining:
            try:
                await asyncio.to_thread(change, *arguments)
            except sqlite3.Error as error:
                log.error("the table of jobs failed: %s", error, extra={"job": arguments[0]})
                await asyncio.sleep(_RESTART_S)
            else:
                return

    def _order(self, job: Job) -> dict[str, Any]:
        paths = {
            "source": self._folder.source(job.source_id),
            "folder": self._folder.job(job.id),
            "result": self._folder.result(job.id, job.asked["container"]),
        }
        asked = {name: job.asked[name] for name in ("params", "crf", "compare")}
        asked["encoding"] = job.asked.get("encoding", {})
        return {"id": job.id, "prompt": job.prompt, **asked, **{name: str(path) for name, path in paths.items()}}

    async def _progress(self, job: Job, live: Live, message: dict[str, Any]) -> None:
        before = (live.stage, live.percent)
        if live.stage != message["stage"]:
            trace.get_current_span().add_event(message["stage"])
        live.note(message["stage"], message["done"], message["total"])
        if (live.stage, live.percent) != before:
            await self.tell(job.id)

    async def _record(self, job: Job, outcome: dict[str, Any]) -> None:
        """Write down how an edit ended."""
        if "completed" in outcome:
            await self._completed(job, outcome["completed"])
            return
        code, sentence = outcome["code"], await asyncio.to_thread(self._without_paths, job, outcome["failed"])
        if code == "cancelled" and job.id not in self._cancelled:  # the service is ending: it goes on next time
            return
        if code == "internal_error":
            log.error("internal error in an edit: %s", sentence, extra={"job": job.id})
            sentence = _INTERNAL
        if await asyncio.to_thread(self._store.fail, job.id, code, sentence):
            self._metrics.ended(code)
            log.info("job failed", extra={"job": job.id, "owner": job.owner, "code": code})
        await asyncio.to_thread(self._folder.remove_job, job.id)

    async def _completed(self, job: Job, told: dict[str, Any]) -> None:
        source = await asyncio.to_thread(self._store.source, job.source_id)
        report = public_report(told.pop("report"), source.file_name if source else "video", job.model)
        text = json.dumps(report, indent=2) + "\n"
        folder = self._folder.job(job.id)
        await asyncio.to_thread(write_atomically, folder / VARIANTS["report"].name, text.encode())
        for stage, ms in report["times_ms"].items():
            self._metrics.seconds.labels(stage).observe(ms / 1e3)
        size = await asyncio.to_thread(self._folder.size_of_job, job.id)
        if await asyncio.to_thread(self._store.complete, job.id, told, size):
            self._metrics.ended("completed")
            self._metrics.frames.inc(told["num_frames"])
            self._metrics.gpu_bytes.set(told.get("gpu_bytes", 0))
            log.info("job completed", extra={"job": job.id, "owner": job.owner, "frames": told["num_frames"]})
        else:  # cancelled in the last moment
            await asyncio.to_thread(self._folder.remove_job, job.id)

    async def _lost(self, job: Job, why: str) -> None:
        log.error("an editor ended under its job: %s", why, extra={"job": job.id, "attempt": job.attempts})
        if job.id in self._cancelled:
            await asyncio.to_thread(self._folder.remove_job, job.id)
        elif job.attempts < _MOST_ATTEMPTS:
            await self._surely(self._store.put_back, job.id)
        else:
            sentence = f"The editor ended {job.attempts} times while it worked on this video; it was given up."
            await self._surely(self._store.fail, job.id, "editor_lost", sentence)
            self._metrics.ended("editor_lost")
            await asyncio.to_thread(self._folder.remove_job, job.id)

    def _without_paths(self, job: Job, sentence: str) -> str:
        """A sentence of the library with the client's own names in place of this machine's."""
        source = self._store.source(job.source_id)
        shown = source.file_name if source else "the video"
        sentence = sentence.replace(str(self._folder.source(job.source_id)), shown)
        sentence = sentence.replace(str(self._folder.result(job.id, job.asked["container"])), "the result")
        return sentence.replace(f"{self._folder.job(job.id)}/", "").replace(
            str(self._folder.root), "the service's folder"
        )
