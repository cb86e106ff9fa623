"""Answers errors with problem documents (RFC 9457): a stable type, what to do, nothing that the user sent."""

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import CalibrantError, InvalidRequest
from service.schemas import Problem, problem_of
from service.storage.faults import storage_error_of

log = structlog.get_logger(__name__)

MEDIA_TYPE: Final = "application/problem+json"

_CONTENT: Final = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}

RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {
        "description": "The request, the scan or the state of the job is at fault: a problem document",
        "content": _CONTENT,
    },
    "5XX": {"description": "The service is at fault: a problem document", "content": _CONTENT},
}
"""Error responses that every route declares."""


def install(app: FastAPI) -> None:
    """Answer every error of the application with a problem document."""
    app.add_exception_handler(CalibrantError, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_middleware(_Wall)


def respond(problem: Problem) -> JSONResponse:
    """Return the response of a problem."""
    return JSONResponse(problem.model_dump(), status_code=problem.status, media_type=MEDIA_TYPE)


async def _known(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, CalibrantError)  # noqa: S101 - Starlette's handlers take any Exception
    response = respond(problem_of(error))
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if error.status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - as above
    reasons = "; ".join(_reason(detail) for detail in error.errors())
    return respond(problem_of(InvalidRequest(f"These parameters cannot be used: {reasons}. See /docs.")))


def _reason(detail: Mapping[str, Any]) -> str:
    """Return which parameter is wrong and what was expected; never its value, which is what the user sent."""
    name = ".".join(map(str, detail["loc"]))
    expected = (detail.get("ctx") or {}).get("expected")
    return f"{name}: expected {expected}" if expected else f"{name}: {detail['type']}"


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - as above
    status = HTTPStatus(error.status_code)
    if status == HTTPStatus.BAD_REQUEST:  # FastAPI could not parse the body
        return respond(problem_of(InvalidRequest("The body cannot be read. Send JSON in UTF-8, as /docs shows it.")))
    code = status.phrase.lower().replace(" ", "-")
    detail = f"{status.description or status.phrase}. See /docs for the routes of this service."
    response = respond(Problem(type=f"/problems/{code}", title=status.phrase, status=status, detail=detail))
    response.headers.update(error.headers or {})
    if status == HTTPStatus.METHOD_NOT_ALLOWED and (methods := _methods_of(request)):
        response.headers["Allow"] = ", ".join(sorted(methods))
    return response


def _methods_of(request: Request) -> set[str]:
    """Return every method of the route's path; Starlette only names those of the first matching route."""
    path = getattr(request.scope.get("route"), "path", "")
    methods = {method.upper() for method in request.app.openapi()["paths"].get(path, {})}
    return methods | ({"HEAD"} if "GET" in methods else set())


class _Wall:
    """Turns an unexpected exception into a problem document, and logs only its type.

    Starlette's own handler of `Exception` raises it again, and the server would log its message with a traceback.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception as error:  # the wall of the HTTP handler
            if scope["type"] != "http":
                raise
            fault = storage_error_of(error) if isinstance(error, OSError) else None
            if fault is not None and not started:
                log.error("storage failed", problem=fault.code)  # noqa: TRY400 - as below
                await (await _known(Request(scope), fault))(scope, receive, send)
                return
            log.error("request failed", error=type(error).__name__)  # noqa: TRY400 - a traceback may hold what was sent
            if started:
                return
            detail = "The service met an error of its own; the scan was not at fault. Try again; if it fails again, tell the operator."
            await respond(problem_of(CalibrantError(detail)))(scope, receive, send)
