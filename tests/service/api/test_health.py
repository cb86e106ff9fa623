from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI

from service.api import health
from service.api.auth import Sessions
from service.api.deps import Services
from service.bundle.description import describe_bundle
from service.bundle.registry import Registry
from service.observability.metrics import Metrics
from service.settings import Settings
from service.storage.local import StateDirectory


def test_a_running_service_is_live_and_ready(http: httpx.Client) -> None:
    """Both paths of the Open Inference Protocol answer 200."""
    live, ready = http.get("/v2/health/live"), http.get("/v2/health/ready")

    assert (live.status_code, live.json()) == (200, {"live": True})
    assert (ready.status_code, ready.json()) == (200, {"ready": True})


@pytest.mark.parametrize(
    ("models", "jobs_why_not", "expected"),
    [
        (True, "", {"ready": True}),
        (False, "", {"ready": False, "why_not": "No model is in service."}),
        (True, "cuda:0 failed.", {"ready": False, "why_not": "cuda:0 failed."}),
    ],
)
def test_ready_needs_a_model_and_jobs_that_can_run(
    *,
    ask: Callable[..., httpx.Response],
    tmp_path: Path,
    tiny_bundle: Path,
    models: bool,
    jobs_why_not: str,
    expected: dict[str, bool | str],
) -> None:
    """Without a model, or if jobs cannot run, the service is live but not ready (503), and says why."""
    app = FastAPI()
    app.include_router(health.router)
    registry = Registry({"tiny": describe_bundle(tiny_bundle)} if models else {})
    jobs = SimpleNamespace(why_not=jobs_why_not)
    services = Settings(), StateDirectory(tmp_path), registry, jobs, None, Sessions(1), Metrics()
    app.state.services = Services(*services, jobs, jobs)  # type: ignore[arg-type]

    answer = ask(app, "GET", "/v2/health/ready")

    assert answer.json() == expected
    assert answer.status_code == (200 if expected["ready"] else 503)
    assert ask(app, "GET", "/v2/health/live").status_code == 200
