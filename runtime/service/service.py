"""Everything one running service has, and what its routes do with it."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from fairy.runtime.service.access import Caller, Gate
from fairy.runtime.service.dispatcher import Dispatcher
from fairy.runtime.service.events import Events
from fairy.runtime.service.files import DataFolder, new_id
from fairy.runtime.service.housekeeping import Reading
from fairy.runtime.service.jobs import Job, JobStore, KeyReused, SourceGone, StoredSource
from fairy.runtime.service.metrics import Metrics
from fairy.runtime.service.options import ServiceOptions
from fairy.runtime.service.outside import Refused, fetch
from fairy.runtime.service.problems import Problem, disk_full, not_found
from fairy.runtime.service.requests import Asked
from fairy.runtime.service.uploads import Form, display_name
from fairy.runtime.service.webhooks import Webhooks

_REPEATED_S = 600.0
"""A client's retry comes within that time."""
_FETCH_S = 600.0
_NO_RETRY = {"x-should-retry": "false"}


@dataclass(slots=True)
class Service:
    """One service. `model`: the name of what is served."""

    options: ServiceOptions
    model: str
    folder: DataFolder
    store: JobStore
    gate: Gate
    events: Events
    metrics: Metrics
    reading: Reading
    dispatcher: Dispatcher
    webhooks: Webhooks | None = None
    _looked: tuple[float, bool] = (-1e9, True)
    outside: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4, "outside"))

    def own(self, job_id: str, caller: Caller) -> Job:
        """The caller's job of that id. Raises Problem (404), for those of others too."""
        job = self.store.get(job_id)
        if job is None or job.owner != caller.name:
            raise not_found()
        return job

    def check_taking(self, caller: Caller, idempotency: str | None = None) -> None:
        """Refuse before an upload is read what would be refused after it. Raises Problem (429, 503, 507).

        A request whose idempotency key has made its jobs already is none that could be too many.
        """
        if self.dispatcher.draining:
            sentence = "The service is being stopped and takes no new videos; try again in a minute."
            raise self._refused(Problem(503, sentence, code="stopping", headers=_NO_RETRY | {"retry-after": "60"}))
        if idempotency is not None and self.store.has_key(caller.name, f"{idempotency}/0"):
            return
        if self.folder.too_full:
            raise self._refused(disk_full())
        waiting = [job for job in self.store.unfinished() if job.status == "queued"]
        own = sum(job.owner == caller.name for job in waiting)
        if len(waiting) >= self.options.queue or own >= self._most_of(caller):
            raise self._refused(self._full())

    def check_asked(self, asked: Asked, caller: Caller) -> None:
        """What only the service's options and the caller's rights decide. Raises Problem."""
        if asked.priority > caller.max_priority:
            sentence = (
                f"priority = {asked.priority} is not possible; this key may ask for at most {caller.max_priority}."
            )
            raise Problem(403, sentence, code="priority_refused", param="priority")
        if asked.callback_url is not None:
            try:
                if self.webhooks is None:
                    raise Refused("callback_url cannot be used, for webhooks are off here; poll, or listen to /events.")
                self.webhooks.check(asked.callback_url)
            except Refused as refused:
                raise Problem(400, str(refused), code="url_refused", param="callback_url") from None
        if asked.source_url is not None and not self.options.allow_url:
            sentence = (
                "source_url cannot be used, for fetching from URLs is off here; send the video as input_reference."
            )
            raise Problem(400, sentence, code="url_refused", param="source_url")

    async def keep_upload(self, form: Form, caller: Caller) -> StoredSource:
        """Give an upload its place and its row."""
        assert form.video is not None
        if not form.bytes:
            form.discard()
            raise Problem(400, "The video is empty; send a file.", code="empty_video", param="input_reference")
        self.metrics.received.inc(form.bytes)
        source = StoredSource(new_id("source"), caller.name, form.file_name, form.bytes, form.sha256, time.time())
        incoming, form.video = form.video, None

        await asyncio.to_thread(self._keep, source, partial(self.folder.settle, incoming, source.id))
        return source

    def _keep(self, source: StoredSource, put: Callable[[], None]) -> None:
        """Put a source into its place and note it; where that fails nothing is left."""
        put()
        try:
            self.store.add_source(source)
        except BaseException:
            self.folder.remove_source(source.id)
            raise

    async def fetched(self, url: str, caller: Caller) -> StoredSource:
        """A source from a URL of an allowed host. Raises Problem."""
        path = self.folder.incoming()
        work = partial(
            fetch,
            url,
            self.options.allow_url,
            path,
            max_bytes=self.options.max_upload,
            limit_s=_FETCH_S,
            free_bytes=self.folder.free_bytes,
        )
        size = await asyncio.get_running_loop().run_in_executor(self.outside, work)
        name = display_name(url.partition("?")[0])
        return await self.keep_upload(Form({}, path, name, size, f"url:{url}"), caller)

    async def result_as_source(self, job: Job) -> StoredSource:
        """The finished video of a job, to be edited again. Raises Problem (409) where there is none."""
        if job.status != "completed":
            raise Problem(
                409, f"The video {job.id} is {job.status}; only a completed one can be edited.", code="not_completed"
            )
        before = self.store.source(job.source_id)
        result = self.folder.result(job.id, job.asked["container"])
        name = before.file_name if before else "video"
        digest = str((job.result or {}).get("frames_sha256"))
        source = StoredSource(new_id("source"), job.owner, name, result.stat().st_size, digest, time.time())

        await asyncio.to_thread(self._keep, source, partial(self.folder.adopt, result, source.id))
        return source

    async def accept(
        self,
        batch: Sequence[Asked],
        source: StoredSource,
        caller: Caller,
        *,
        idempotency: str | None = None,
        repeated: bool = False,
        remixed_from: str | None = None,
    ) -> list[Job]:
        """Put edits of one source into the queue, all or none; when this returns they are on the disk.

        Args:
            idempotency: the client's key; the same key gives the same jobs.
            repeated: the client says that it asks again.

        Raises:
            Problem: the queue is full (429), or the key was used for something else (422).
        """
        if repeated and idempotency is None:
            before = await asyncio.to_thread(self._made_before, batch, source, caller)
            if before:
                return before
        jobs = [
            Job(
                place=0,
                id=new_id("video"),
                owner=caller.name,
                source_id=source.id,
                status="queued",
                priority=asked.priority,
                prompt=asked.prompt,
                model=self.model,
                created_at=time.time(),
                fingerprint=asked.fingerprint(source.sha256),
                asked=asked.stored(),
                remixed_from=remixed_from,
                idempotency=None if idempotency is None else f"{idempotency}/{number}",
                callback_url=asked.callback_url,
            )
            for number, asked in enumerate(batch)
        ]
        limits = {"most_waiting": self.options.queue, "most_of_owner": self._most_of(caller)}
        try:
            added = await asyncio.to_thread(lambda: self.store.add_all(jobs, **limits))
        except KeyReused:
            sentence = "This Idempotency-Key was used for another request; choose a new one."
            raise Problem(422, sentence, code="idempotency_key_reused") from None
        except SourceGone:
            raise not_found("source") from None
        if not added:
            raise self._refused(self._full())
        for job in added:
            await self.dispatcher.tell(job.id)
        await self.dispatcher.wake()
        return added

    def _made_before(self, batch: Sequence[Asked], source: StoredSource, caller: Caller) -> list[Job]:
        """The jobs of the same request a short while ago, if they are all there."""
        since = time.time() - _REPEATED_S
        found = [self.store.repeated(caller.name, asked.fingerprint(source.sha256), since) for asked in batch]
        return [job for job in found if job is not None] if all(found) else []

    def writable(self, every_s: float) -> bool:
        """Whether the rows can be changed; looked at no oftener than that."""
        moment, answer = self._looked
        if time.monotonic() - moment > every_s:
            answer = self.store.is_writable()
            self._looked = (time.monotonic(), answer)
        return answer

    async def drop_unused(self, source: StoredSource) -> None:
        """Remove an upload that no job came of."""

        def drop() -> None:
            if self.store.forget_source(source.id):
                self.folder.remove_source(source.id)

        await asyncio.to_thread(drop)

    def _most_of(self, caller: Caller) -> int:
        return self.options.per_key if caller.max_waiting is None else caller.max_waiting

    def _full(self) -> Problem:
        sentence = "Too many videos are waiting; try again when one of them is done."
        return Problem(429, sentence, code="queue_full", headers=_NO_RETRY | {"retry-after": "10"})

    def _refused(self, problem: Problem) -> Problem:
        self.metrics.refused.labels(problem.code).inc()
        return problem
