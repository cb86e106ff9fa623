from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

Ask = Callable[..., httpx.Response]

ROUTE = "/monailabel/session/"
SCAN = ("scan.nii", b"no scan")


@pytest.fixture
def put(ask: Ask, locked: FastAPI, lab_key: str) -> Callable[..., httpx.Response]:
    """Return the function that sends a form to begin a session."""
    headers = {"Authorization": f"Bearer {lab_key}"}

    def send(**options: Any) -> httpx.Response:  # noqa: ANN401 - httpx's own
        return ask(locked, "PUT", ROUTE, **{**options, "headers": headers | options.get("headers", {})})

    return send


@pytest.mark.parametrize(
    ("options", "status", "problem"),
    [
        ({"files": {"files": ("x", b"")}}, 422, "empty-file"),
        ({"files": {"files": SCAN}}, 422, "unrecognised-format"),
        ({"files": [("files", SCAN), ("files", SCAN)]}, 422, "invalid-request"),
        ({"files": {"image": SCAN}}, 422, "invalid-request"),
        ({"files": {"label": SCAN}}, 422, "invalid-request"),
        ({"files": {"client_id": (None, b"DOE^JANE")}}, 422, "invalid-request"),
        ({"files": {"params": (None, b"x" * (1 << 21))}}, 422, "invalid-request"),
        ({"json": {"files": "DOE^JANE"}}, 415, "unsupported-media-type"),
        ({"content": b"DOE^JANE"}, 422, "invalid-request"),
        ({"content": b"--b", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 422, "invalid-request"),
        ({"files": {"files": SCAN}, "headers": {"Content-Encoding": "gzip"}}, 415, "unsupported-media-type"),
    ],
    ids=[
        *("empty", "no scan", "two", "another field", "label", "no file", "long"),
        *("JSON", "no form", "cut", "packed"),
    ],
)
def test_what_is_no_form_with_a_scan_is_a_problem(
    put: Callable[..., httpx.Response], locked: FastAPI, options: dict[str, Any], status: int, problem: str
) -> None:
    """Anything but a form with a scan is refused, without repeating or storing any of it."""
    answer = put(**options)

    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{problem}")
    assert "JANE" not in answer.text
    state = locked.state.services.state
    assert [*state.incoming.iterdir(), *state.scans.glob("*/*")] == []


def test_a_file_over_the_limit_is_refused(
    put: Callable[..., httpx.Response], locked: FastAPI, tiny_scan: bytes
) -> None:
    """A file over the limit is refused by its announced or its real length; one at the limit is accepted."""
    import dataclasses

    services = locked.state.services

    def limited(limit: int) -> httpx.Response:
        settings = services.settings.model_copy(update={"max_upload_bytes": limit})
        locked.state.services = dataclasses.replace(services, settings=settings)
        return put(files={"files": ("scan.nii", tiny_scan)})

    assert limited(len(tiny_scan) - 1).json()["type"] == "/problems/payload-too-large"
    assert limited(len(tiny_scan)).json()["session_info"]["bytes"] == len(tiny_scan)
