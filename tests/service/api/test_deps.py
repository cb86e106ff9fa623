from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import httpx
from fastapi import FastAPI

from service.api.deps import Parts, PartsDep
from service.bundle.registry import Registry
from service.settings import Settings
from service.storage.local import StateDirectory


def test_each_application_gives_its_routes_its_own_parts(ask: Callable[..., httpx.Response], tmp_path: Path) -> None:
    """Two applications in one process share nothing: a route sees the parts of the application that it belongs to."""
    found = []
    for name in ("first", "second"):
        app = FastAPI()

        @app.get("/state")
        def state(parts: PartsDep) -> str:
            return parts.state.root.name

        jobs = SimpleNamespace()
        app.state.parts = Parts(Settings(), StateDirectory(tmp_path / name), Registry(), jobs)  # type: ignore[arg-type]
        found.append((app, name))

    assert [ask(app, "GET", "/state").json() for app, _ in found] == [name for _, name in found]
