"""Fixtures of the clients: a server that is a function, and either client talking to it."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from service.client import AsyncClient, Client

SUMMARY = {
    "model": "tiny@0",
    "structures": [],
    "foreground_confidence": None,
    "statement": {
        "status": "withdrawn",
        "text": "Withdrawn.",
        "reasons": ["size"],
        "dataset": "two boxes",
        "split": "all",
        "protocol": "held-out",
        "n_persons": 2,
        "n_cases": 2,
        "date": "2026-01-31",
        "engine": "torch",
        "precision": "fp32",
        "figures": None,
    },
    "warnings": [],
}

PROBLEM = {"type": "/problems/constant-volume", "title": "One intensity", "status": 422, "detail": "All are 42."}

Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def problem() -> dict[str, Any]:
    """Return a problem document."""
    return dict(PROBLEM)


@pytest.fixture
def make_job() -> Callable[..., dict[str, Any]]:
    """Return the function that makes a job as the server sends it."""

    def make(state: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever the job's field holds
        here = "/v1/segmentations/7f"
        links = {name: f"{here}/{name}" for name in ("mask", "confidence", "summary")} if state == "succeeded" else {}
        return {
            "id": "7f",
            "state": state,
            "model": "tiny@0",
            "scan": "ab" * 32,
            "priority": "normal",
            "outputs": ["mask", "confidence", "summary"],
            "created": "2026-01-31T12:00:00Z",
            "finished": None,
            "queue_position": None,
            "eta_s": None,
            "attempts": 1,
            "device": None,
            "stage": None,
            "progress": 0.0,
            "seconds": {},
            "problem": PROBLEM if state == "failed" else None,
            "links": {"self": here, **links},
            **fields,
        }

    return make


@pytest.fixture
def answer() -> Callable[..., Handler]:
    """Return the function that makes a server that answers with the jobs in turn, then with the files."""

    def make(*jobs: dict[str, Any], requests: list[httpx.Request] | None = None) -> Handler:
        left = list(jobs)
        files = {"mask": b"MASK", "confidence": b"CONFIDENCE", "summary": json.dumps(SUMMARY).encode()}

        def handle(request: httpx.Request) -> httpx.Response:
            if requests is not None:
                requests.append(request)
            name = request.url.path.rpartition("/")[2]
            return httpx.Response(200, content=files[name]) if name in files else httpx.Response(200, json=left.pop(0))

        return handle

    return make


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """Return a file to send; its content does not matter."""
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(b"voxels")
    return path


@pytest.fixture(params=[Client, AsyncClient])
def ask(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return the function that calls a method of either client on a server that is a function; waiting takes no time.

    What a method yields comes back as a list.
    """
    paused: list[float] = []

    async def pause(seconds: float) -> None:
        paused.append(seconds)

    monkeypatch.setattr("time.sleep", paused.append)
    monkeypatch.setattr("anyio.sleep", pause)
    monkeypatch.setattr("asyncio.sleep", pause)

    def call(handler: Handler, method: str, *arguments: object, patience_s: float = 0, **options: object) -> Any:  # noqa: ANN401 - of any method
        async def handle(received: httpx.Request) -> httpx.Response:
            await received.aread()
            return handler(received)

        async def talk() -> Any:  # noqa: ANN401 - as above
            async with AsyncClient("http://server", patience_s=patience_s) as client:
                await client._http.aclose()
                client._http = httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(handle))
                client._retry.met = True
                found = getattr(client, method)(*arguments, **options)
                return [each async for each in found] if inspect.isasyncgen(found) else await found

        if request.param is AsyncClient:
            return anyio.run(talk)
        with Client("http://server", patience_s=patience_s) as client:
            client._http.close()
            client._http = httpx.Client(base_url="http://server", transport=httpx.MockTransport(_read_first(handler)))
            client._retry.met = True
            found = getattr(client, method)(*arguments, **options)
            return list(found) if inspect.isgenerator(found) else found

    call.paused = paused  # type: ignore[attr-defined] # the pauses that were asked for
    return call


def _read_first(handler: Handler) -> Handler:
    def handle(request: httpx.Request) -> httpx.Response:
        request.read()
        return handler(request)

    return handle


@pytest.fixture
def summary() -> dict[str, Any]:
    """Return a summary as the server sends it."""
    return dict(SUMMARY)
