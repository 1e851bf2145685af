"""Streams of server-sent events: how things stand, then what happens."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse

from fairy.runtime.service.access import Caller
from fairy.runtime.service.events import Event
from fairy.runtime.service.service import Service


def event_stream(service: Service, caller: Caller, seen: str, job_id: str | None = None) -> StreamingResponse:
    """The caller's events after the number `seen` (Last-Event-ID), of one job until it has ended, or of all."""
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # proxies shall not collect them
    return StreamingResponse(_events(service, caller, seen, job_id), media_type="text/event-stream", headers=headers)


async def _events(service: Service, caller: Caller, seen: str, job_id: str | None) -> AsyncIterator[str]:
    """First how things stand, or what was missed since Last-Event-ID; then what happens."""

    def wanted(event: Event) -> bool:
        return event.owner == caller.name and job_id in (None, event.job_id)

    happening = service.events.listen(wanted)
    listening = asyncio.ensure_future(anext(happening))  # listens from here on, so that nothing falls between
    await asyncio.sleep(0)
    try:
        number = int(seen) if seen.isascii() and seen.isdigit() and len(seen) < 20 else None
        now = service.events.last
        if number is not None and not service.events.remembers(number):
            yield _sse("reset", {}, now)  # too much was missed: list again
        for event in [] if number is None else service.events.since(number, wanted):
            yield _sse(event.kind, event.data, event.number)
        if job_id is not None:
            jobs = [job for job in [service.store.get(job_id)] if job is not None]
        else:
            jobs = await asyncio.to_thread(service.store.unfinished, caller.name)
        for job in jobs:
            record = await asyncio.to_thread(service.dispatcher.record, job)
            yield _sse("video", record, now)
            if job_id is not None and job.status in ("completed", "failed"):
                return
        while True:
            try:
                happened = await listening
            except StopAsyncIteration:
                return
            listening = asyncio.ensure_future(anext(happening))
            if happened is None:
                yield ": nothing happened, the line is there\n\n"
                continue
            yield _sse(happened.kind, happened.data, happened.number)
            if job_id is not None and (
                happened.kind == "deleted" or happened.data["status"] in ("completed", "failed")
            ):
                return
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await happening.aclose()  # type: ignore[attr-defined]  # it is a generator


def _sse(kind: str, data: dict[str, Any], number: int) -> str:
    """One event as it is sent (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    return f"event: {kind}\nid: {number}\nretry: 2000\ndata: {json.dumps(data)}\n\n"
