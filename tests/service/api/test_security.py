from collections.abc import Callable

import httpx
import pytest
from fastapi import FastAPI

from service.api.security import HEADERS

Ask = Callable[..., httpx.Response]


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/v2/health/live", {}),
        ("GET", "/v1/models", {}),
        ("GET", "/nowhere", {}),
        ("DELETE", "/v1/models", {}),
        ("POST", "/v1/scans", {"Origin": "http://evil.example"}),
        ("GET", "/login", {}),
        ("GET", "/monailabel/info/", {}),
        ("GET", "/static-offline-docs/swagger-ui.css", {}),
    ],
)
def test_f15_every_answer_has_the_headers(
    ask: Ask, locked: FastAPI, method: str, path: str, headers: dict[str, str]
) -> None:
    """Answers, refusals and pages tell browsers not to guess types, not to be framed, and not to run what they hold."""
    answer = ask(locked, method, path, headers=headers)

    assert {name.lower() for name in HEADERS} <= set(answer.headers)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert "cache-control" in answer.headers or "etag" in answer.headers
