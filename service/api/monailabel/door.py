"""The entrance to `/monailabel/`: a secret in the path instead of a key, trailing slashes, pages of other origins.

OHIF sends no token, so the path may carry a secret instead (`/monailabel/SECRET/...`). The clients follow no redirects, so
a trailing slash is ignored. Both are removed here: nothing behind the door sees them, and no log holds them.
"""

import hmac
from typing import Annotated, Final
from urllib.parse import quote

from fastapi import Depends, Request
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.deps import ServicesDep, identify
from service.storage.keys import LOCAL, Owner

PREFIX: Final = "/monailabel"

VIEWER: Final = "viewer"
"""Owner of requests that carry the secret, where keys are in use; a key of this owner sees their results."""

_LET_IN: Final = "calibrant.let_in"


class Door:
    """Rewrites requests to `/monailabel/` and passes all others on untouched."""

    def __init__(self, app: ASGIApp, secret: str | None, origins: tuple[str, ...]) -> None:
        """Prepare.

        Args:
            app: application behind the door.
            secret: secret that a path may carry; None if there is no such path.
            origins: origins of the web pages that may read the answers, e.g. http://localhost:3000.
        """
        self._app = app
        self._secret = secret.encode() if secret else None
        self._viewers: ASGIApp = app
        if origins:
            self._viewers = CORSMiddleware(
                app, allow_origins=origins, allow_methods=["GET", "POST", "PUT", "DELETE"], allow_headers=["*"]
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] == "http" and scope["path"].startswith(f"{PREFIX}/"):
            await self._viewers(self._without_secret(scope), receive, send)
        else:
            await self._app(scope, receive, send)

    def _without_secret(self, scope: Scope) -> Scope:
        route = scope["path"].removeprefix(f"{PREFIX}/")
        first, _, rest = route.partition("/")
        known = self._secret is not None and hmac.compare_digest(first.encode(), self._secret)
        path = f"{PREFIX}/{(rest if known else route).rstrip('/')}"
        return {**scope, "path": path, "raw_path": quote(path).encode(), _LET_IN: known}


def came_by_secret(request: Request) -> bool:
    """Return whether the path carried the secret."""
    return bool(request.scope.get(_LET_IN))


def _viewer(request: Request, services: ServicesDep) -> Owner:
    if came_by_secret(request):
        return Owner(VIEWER if services.keys else LOCAL, admin=False)
    return identify(request, services)


ViewerDep = Annotated[Owner, Depends(_viewer)]
"""Owner of the request, by the secret or else by key or cookie; 401 without one where keys are in use."""
