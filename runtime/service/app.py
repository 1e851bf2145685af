"""The application: the API, the page, health and numbers."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.middleware.cors import CORSMiddleware

from fairy.runtime.options import Choice, Flag, Kind, Number, Text, Time, Whole
from fairy.runtime.service.access import COOKIE, COOKIE_S, Caller, Guard
from fairy.runtime.service.dependencies import Asking, Running, caller_of, json_object
from fairy.runtime.service.problems import Problem, add_handlers, of_pydantic
from fairy.runtime.service.requests import edit_options
from fairy.runtime.service.schema import errors
from fairy.runtime.service.service import Service
from fairy.runtime.service.videos import router

PAGE = Path(__file__).parent / "page"
_DESCRIPTION = (
    "Edits whole videos from one written instruction. The shape is that of OpenAI's videos API; parameters of an edit "
    "are fields with the names of the library's."
)
_LARGEST_SIGN_IN_BYTES = 4096
_LOOK_AGAIN_S = 1.0
_LATER = {"retry-after": "5"}
open_routes = APIRouter(tags=["service"])


class SignIn(BaseModel):
    """What the page's form sends."""

    model_config = ConfigDict(extra="forbid")
    key: str = Field(min_length=1, max_length=500)


_SIGN_IN = {"requestBody": {"required": True, "content": {"application/json": {"schema": SignIn.model_json_schema()}}}}


def make_app(service: Service) -> FastAPI:
    """The application over a running service."""
    app = FastAPI(
        title="fairy",
        version=version("fairy-runtime"),
        description=_DESCRIPTION,
        docs_url=None,  # those pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        license_info={"name": "Apache-2.0"},
    )
    app.state.service = service
    add_handlers(app)
    app.include_router(router, dependencies=[Depends(caller_of)])
    app.include_router(open_routes)
    if PAGE.is_dir():
        app.mount("/page", StaticFiles(directory=PAGE))
    if service.options.cors_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.options.cors_origin),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", "idempotency-key", "last-event-id"],
        )
    app.add_middleware(Guard, gate=service.gate)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]  # FastAPI's own way to change it
    return app


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI of the app, in which a wrong value is answered by 400, as it is here, and not by FastAPI's 422."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            license_info=app.license_info,
        )
        for operation in (operation for methods in schema["paths"].values() for operation in methods.values()):
            if "HTTPValidationError" in json.dumps(operation["responses"].get("422", "")):
                del operation["responses"]["422"]
                operation["responses"].setdefault("400", {"description": "A value is wrong"})
        app.openapi_schema = schema
    return app.openapi_schema


@open_routes.get("/health")
async def health() -> dict[str, str]:
    """Alive."""
    return {"status": "ok"}


@open_routes.get("/ready", responses={503: {"description": "No editor is ready, or the service is being stopped"}})
def ready(service: Running) -> Response:
    """Ready for videos: an editor has its model, and the disk takes rows."""
    if not service.dispatcher.ready:
        status = "stopping" if service.dispatcher.draining else "loading"
        return JSONResponse({"status": status}, status_code=503, headers=_LATER)
    if not service.writable(_LOOK_AGAIN_S):
        return JSONResponse({"status": "disk"}, status_code=503, headers=_LATER)
    return JSONResponse({"status": "ready"})


@open_routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **errors()})
def metrics(request: Request, service: Running) -> Response:
    """Numbers for Prometheus."""
    if not service.options.metrics_open:
        service.gate.caller(request)
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@open_routes.get("/v1/session")
def session(request: Request, service: Running) -> dict[str, Any]:
    """Whether a key is needed, and whether this browser has signed in."""
    try:
        caller = service.gate.caller(request)
    except Problem:
        return {"key_required": True, "signed_in": False, "name": None}
    return {"key_required": service.gate.keys is not None, "signed_in": True, "name": caller.name or None}


@open_routes.post("/v1/session", responses=errors(400, 413), openapi_extra=_SIGN_IN)
async def sign_in(request: Request, service: Running) -> Response:
    """Exchange a key for a cookie that scripts cannot read."""
    try:
        body = SignIn.model_validate(await json_object(request, _LARGEST_SIGN_IN_BYTES))
    except ValidationError as error:
        raise of_pydantic(error) from error
    keys = service.gate.keys
    caller = Caller() if keys is None else keys.find(body.key)
    if caller is None:
        raise Problem(401, "This key is not known; check it.", code="invalid_api_key", param="key")
    response = JSONResponse({"key_required": keys is not None, "signed_in": True, "name": caller.name or None})
    secure = request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
    response.set_cookie(
        COOKIE, service.gate.cookie(caller), max_age=COOKIE_S, httponly=True, samesite="strict", secure=secure
    )
    return response


@open_routes.delete("/v1/session")
def sign_out() -> Response:
    """Forget the cookie."""
    response = JSONResponse({"signed_in": False})
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response


@open_routes.get("/v1/models", responses=errors())
def models(caller: Asking, service: Running) -> dict[str, Any]:
    """The one model that is served."""
    model = {"id": service.model, "object": "model", "created": 0, "owned_by": "fairy"}
    return {"object": "list", "data": [model]}


@open_routes.get("/v1/service", responses=errors())
def about(caller: Asking, service: Running) -> dict[str, Any]:
    """What the page needs to know: limits, parameters, and looks that the model is good at."""
    options = service.options
    usual = next((link.usual for link in service.dispatcher.editors if link.usual), {})
    return {
        "version": version("fairy-runtime"),
        "model": service.model,
        "ready": service.dispatcher.ready,
        "max_upload_bytes": options.max_upload,
        "max_frames": options.max_frames,
        "max_seconds": None,
        "looks": _looks(service.model),
        "parameters": [
            {
                "name": name,
                "help": option.sentence,
                "usual": str(usual.get(name, option.ends_in)),
                **_limits(name, option.kind, service),
            }
            for name, option in edit_options().items()
        ],
    }


def _limits(name: str, kind: Kind, service: Service) -> dict[str, Any]:
    low, high = getattr(kind, "low", None), getattr(kind, "high", None)
    ceiling = {"num_inference_steps": service.options.max_steps, "long_side": service.options.max_long_side}.get(name)
    names = ((Whole, "whole"), (Time, "time"), (Number, "number"), (Flag, "flag"), (Choice, "choice"), (Text, "text"))
    found = next((word for type_, word in names if isinstance(kind, type_)), "text")
    finite = None if high is None or high in (float("inf"), 2**63 - 1) else high
    return {"kind": found, "low": low, "high": ceiling or finite, "choices": getattr(kind, "choices", None)}


def _looks(model: str) -> list[dict[str, str]]:
    path = PAGE / "looks" / "looks.json"
    if model != "fairy-embedded" or not path.is_file():
        return []
    return [{**look, "picture": f"/page/looks/{look['picture']}"} for look in json.loads(path.read_text())]


@open_routes.api_route("/", methods=["GET", "HEAD"], response_class=FileResponse, include_in_schema=False)
async def page() -> Response:
    """The page."""
    return FileResponse(PAGE / "index.html", media_type="text/html; charset=utf-8")
