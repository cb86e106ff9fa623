import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from service.api import audited
from service.api.audited import Audited
from service.storage.audit import AuditLog, Event
from service.storage.keys import Owner

JOB = "7f" * 16


class Memory(AuditLog):
    """A log that is not written."""

    def __init__(self) -> None:
        """Begin without events."""
        self.events: list[Event] = []

    def record(self, event: Event) -> None:
        """Keep the event."""
        self.events.append(event)


class Route:
    """What Starlette says about a route."""

    def __init__(self, path: str, operation_id: str) -> None:
        """Keep path and name."""
        self.path, self.operation_id, self.name = path, operation_id, "function"


def ask(audit: Audited | None, memory: Memory, method: str, route: Route | None, **answer: Any) -> Audited:  # noqa: ANN401
    """Send a request that is answered with a status and headers; return the middleware."""
    params = {"job_id": JOB} if route and "{job_id}" in route.path else {}

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        scope["route"], scope["path_params"] = route, params
        scope["state"]["owner"] = Owner("lab", admin=False, key="k1")
        await send({"type": "http.response.start", "status": answer["status"], "headers": answer.get("headers", [])})

    async def nothing(*_: object) -> Message:
        return {"type": "nothing"}

    middleware: Any = audit or Audited(app, memory)
    middleware._app = app
    asyncio.run(middleware({"type": "http", "method": method, "state": {}}, nothing, nothing))
    return middleware


@pytest.mark.parametrize(
    ("method", "path", "noted"),
    [
        ("GET", "/v1/segmentations/{job_id}/mask", True),
        ("POST", "/v1/segmentations/{job_id}/cancel", True),
        ("DELETE", "/v1/segmentations/{job_id}", True),
        ("POST", "/v1/models/{name}/unload", True),
        ("GET", "/v1/segmentations/{job_id}", False),
        ("GET", "/v1/segmentations/{job_id}/events", False),
        ("GET", "/v1/models", False),
    ],
)
def test_what_changes_something_or_gives_out_a_result_is_noted(method: str, path: str, noted: bool) -> None:  # noqa: FBT001
    """Looking at states and models is not."""
    memory = Memory()
    ask(None, memory, method, Route(path, "operation"), status=200)

    job = JOB if "{job_id}" in path else ""
    assert memory.events == ([Event("operation", "lab", "k1", job, 200)] if noted else [])


def test_a_submission_is_noted_with_its_job() -> None:
    """Its id is in the answer's Location."""
    memory = Memory()
    headers = [(b"location", f"/prefix/v1/segmentations/{JOB}".encode())]
    ask(None, memory, "POST", Route("/v1/segmentations", "createSegmentation"), status=202, headers=headers)

    assert memory.events == [Event("createSegmentation", "lab", "k1", JOB, 202)]


def test_a_flood_of_refusals_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line a second; the others are counted in the next one, also those to no route."""
    memory = Memory()
    route = Route("/v1/models", "listModels")
    middleware = ask(None, memory, "GET", route, status=401)
    for _ in range(5):
        ask(middleware, memory, "GET", None, status=403)
    monkeypatch.setattr(audited, "REFUSALS_S", 0.0)
    ask(middleware, memory, "GET", None, status=403)

    assert [(event.did, event.left_out) for event in memory.events] == [
        ("refused: listModels", 0),
        ("refused: unknown", 5),
    ]
