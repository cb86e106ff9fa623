"""Checks the Host header: a web page elsewhere may point its own name at a loopback address (DNS rebinding)."""

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.problems import respond
from service.errors import UnknownHost
from service.schemas import problem_of


class KnownHosts:
    """Passes on requests to known hosts and refuses all others with a problem document."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] == "http" and _without_port(Headers(scope=scope).get("host", "").lower()) not in self._hosts:
            error = UnknownHost(
                f"This service answers to {', '.join(self._hosts)} only. Use one of these in the address."
            )
            await respond(problem_of(error))(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _without_port(host: str) -> str:
    match = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(:\d*)?", host)
    return match[1] if match else ""
