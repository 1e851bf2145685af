"""`/v1/videos` in the shape of OpenAI's videos API, and what we add to it."""

import asyncio
from pathlib import PurePath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from fairy.runtime.service.access import Caller
from fairy.runtime.service.dependencies import Asking, Running, json_object
from fairy.runtime.service.files import CONTAINERS, VARIANTS
from fairy.runtime.service.housekeeping import Reading
from fairy.runtime.service.jobs import Job, StoredSource
from fairy.runtime.service.problems import Problem, not_found
from fairy.runtime.service.requests import MOST_PROMPTS, Asked, asked_of
from fairy.runtime.service.schema import Deleted, Video, VideoList, errors, request_schema
from fairy.runtime.service.service import Service
from fairy.runtime.service.streams import event_stream
from fairy.runtime.service.uploads import Form, receive_form

_POLL = {"openai-poll-after-ms": "500"}
_LONGEST_KEY = 200
router = APIRouter(prefix="/v1", tags=["videos"])


@router.post(
    "/videos",
    responses={200: {"model": Video}, **errors(400, 404, 408, 409, 413, 422, 429, 503, 507)},
    openapi_extra=request_schema("input_reference"),
)
async def create(request: Request, caller: Asking, service: Running) -> Response:
    """Edit a video. Its parameters are form fields with the names of the library's.

    The source is a file part `input_reference`, or the source of an earlier video (`source_video_id`, with which the
    body may be JSON too). `seconds` edits so much from `start` on; the longer side of `size` becomes the long side.
    """
    (job,) = await _accepted(request, caller, service)
    return await _record(service, job)


@router.post(
    "/videos/edits",
    responses={200: {"model": Video}, **errors(400, 404, 408, 409, 413, 422, 429, 503, 507)},
    openapi_extra=request_schema("video"),
)
async def edit(request: Request, caller: Asking, service: Running) -> Response:
    """The same with the file part named `video`; a field `video[id]` names a completed video instead."""
    (job,) = await _accepted(request, caller, service)
    return await _record(service, job)


@router.post(
    "/videos/batches",
    responses={200: {"model": VideoList}, **errors(400, 404, 408, 409, 413, 422, 429, 503, 507)},
    openapi_extra=request_schema("input_reference", many=True),
)
async def create_batch(request: Request, caller: Asking, service: Running) -> Response:
    """Several edits of one upload: `prompt[]` once for each instruction; all are taken, or none."""
    jobs = await _accepted(request, caller, service, many=True)
    data = await asyncio.to_thread(service.dispatcher.records, jobs)
    listed = {"object": "list", "data": data, "has_more": False, "first_id": jobs[0].id, "last_id": jobs[-1].id}
    return JSONResponse(listed, headers=_POLL)


@router.post(
    "/videos/{video_id}/remix",
    responses={200: {"model": Video}, **errors(400, 404, 409, 422, 429, 503, 507)},
    openapi_extra=request_schema(),
)
async def remix(video_id: str, request: Request, caller: Asking, service: Running) -> Response:
    """Edit the result of a completed video."""
    service.check_taking(caller)
    fields = await json_object(request)
    before = service.own(video_id, caller)
    asked = asked_of(fields, service.options, service.model)
    service.check_asked(asked, caller)
    source = await service.result_as_source(before)
    (job,) = await _queued(service, caller, request, [asked], source, remixed_from=before.id)
    return await _record(service, job)


async def _accepted(request: Request, caller: Caller, service: Service, *, many: bool = False) -> list[Job]:
    """Read the form or the JSON object, keep the video, and queue what it asks for."""
    service.check_taking(caller, request.headers.get("idempotency-key"))
    form = Form()
    try:
        if request.headers.get("content-type", "").startswith("application/json"):
            fields = await json_object(request)
        else:
            limits: dict[str, Any] = {"max_bytes": service.options.max_upload, "idle_s": service.options.upload_idle}
            form = await receive_form(request, service.folder, **limits)
            fields = dict(form.fields)
        edited = fields.pop("video[id]", None)
        batch = [asked_of(one, service.options, service.model) for one in _each(fields, many)]
        for asked in batch:
            service.check_asked(asked, caller)
        source = await _source(service, caller, form, batch[0], edited)
    finally:
        form.discard()
    edited_id = None if edited is None else str(edited)
    return await _queued(service, caller, request, batch, source, remixed_from=edited_id)


def _each(fields: dict[str, Any], many: bool) -> list[dict[str, Any]]:
    """The request for each instruction of a batch. Raises Problem."""
    if not many:
        return [fields]
    prompts = fields.get("prompt")
    if not isinstance(prompts, list) or not 0 < len(prompts) <= MOST_PROMPTS:
        sentence = f"prompt is missing or no list; send prompt[] once for each of 1 to {MOST_PROMPTS} instructions."
        raise Problem(400, sentence, code="invalid_value", param="prompt")
    return [{**fields, "prompt": prompt} for prompt in prompts]


async def _source(service: Service, caller: Caller, form: Form, asked: Asked, edited: Any) -> StoredSource:
    """The one video that is to be edited. Raises Problem."""
    given = [form.video, asked.source_video_id, asked.source_url, edited]
    if sum(value is not None for value in given) != 1:
        sentence = "A video is missing, or given twice; send one file as input_reference, or one source_video_id."
        raise Problem(400, sentence, code="invalid_value", param="input_reference")
    if form.video is not None:
        return await service.keep_upload(form, caller)
    if asked.source_url is not None:
        return await service.fetched(asked.source_url, caller)
    if edited is not None:
        return await service.result_as_source(service.own(str(edited), caller))
    source = service.store.source(service.own(str(asked.source_video_id), caller).source_id)
    if source is None or not service.folder.source(source.id).exists():
        raise not_found("source")
    return source


async def _queued(
    service: Service,
    caller: Caller,
    request: Request,
    batch: list[Asked],
    source: StoredSource,
    *,
    remixed_from: str | None = None,
) -> list[Job]:
    """Queue the edits; an upload that no job comes of is removed."""
    key = request.headers.get("idempotency-key")
    jobs: list[Job] = []
    try:
        if key is not None and not (0 < len(key) <= _LONGEST_KEY and key.isprintable()):
            sentence = f"The Idempotency-Key must have 1 to {_LONGEST_KEY} printable characters."
            raise Problem(400, sentence, code="invalid_value", param="Idempotency-Key")
        repeated = request.headers.get("x-stainless-retry-count", "0") not in ("", "0")
        more: dict[str, Any] = {"idempotency": key, "repeated": repeated, "remixed_from": remixed_from}
        jobs = await service.accept(batch, source, caller, **more)
    finally:
        if source.id not in {job.source_id for job in jobs}:
            await service.drop_unused(source)
    return jobs


async def _record(service: Service, job: Job) -> Response:
    record = await asyncio.to_thread(service.dispatcher.record, job)
    return JSONResponse(record, headers=_POLL)


@router.get("/videos", responses={200: {"model": VideoList}, **errors(400, 404)})
def list_videos(
    caller: Asking,
    service: Running,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=64)] = None,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """The caller's videos, newest first; `after` is the last id of the page before."""
    place = None if after is None else service.own(after, caller).place
    found = service.store.page(caller.name, limit=limit + 1, after=place, newest_first=order == "desc")
    data = service.dispatcher.records(found[:limit])
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return JSONResponse(
        {"object": "list", "data": data, "has_more": len(found) > limit, "first_id": first, "last_id": last}
    )


@router.get("/videos/{video_id}", responses={200: {"model": Video}, **errors(404)})
async def retrieve(video_id: str, caller: Asking, service: Running) -> Response:
    """How a video stands."""
    return await _record(service, service.own(video_id, caller))


@router.delete("/videos/{video_id}", responses={200: {"model": Deleted}, **errors(404)})
async def delete(video_id: str, caller: Asking, service: Running) -> Response:
    """Stop the edit if it still runs, and remove the video and its source."""
    job = service.own(video_id, caller)
    await service.dispatcher.forget(job)
    source = service.store.source(job.source_id)
    if source is not None:
        await service.drop_unused(source)
    return JSONResponse({"id": job.id, "object": "video.deleted", "deleted": True})


@router.post("/videos/{video_id}/cancel", responses={200: {"model": Video}, **errors(404)})
async def cancel(video_id: str, caller: Asking, service: Running) -> Response:
    """Stop the edit; the video is `failed` with the code `cancelled` then. One that has ended stays as it is."""
    job = service.own(video_id, caller)
    await service.dispatcher.cancel(job)
    return await _record(service, service.own(video_id, caller))


@router.api_route(
    "/videos/{video_id}/content",
    methods=["GET", "HEAD"],
    response_class=FileResponse,
    responses={200: {"content": {"video/mp4": {}}}, 206: {"description": "A part of it"}, **errors(400, 404, 416)},
)
def content(
    video_id: str,
    caller: Asking,
    service: Running,
    variant: Literal["video", "compare", "thumbnail", "spritesheet", "anchors", "source", "report"] = "video",
    download: bool = False,
) -> Response:
    """The bytes: the edited video, a picture of it, the edited anchors, source and result side by side, the source."""
    job = service.own(video_id, caller)
    source = service.store.source(job.source_id)
    name = PurePath(source.file_name).stem if source else "video"
    if variant == "source":
        path, kind = service.folder.source(job.source_id), "application/octet-stream"
        shown = source.file_name if source else "video"
    elif variant == "video":
        container = job.asked["container"]
        path, kind = service.folder.result(job.id, container), CONTAINERS[container]
        shown = f"{name} edited.{container}"
    else:
        path, kind = service.folder.job(job.id) / VARIANTS[variant].name, VARIANTS[variant].media_type
        shown = f"{name} {path.name}"
    there = job.status == "completed" or variant == "source" or (variant == "anchors" and job.preview)
    if not there or not path.is_file():
        raise Problem(404, f"The video {job.id} is {job.status} and has no {variant} yet.", code="not_ready")
    disposition = "attachment" if download or variant == "source" else "inline"
    response = _ReadFile(
        service.reading, job.id, path, media_type=kind, filename=shown, content_disposition_type=disposition
    )
    if job.status == "completed":
        response.headers["cache-control"] = "private, max-age=3600"
    return response


class _ReadFile(FileResponse):
    """A file that is not removed while it is sent."""

    def __init__(self, reading: Reading, job_id: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reading, self._job_id = reading, job_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        end = self._reading.begin(self._job_id)
        try:
            await super().__call__(scope, receive, send)
        finally:
            end()


_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}, "description": "Events"}}


@router.get("/videos/{video_id}/events", response_class=StreamingResponse, responses=_STREAM | errors(404))
async def events_of_one(video_id: str, request: Request, caller: Asking, service: Running) -> Response:
    """Server-sent events of one video: `video` with the whole record at every step, until it has ended."""
    job = service.own(video_id, caller)
    return event_stream(service, caller, request.headers.get("last-event-id", ""), job.id)


@router.get("/events", response_class=StreamingResponse, responses=_STREAM | errors())
async def events_of_all(request: Request, caller: Asking, service: Running) -> Response:
    """Server-sent events of all of the caller's videos: `video`, `deleted`, and `reset` where too much was missed."""
    return event_stream(service, caller, request.headers.get("last-event-id", ""))
