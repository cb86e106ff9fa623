from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.settings import Settings

Ask = Callable[..., httpx.Response]

VIEWER = "http://viewer.example:3000"
COMMANDS = [
    ("POST", "/v1/segmentations"),
    ("POST", "/v1/scans"),
    ("DELETE", "/v1/segmentations/x"),
    ("POST", "/v1/models/hippocampus-mr/unload"),
    ("POST", "/login"),
    ("POST", "/logout"),
    ("PUT", "/monailabel/session/"),
]
FOREIGN: list[dict[str, str]] = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:9999"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"},
]
OWN: list[dict[str, str]] = [
    {},
    {"Origin": "http://localhost"},
    {"Origin": "https://localhost"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "null"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "https://hospital.example", "X-Forwarded-Host": "hospital.example"},
]


@pytest.fixture(name="app", scope="module")
def app_(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    """Return an application without keys, not started, which the pages of a viewer may use."""
    return create_app(Settings(state_dir=tmp_path_factory.mktemp("origins"), monailabel_origins=(VIEWER,)))


@pytest.mark.parametrize("headers", FOREIGN)
def test_f6_no_page_of_another_site_commands(ask: Ask, app: FastAPI, headers: dict[str, str]) -> None:
    """Every method that changes something is refused with 403, before anything is read."""
    for method, path in COMMANDS:
        answer = ask(app, method, path, headers=headers)
        assert (answer.status_code, answer.json()["type"]) == (403, "/problems/foreign-origin"), (method, path)


def test_f6_a_key_or_a_cookie_does_not_help(ask: Ask, locked: FastAPI, lab_key: str) -> None:
    """With a valid key, too, the page of another site is refused."""
    for headers in FOREIGN:
        answer = ask(locked, "POST", "/v1/scans", headers={"Authorization": f"Bearer {lab_key}", **headers})
        assert answer.status_code == 403


@pytest.mark.parametrize("headers", OWN)
def test_our_own_pages_and_other_clients_command(ask: Ask, app: FastAPI, headers: dict[str, str]) -> None:
    """Own pages, bookmarks and clients without a browser are served; a trusted proxy says which host is our own."""
    assert ask(app, "POST", "/logout", headers=headers).status_code == 303


@pytest.mark.parametrize("headers", FOREIGN)
def test_reading_is_not_refused(ask: Ask, app: FastAPI, headers: dict[str, str]) -> None:
    """A link from another site works; its page cannot read the answer."""
    assert ask(app, "GET", "/v2/health/live", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/monailabel/activelearning/x", "/monailabel/activelearning/x/"])
def test_a_configured_viewer_uses_its_routes_only(ask: Ask, app: FastAPI, path: str) -> None:
    """The page of a configured origin passes at /monailabel/ and nowhere else."""
    headers = {"Origin": VIEWER, "Sec-Fetch-Site": "cross-site"}

    assert ask(app, "POST", path, headers=headers).status_code == 200
    assert ask(app, "POST", "/logout", headers=headers).status_code == 403
    assert ask(app, "POST", path, headers=headers | {"Origin": "http://evil.example"}).status_code == 403


def test_a_forged_host_of_a_stranger_is_not_believed(ask: Ask, tmp_path: Path) -> None:
    """X-Forwarded-Host of a client that is no trusted proxy changes nothing."""
    app = create_app(Settings(state_dir=tmp_path / "state", trusted_proxies=()))
    headers = {"Origin": "https://evil.example", "X-Forwarded-Host": "evil.example"}

    assert ask(app, "POST", "/logout", headers=headers).status_code == 403
