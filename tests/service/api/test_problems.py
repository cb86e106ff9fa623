import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import httpx
import numpy as np
import pytest
from fastapi import FastAPI, HTTPException, Query
from fastapi.responses import StreamingResponse

from service import errors
from service.api import problems
from service.schemas import Problem

Ask = Callable[..., httpx.Response]
Nifti = Callable[..., bytes]

PROBLEM = "application/problem+json"
ROUTE = "/v1/segmentations"
SECRET = "CNRY-73019"  # noqa: S105 - stands for what a user sent


@pytest.fixture
def app() -> FastAPI:
    """Return an application whose routes fail in every way."""
    app = FastAPI()
    problems.install(app)

    @app.get("/known/{code}")
    def known(code: str) -> None:
        msg = "What was found. What to do."
        raise errors.BY_CODE[code](msg)

    @app.get("/unknown")
    def unknown() -> None:
        msg = f"the file of {SECRET} is odd"
        raise ZeroDivisionError(msg)

    @app.get("/http")
    def http() -> None:
        raise HTTPException(418, detail=SECRET)

    @app.get("/number")
    def number(n: Annotated[int, Query(le=9)]) -> int:
        return n

    @app.get("/choice")
    def choice(n: Literal["low", "high"]) -> str:
        return n

    @app.get("/streams")
    def streams() -> StreamingResponse:
        def pieces() -> object:
            yield b"begun"
            raise ZeroDivisionError(SECRET)

        return StreamingResponse(pieces())  # type: ignore[arg-type]

    return app


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Return the log events of the wall with their fields."""
    lines: list[dict[str, object]] = []
    log = SimpleNamespace(error=lambda event, **fields: lines.append({"event": event, **fields}))
    monkeypatch.setattr(problems, "log", log)
    return lines


@pytest.mark.parametrize("error", [e for e in errors.BY_CODE.values() if e is not errors.ServerProblem])
def test_each_error_has_its_document(ask: Ask, app: FastAPI, error: type[errors.CalibrantError]) -> None:
    """Status, title and type are those of the error, and the detail is its message."""
    answer = ask(app, "GET", f"/known/{error.code}")

    assert answer.status_code == error.status
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json() == {
        "type": f"/problems/{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": "What was found. What to do.",
    }


def test_what_nobody_expected_is_500_and_only_its_type_is_logged(
    ask: Ask, app: FastAPI, caplog: pytest.LogCaptureFixture, logged: list[dict[str, object]]
) -> None:
    """Neither the answer nor the log holds the message of an unexpected exception, which may repeat what was sent."""
    with caplog.at_level(logging.DEBUG):
        answer = ask(app, "GET", "/unknown")

    assert answer.status_code == 500
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["type"] == "/problems/internal-error"
    assert SECRET not in answer.text
    assert logged == [{"event": "request failed", "error": "ZeroDivisionError"}]
    assert SECRET not in caplog.text
    assert "Traceback" not in caplog.text


def test_an_answer_that_has_begun_is_not_followed_by_another(
    app: FastAPI, caplog: pytest.LogCaptureFixture, logged: list[dict[str, object]]
) -> None:
    """A failure after the first byte leaves the answer incomplete, and only its type is logged."""
    scope = {"type": "http", "method": "GET", "path": "/streams", "query_string": b"", "headers": []}
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]

    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[1]["more_body"] is True
    assert [event["event"] for event in logged] == ["request failed"]
    assert SECRET not in str(logged)
    assert SECRET not in caplog.text


@pytest.mark.parametrize("query", ["", f"?n={SECRET}", "?n=10"])
def test_a_parameter_is_named_without_its_value(ask: Ask, app: FastAPI, query: str) -> None:
    """The document says which parameter is invalid and why."""
    answer = ask(app, "GET", f"/number{query}")

    assert answer.status_code == 422
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["type"] == "/problems/invalid-request"
    assert "query.n: " in answer.json()["detail"]
    assert SECRET not in answer.text


def test_a_choice_is_named_with_what_was_expected(ask: Ask, app: FastAPI) -> None:
    """The choices are those of the document, so they can be repeated."""
    answer = ask(app, "GET", f"/choice?n={SECRET}")

    assert "query.n: expected 'low' or 'high'" in answer.json()["detail"]
    assert SECRET not in answer.text


def test_an_exception_of_the_framework_keeps_its_status_but_not_its_text(ask: Ask, app: FastAPI) -> None:
    """The detail follows from the status, whatever the library's exception says."""
    answer = ask(app, "GET", "/http")

    assert answer.status_code == 418
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["type"] == "/problems/i'm-a-teapot"
    assert SECRET not in answer.text


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/segmentation", "/v1/models/a/b", "/favicon.ico"])
def test_an_unknown_route_is_404(http: httpx.Client, path: str) -> None:
    """The answer points to the page of the routes."""
    answer = http.get(path)

    assert answer.status_code == 404
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["type"] == "/problems/not-found"
    assert answer.json()["detail"].endswith("See /docs for the routes of this service.")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/segmentations", "GET, HEAD, POST"),
        ("DELETE", "/v1/models", "GET, HEAD"),
        ("PUT", "/v2/health/live", "GET, HEAD"),
    ],
)
def test_another_method_is_405(http: httpx.Client, method: str, path: str, allowed: str) -> None:
    """The answer names the methods of the route, as RFC 9110, section 15.5.6, requires."""
    answer = http.request(method, path)

    assert answer.status_code == 405
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["type"] == "/problems/method-not-allowed"
    assert answer.headers["allow"] == allowed


def test_every_route_declares_its_problems(http: httpx.Client) -> None:
    """In the OpenAPI document, every route under /v1 declares problem documents of one schema."""
    document = http.get("/openapi.json").json()
    operations = [
        operation
        for path, routes in document["paths"].items()
        if path.startswith("/v1")
        for operation in routes.values()
    ]

    assert len(operations) >= 7
    for operation in operations:
        assert all(PROBLEM in operation["responses"][status]["content"] for status in ("4XX", "5XX"))
    assert set(document["components"]["schemas"]["Problem"]["properties"]) == set(Problem.model_fields)


@pytest.mark.parametrize(
    ("name", "value"), [("model", "m" * 201), ("Idempotency-Key", "k" * 201), ("Prefer", "p" * 201)]
)
def test_parameters_have_a_length(http: httpx.Client, name: str, value: str) -> None:
    """A parameter of more than 200 characters is a 422 with its name and without its value."""
    options: dict[str, Any] = {"params": {name: value}} if name == "model" else {"headers": {name: value}}

    answer = http.post(ROUTE, content=b"", **options)

    assert answer.status_code == 422
    assert answer.json()["type"] == "/problems/invalid-request"
    assert name.lower() in answer.json()["detail"]
    assert value not in answer.text


def test_nothing_that_was_sent_is_printed_or_stored_as_a_name(
    http: httpx.Client, nifti: Nifti, canary: str, server_log: Path, server_state: Path
) -> None:
    """A canary in text fields, headers, parameters and paths is neither in the log nor in the job database."""
    content = nifti(np.full((4, 5, 6), np.nan, np.float32))
    headers = {"Idempotency-Key": f"{canary}-{time.time_ns()}", "X-Patient": canary, "User-Agent": canary}
    answers = [
        http.post(ROUTE, content=content, headers=headers | {"Prefer": "wait=50"}),
        http.post(ROUTE, content=canary.encode(), headers=headers),
        http.post(ROUTE, content=content, headers=headers, params={"model": canary}),
        http.post(ROUTE, content=content, headers={"Prefer": f"wait={canary}"}),
        http.post(ROUTE, content=content, headers={"Content-Type": f"text/{canary}"}),
        http.get(f"{ROUTE}/{canary}"),
        http.get(f"/{canary}?{canary}={canary}"),
        http.get("/v1/models", headers={"Host": canary}),
    ]

    assert [answer.status_code for answer in answers] == [200, 422, 404, 422, 415, 404, 404, 400]
    assert not [answer.text for answer in answers if canary in answer.text]
    assert canary not in server_log.read_text()
    assert "Traceback" not in server_log.read_text()
    for file in server_state.glob("jobs.sqlite*"):
        assert canary.encode() not in file.read_bytes()
