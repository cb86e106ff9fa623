import asyncio

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from service.api.hosts import KnownHosts


async def _hello(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("hello")(scope, receive, send)


def ask(host: str) -> httpx.Response:
    """Return the answer to a request with this Host header."""

    async def answer() -> httpx.Response:
        transport = httpx.ASGITransport(KnownHosts(_hello, ("localhost", "127.0.0.1", "[::1]")))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.get("/", headers={"Host": host})

    return asyncio.run(answer())


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]", "[::1]:8000"])
def test_known_hosts_are_answered(host: str) -> None:
    """Known hosts are served with and without a port, over IPv4 and IPv6."""
    assert ask(host).text == "hello"


@pytest.mark.parametrize(
    "host",
    ["", "example.org", "localhost.example.org", "127.0.0.1.example.org:80", "[::2]", "::1", "[::1].example.org"],
)
def test_other_hosts_are_refused_with_a_problem_document(host: str) -> None:
    """A name that merely looks like a known one is refused and not repeated."""
    answer = ask(host)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "/problems/unknown-host"
    assert "example" not in answer.text
