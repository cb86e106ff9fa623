import base64
import hashlib
import re
from collections.abc import Callable

import httpx
from fastapi import FastAPI

Ask = Callable[..., httpx.Response]


def test_f15_the_pages_of_the_routes_need_a_key(ask: Ask, locked: FastAPI, lab_key: str) -> None:
    """With keys in use, /docs and /openapi.json need one; a browser is sent to the login, which sends it back."""
    for path in ("/docs", "/openapi.json"):
        assert ask(locked, "GET", path).status_code == 401
        assert ask(locked, "GET", path, headers={"Authorization": f"Bearer {lab_key}"}).status_code == 200

    answer = ask(locked, "GET", "/docs", headers={"Accept": "text/html,*/*"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")


def test_the_page_runs_its_own_scripts_only(ask: Ask, locked: FastAPI, lab_key: str) -> None:
    """The policy names the digest of the script within the page, and allows no others than the service's files."""
    answer = ask(locked, "GET", "/docs", headers={"Authorization": f"Bearer {lab_key}"})
    (script,) = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

    assert f"script-src 'self' 'sha256-{digest}';" in answer.headers["content-security-policy"]


def test_other_files_are_not_served(ask: Ask, locked: FastAPI) -> None:
    """Only the three files of the page are."""
    for name in ("redoc.standalone.js", "..%2f__init__.py", "x"):
        assert ask(locked, "GET", f"/static-offline-docs/{name}").status_code == 404
