"""What routes ask for: the running service, who is calling, a JSON body."""

import json
from typing import Annotated, Any

from fastapi import Depends, Request

from fairy.runtime.service.access import Caller
from fairy.runtime.service.problems import Problem
from fairy.runtime.service.service import Service

_LARGEST_JSON_BYTES = 1 << 20


def service_of(request: Request) -> Service:
    """The running service."""
    found: Service = request.app.state.service
    return found


def caller_of(request: Request) -> Caller:
    """Who asks. Raises Problem (401)."""
    return service_of(request).gate.caller(request)


Asking = Annotated[Caller, Depends(caller_of)]
Running = Annotated[Service, Depends(service_of)]


async def json_object(request: Request, most_bytes: int = _LARGEST_JSON_BYTES) -> dict[str, Any]:
    """A body of so many bytes at most. Raises Problem."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > most_bytes:
            raise Problem(
                413, f"The body is larger than {most_bytes} bytes, the most that is read here.", code="too_large"
            )
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise Problem(400, "The body must be a JSON object.", code="not_json")
    return fields
