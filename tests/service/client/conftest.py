"""Fixtures of the clients: a server that is a function, and either client talking to it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

SUMMARY: dict[str, Any] = {
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


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the list of pauses, none of which takes time."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("time.sleep", pauses.append)
    monkeypatch.setattr("anyio.sleep", pause)
    monkeypatch.setattr("asyncio.sleep", pause)
    return pauses


@pytest.fixture
def summary() -> dict[str, Any]:
    """Return a summary as the server sends it."""
    return dict(SUMMARY)
