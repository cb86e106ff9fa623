from collections.abc import Callable

import httpx
import pytest
from fastapi import APIRouter, FastAPI

from service.api.head import answer_head

Ask = Callable[..., httpx.Response]


@pytest.mark.parametrize(
    "path",
    ["/v2/health/live", "/v1/segmentations/x", "/v1/segmentations/x/mask", "/v1/segmentations/x/summary", "/docs"],
)
def test_f15_head_is_answered_as_get(ask: Ask, locked: FastAPI, lab_key: str, path: str) -> None:
    """HEAD has the status of GET, with a key and without."""
    for headers in ({}, {"Authorization": f"Bearer {lab_key}"}):
        head, get = (ask(locked, method, path, headers=headers) for method in ("HEAD", "GET"))
        assert (head.status_code, head.headers["content-type"]) == (get.status_code, get.headers["content-type"])


def test_a_router_answers_head_once(ask: Ask) -> None:
    """Adding HEAD again changes nothing; a stream of events has none."""
    router = APIRouter(prefix="/a")

    @router.get("/b")
    def b() -> dict[str, int]:
        return {"c": 1}

    @router.get("/events")
    async def events():  # type: ignore[no-untyped-def]  # noqa: ANN202 - as FastAPI finds it
        yield "x"

    answer_head(router)
    answer_head(router)
    app = FastAPI()
    app.include_router(router)

    assert len(router.routes) == 3
    assert ask(app, "HEAD", "/a/b").headers["content-length"] == "7"
    assert ask(app, "HEAD", "/a/events").status_code == 405
