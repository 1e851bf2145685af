"""Errors as clients of the API expect them: one JSON body, one sentence, no path and no traceback."""

import logging
import sqlite3
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from fairy.kernels.errors import InputError

log = logging.getLogger("fairy.service")
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Problem(Exception):
    """A request that cannot be served; becomes `{"error": {"message", "type", "param", "code"}}`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def answer(self) -> JSONResponse:
        """The response."""
        return JSONResponse(
            error_body(self.status, self.message, self.code, self.param), status_code=self.status, headers=self.headers
        )


def error_body(status: int, message: str, code: str, param: str | None = None) -> dict[str, Any]:
    """The body of every error."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def of_input_error(error: InputError) -> Problem:
    """A value that the library refuses, named as the API spells it."""
    return Problem(400, error.sentence(), code="invalid_value", param=error.name)


def not_found(what: str = "video") -> Problem:
    """What is not there, or is not the caller's."""
    return Problem(404, f"There is no such {what}; check its id.", code="not_found")


def disk_full() -> Problem:
    """507."""
    return Problem(507, "The service's disk is full; delete videos or try later.", code="disk_full")


def add_handlers(app: FastAPI) -> None:
    """Every error of the app in that form."""

    @app.exception_handler(Problem)
    async def _problem(_: Request, problem: Problem) -> JSONResponse:
        return problem.answer()

    @app.exception_handler(InputError)
    async def _input(_: Request, error: InputError) -> JSONResponse:
        return of_input_error(error).answer()

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return of_validation(error.errors()).answer()

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        sentences = {
            404: "There is nothing at this address; see /openapi.json.",
            405: "This address does not know that method.",
        }
        message = sentences.get(error.status_code, str(error.detail))
        return Problem(error.status_code, message, code="http_error", headers=error.headers).answer()

    @app.exception_handler(sqlite3.OperationalError)
    async def _rows(_: Request, error: sqlite3.OperationalError) -> JSONResponse:
        log.error("the table of jobs failed: %s", error)
        if "full" in str(error):
            return disk_full().answer()
        sentence = "The table of jobs failed; try again."
        return Problem(503, sentence, code="disk_failed", headers={"retry-after": "5"}).answer()

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("internal error", exc_info=error, extra={"path": request.scope.get("path")})
        return Problem(500, "The service met an internal error; its log says more.", code="internal_error").answer()


def of_pydantic(error: ValidationError) -> Problem:
    """What pydantic refuses."""
    return of_validation(error.errors(include_url=False, include_context=False))


def of_validation(errors: Any) -> Problem:
    """The first of pydantic's complaints, with the field's name."""
    first = dict(errors[0])
    where = [str(part) for part in first.get("loc", ()) if part not in ("body", "query", "path", "header")]
    name = where[0] if where else None
    if first.get("type") == "extra_forbidden":
        message = f"{name} is not known here; the parameters stand in /openapi.json."
    elif first.get("type") == "missing":
        message = f"{name} is missing; it must be given."
    else:
        given = repr(first.get("input"))
        message = f"{name} = {given[:80]} is not possible: {first.get('msg', 'it is of another type')}."
    return Problem(400, message, code="invalid_value", param=name)
