import asyncio
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from service.api.forwarded import HOST, Forwarded
from service.app import create_app
from service.client.calls import below
from service.schemas import LINK_PREFIX, Links
from service.settings import Settings

Ask = Callable[..., httpx.Response]


async def _tell(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope)
    seen = [request.url.scheme, scope[HOST], scope["client"][0], scope["path"], LINK_PREFIX.get()]
    location = request.query_params.get("to", "/there")
    await JSONResponse(seen, headers={"Location": location})(scope, receive, send)


def told(path: str, client: str = "10.0.0.1", root_path: str = "", **headers: str) -> tuple[list[str], str]:
    """Return scheme, host, client, path and prefix that an application sees, and the Location of its answer."""

    async def answer() -> httpx.Response:
        app = Forwarded(_tell, [ip_network("10.0.0.0/8")], root_path)
        transport = httpx.ASGITransport(app, client=(client, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
            return await http.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    reply = asyncio.run(answer())
    seen: Any = reply.json()
    return seen, reply.headers["location"]


SAYS = {
    "X_Forwarded_Proto": "https",
    "X_Forwarded_Host": "Hospital.example",
    "X_Forwarded_For": "198.51.100.7, 10.0.0.9",
    "X_Forwarded_Prefix": "/calibrant/",
}


def test_a_trusted_proxy_is_believed() -> None:
    """Scheme, host, client and prefix are the proxy's; the client is the last one that is no proxy itself."""
    seen, location = told("/v1/models", **SAYS)

    assert seen == ["https", "hospital.example", "198.51.100.7", "/v1/models", "/calibrant"]
    assert location == "/calibrant/there"


@pytest.mark.parametrize("client", ["192.0.2.1", "::1", "not an address"])
def test_nobody_else_is(client: str) -> None:
    """The same headers from another address change nothing."""
    assert told("/v1/models", client, **SAYS) == (["http", "server", client, "/v1/models", ""], "/there")


@pytest.mark.parametrize("prefix", ["calibrant", "//evil.example", "/a/../b", "/a b", "/a?b", "/a,/b", "javascript:1"])
def test_what_is_no_prefix_is_ignored(prefix: str) -> None:
    """A prefix that could lead elsewhere never reaches a link."""
    assert told("/x", X_Forwarded_Prefix=prefix)[1] == "/there"


@pytest.mark.parametrize("path", ["/p/v1/models", "/v1/models"])
def test_f15_the_prefix_is_kept_whether_the_proxy_removes_it_or_not(path: str) -> None:
    """The routes see the path without it; a path that merely begins with the same letters is left alone."""
    assert told(path, root_path="/p") == (["http", "server", "10.0.0.1", "/v1/models", "/p"], "/p/there")
    assert told("/pp/x", root_path="/p")[0][3] == "/pp/x"


@pytest.mark.parametrize(
    ("to", "location"),
    [
        ("/docs", "/p/docs"),
        ("/p/docs", "/p/docs"),
        ("http://server/v1/models?a=b", "/p/v1/models?a=b"),
        ("https://elsewhere.example/x", "https://elsewhere.example/x"),
    ],
)
def test_f15_redirects_keep_the_prefix(to: str, location: str) -> None:
    """Paths and addresses of this service get the prefix, once; others are left alone."""
    assert told("/", root_path="/p")[1] == "/p/there"
    assert told(f"/?to={to.replace('?', '%3F')}", root_path="/p")[1] == location


@pytest.fixture(name="app")
def app_(tmp_path: Path) -> FastAPI:
    """Return an application that is served below a prefix, not started."""
    return create_app(Settings(state_dir=tmp_path / "state", root_path="/p"))


def test_f15_pages_and_links_keep_the_prefix(ask: Ask, app: FastAPI) -> None:
    """The page of the routes loads its files below the prefix, the document names it, links of the models carry it."""
    page = ask(app, "GET", "/docs").text
    assert "/p/openapi.json" in page
    assert 'src="/p/static-offline-docs/swagger-ui-bundle.js"' in page
    assert ask(app, "GET", "/p/openapi.json").json()["servers"] == [{"url": "/p"}]
    assert 'action="/p/login"' in ask(app, "GET", "/login").text
    assert ask(app, "POST", "/logout").headers["location"] == "/p/login"
    assert ask(app, "GET", "/v1/models/").headers["location"] == "/p/v1/models"
    models = ask(app, "GET", "/v1/models").json()["models"]
    assert {model["reliability"].partition("/v1/")[0] for model in models} == {"/p"}


def test_a_link_is_as_it_is_outside_a_request() -> None:
    """Without a prefix nothing is added; Python code sees the path of the route either way."""
    token = LINK_PREFIX.set("/p")
    links = Links(self="/v1/x")
    assert (links.self, links.model_dump_json(exclude_none=True)) == ("/v1/x", '{"self":"/p/v1/x"}')
    LINK_PREFIX.reset(token)
    assert links.model_dump(mode="json", exclude_none=True) == {"self": "/v1/x"}


@pytest.mark.parametrize(
    ("address", "path", "sent"),
    [
        ("http://h", "/v1/x", "/v1/x"),
        ("http://h/p", "/p/v1/x", "/v1/x"),
        ("http://h/p/", "/p/v1/x", "/v1/x"),
        ("http://h/p", "/v1/x", "/v1/x"),
        ("http://h/v1", "/v1/v1/x", "/v1/x"),
    ],
)
def test_our_client_follows_links_with_the_prefix(address: str, path: str, sent: str) -> None:
    """The client's address holds the prefix already; a service that does not know its prefix is followed, too."""
    assert below(httpx.URL(address), path) == sent
