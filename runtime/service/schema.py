"""What OpenAPI tells of the API: its answers, its errors, and the bodies of requests for an edit."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from fairy.runtime.service.requests import MOST_PROMPTS, video_request


class Video(BaseModel):
    """One edit and, when it is completed, its video."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "video_0123456789abcdef0123456789abcdef",
                "object": "video",
                "status": "in_progress",
                "progress": 40,
                "created_at": 1_790_000_000,
                "model": "fairy-embedded",
                "prompt": "make it snow",
                "stage": "frames",
                "eta_s": 12.5,
                "preview_ready": True,
            }
        }
    )
    id: str
    object: Literal["video"]
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    created_at: int
    started_at: int | None = None
    completed_at: int | None = None
    expires_at: int | None = None
    model: str
    prompt: str
    seconds: str | None = None
    size: str | None = None
    remixed_from_video_id: str | None = None
    error: dict[str, Any] | None = None
    queue_position: int | None = None
    stage: Literal["probe", "shots", "anchors", "frames"] | None = None
    stage_done: int | None = None
    stage_total: int | None = None
    eta_s: float | None = None
    preview_ready: bool = False
    has_compare: bool = False
    file_name: str | None = None
    params: dict[str, Any] = {}
    container: str = "mp4"
    priority: int = 0
    num_frames: int | None = None
    frames_sha256: str | None = None
    notes: list[str] = []


class VideoList(BaseModel):
    """A page of a list."""

    object: Literal["list"]
    data: list[Video]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Deleted(BaseModel):
    """What is gone."""

    id: str
    object: Literal["video.deleted"]
    deleted: Literal[True]


class ErrorBody(BaseModel):
    """Every error."""

    error: dict[str, Any]


def errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI tells of a route's errors."""
    return {code: {"model": ErrorBody} for code in (401, 403, 421, *codes)}


def request_schema(*file_fields: str, many: bool = False) -> dict[str, Any]:
    """The body of a request for one edit, or for `many`, as OpenAPI tells it."""
    schema = video_request().model_json_schema()
    fields = dict(schema["properties"])
    if many:
        text = {name: fields["prompt"][name] for name in ("type", "minLength", "maxLength")}
        listed = {"type": "array", "items": text, "minItems": 1, "maxItems": MOST_PROMPTS}
        fields["prompt"] = listed | {"description": "The instructions, each of which makes a video."}
    as_json = {**schema, "title": "VideoRequest", "properties": fields}
    if not file_fields:
        return {"requestBody": {"required": True, "content": {"application/json": {"schema": as_json}}}}
    files = {name: {"type": "string", "format": "binary", "description": "The source video."} for name in file_fields}
    in_form = {f"{name}[]" if many and name == "prompt" else name: value for name, value in fields.items()}
    required = ["prompt[]" if many else "prompt"]
    form = {**schema, "title": "VideoForm", "properties": {**files, **in_form}, "required": required}
    content = {"multipart/form-data": {"schema": form}, "application/json": {"schema": as_json}}
    return {"requestBody": {"required": True, "content": content}}
