from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
from fastapi import FastAPI

from service.api import problems
from service.api.auth import Sessions
from service.api.deps import AdministratorDep, OwnerDep, Services, ServicesDep
from service.bundle.registry import Registry
from service.observability.metrics import Metrics
from service.settings import Settings
from service.storage.keys import Keys, add_key
from service.storage.local import StateDirectory


def test_each_application_gives_its_routes_its_own_parts(ask: Callable[..., httpx.Response], tmp_path: Path) -> None:
    """Two applications in one process share nothing: a route sees the parts of its own application."""
    apps = []
    for name in ("first", "second"):
        app = FastAPI()

        @app.get("/state")
        def state(services: ServicesDep) -> str:
            return services.state.root.name

        unused: Any = SimpleNamespace()
        app.state.services = Services(
            Settings(),
            StateDirectory(tmp_path / name),
            Registry(),
            unused,
            None,
            Sessions(1),
            Metrics(),
            unused,
            unused,
        )
        apps.append((app, name))

    assert [ask(app, "GET", "/state").json() for app, _ in apps] == [name for _, name in apps]


def test_a_route_knows_whose_request_it_is(ask: Callable[..., httpx.Response], tmp_path: Path) -> None:
    """Without keys, everybody is the administrator `local`; with keys, the key decides, and without one it is 401."""
    app = FastAPI()
    problems.install(app)

    @app.get("/who")
    def who(owner: OwnerDep) -> str:
        return owner.name

    @app.get("/admin")
    def admin(owner: AdministratorDep) -> str:
        return owner.name

    path = tmp_path / "keys.json"
    lab, root = (add_key(path, name, admin=name == "root") for name in ("lab", "root"))
    shown = {}
    for keys in (None, Keys(path)):
        nothing = SimpleNamespace()
        services = Settings(), StateDirectory(tmp_path), Registry(), nothing, keys, Sessions(1), Metrics()
        app.state.services = Services(*services, nothing, nothing)  # type: ignore[arg-type]
        for key in (None, lab, root):
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            answers = [ask(app, "GET", route, headers=headers) for route in ("/who", "/admin")]
            shown[keys is not None, key] = [
                answer.json() if answer.status_code == 200 else answer.status_code for answer in answers
            ]

    assert [shown[False, key] for key in (None, lab, root)] == [["local", "local"]] * 3
    assert [shown[True, key] for key in (None, lab, root)] == [[401, 401], ["lab", 403], ["root", "root"]]
