from collections.abc import Callable
from typing import Annotated

import httpx
import pytest
from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field

from service.api import problems
from service.api.document import MAX_BYTES, described, receive_document


class Inner(BaseModel):
    """A part of a body."""

    number: int = 0


class Body(BaseModel):
    """A body."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=5)]
    inner: Inner = Inner()


@pytest.fixture
def app() -> FastAPI:
    """Return an application that repeats a body."""
    app = FastAPI()
    problems.install(app)

    @app.post("/")
    async def repeat(request: Request) -> Body:
        return await receive_document(request, Body)

    return app


def test_a_body_is_read(app: FastAPI, ask: Callable[..., httpx.Response]) -> None:
    """The body is read as JSON whatever its Content-Type."""
    answer = ask(app, "POST", "/", content=b'{"name": "a", "inner": {"number": 2}}')
    assert answer.json() == {"name": "a", "inner": {"number": 2}}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "body: json_invalid"),
        (b"CANARY", "body: json_invalid"),
        (b"{}", "name: missing"),
        (b'{"name": "CANARY"}', "name: string_too_long"),
        (b'{"name": "a", "CANARY": 1}', "body: extra_forbidden"),
        (b'{"name": "a", "inner": {"number": "CANARY"}}', "inner: int_parsing"),
    ],
)
def test_a_refusal_says_what_is_wrong_and_repeats_nothing(
    app: FastAPI, ask: Callable[..., httpx.Response], content: bytes, reason: str
) -> None:
    """The refusal repeats neither values nor unknown names."""
    answer = ask(app, "POST", "/", content=content)
    assert answer.status_code == 422
    assert reason in answer.json()["detail"]
    assert "CANARY" not in answer.text


def test_a_long_body_is_not_read(app: FastAPI, ask: Callable[..., httpx.Response]) -> None:
    """The body is counted while it arrives, and refused beyond the limit."""
    answer = ask(app, "POST", "/", content=b" " * (MAX_BYTES + 1))
    assert (answer.status_code, answer.json()["type"]) == (413, "/problems/payload-too-large")


def test_the_description_has_no_references() -> None:
    """References are inlined, because FastAPI would not define their targets."""
    schema = described(Body)["requestBody"]["content"]["application/json"]["schema"]
    assert "$ref" not in str(schema)
    assert schema["properties"]["inner"]["properties"]["number"]["type"] == "integer"
