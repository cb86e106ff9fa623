"""Refuses requests that a page of another site sends from a user's browser, unless they change nothing.

A page anywhere may send a POST to this service: it cannot read the answer, but the request is carried out, on a loopback
address without any key. Browsers say where such a request comes from, in `Sec-Fetch-Site` and `Origin`, which no page can
forge. Other clients send neither.
"""

from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.forwarded import HOST
from service.api.monailabel.door import PREFIX
from service.api.problems import respond
from service.errors import ForeignOrigin
from service.schemas import problem_of

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing (RFC 9110, section 9.2.1)."""

_FOREIGN: Final = ("cross-site", "same-site")


class OwnOrigin:
    """Passes on what changes nothing, or does not come from a page of another site; pages of viewers may use their routes."""

    def __init__(self, app: ASGIApp, viewers: Collection[str]) -> None:
        """Prepare.

        Args:
            app: application behind.
            viewers: origins of the pages that may use `/monailabel/`.
        """
        self._app = app
        self._viewers = frozenset(viewers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] == "http" and scope["method"] not in SAFE and self._is_foreign(scope):
            error = ForeignOrigin(
                "The request was sent by a web page of another site. Send it from a page of this service, or without a browser."
            )
            await respond(problem_of(error))(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_foreign(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin in self._viewers and scope["path"].startswith(f"{PREFIX}/"):
            return False
        if site is not None:
            return site in _FOREIGN
        # Older browsers, and all of them over plain HTTP to another machine, send only Origin.
        return origin is not None and origin.partition("://")[2].lower() != scope[HOST]
