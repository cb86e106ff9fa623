"""Authentication: the owner of a request, by its key or by the session cookie of a browser.

Browsers cannot set headers on page loads, images and downloads: the login page exchanges the key for a cookie that no
script can read and no other site can send (HttpOnly, SameSite=Strict).
"""

import re
import secrets
import threading
import time
from typing import Final

from starlette.requests import HTTPConnection

from service.api.oidc import TokenVerifier
from service.errors import Forbidden, Unauthorized
from service.storage.keys import EVERYTHING, LOCAL, Keys, Owner, Scope

COOKIE: Final = "calibrant_session"

_MOST_SESSIONS = 10_000

_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
"""A signed JSON Web Token (RFC 7515, section 7.1); keys have no dots."""

_READ: Final[frozenset[Scope]] = frozenset({"read"})
_SUBMIT: Final[frozenset[Scope]] = frozenset({"submit"})


class Sessions:
    """Sessions of browsers, kept in memory: a restart logs everybody out."""

    def __init__(self, hours: float) -> None:
        """Prepare.

        Args:
            hours: after which a session ends.
        """
        self.seconds: Final = hours * 3600
        self._sessions: dict[str, tuple[Owner, float]] = {}
        self._turn = threading.Lock()

    def begin(self, owner: Owner) -> str:
        """Return the token of a new session."""
        token = secrets.token_urlsafe(32)
        with self._turn:
            now = time.monotonic()
            self._sessions = {key: value for key, value in self._sessions.items() if value[1] > now}
            while len(self._sessions) >= _MOST_SESSIONS:
                self._sessions.pop(next(iter(self._sessions)))
            self._sessions[token] = owner, now + self.seconds
        return token

    def owner_of(self, token: str) -> Owner | None:
        """Return the owner of a session, or None for an unknown or expired one."""
        owner, ends = self._sessions.get(token, (None, 0.0))
        return owner if time.monotonic() < ends else None

    def end(self, token: str) -> None:
        """Forget a session."""
        with self._turn:
            self._sessions.pop(token, None)


def caller(
    request: HTTPConnection, keys: Keys | None, sessions: Sessions, tokens: TokenVerifier | None = None
) -> Owner:
    """Return the owner of a request, `local` where no keys are in use.

    Raises:
        Unauthorized: key, token or cookie are missing or unknown; the message does not say which.
        ServiceBusy: the provider's keys cannot be fetched.
    """
    if keys is None:
        return Owner(LOCAL, admin=True)
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        if tokens is not None and _TOKEN.fullmatch(key.strip()):
            return tokens.owner_of(key.strip())
        owner = keys.owner_of(key.strip())
    else:
        owner = sessions.owner_of(request.cookies.get(COOKIE, ""))
        if owner and not keys.holds(owner.key):
            owner = None
    if owner is None:
        msg = "This service needs a key: send it as Authorization: Bearer KEY, or log in at /login. The operator makes keys with calibrant keys add."
        raise Unauthorized(msg)
    return owner


def reject_beyond_scope(owner: Owner, request: HTTPConnection) -> None:
    """Refuse a request that the key is not for.

    Raises:
        Forbidden: the message names the scopes that are needed.
    """
    needed = needed_for(request.scope["method"], getattr(request.scope.get("route"), "path", ""))
    if not needed <= owner.scopes:
        msg = f"This key is for {' and '.join(sorted(owner.scopes))} only; this needs {' and '.join(sorted(needed))}. The operator makes keys with calibrant keys add --scope."
        raise Forbidden(msg)


def needed_for(method: str, path: str) -> frozenset[Scope]:
    """Return the scopes that a route needs: what changes nothing needs to read, all else to submit.

    Args:
        method: HTTP method.
        path: of the route, with its parameters' names.
    """
    if path.startswith("/monailabel/infer"):  # takes a scan and answers with its mask
        return EVERYTHING
    # A reference measures a result, and is not kept.
    return _READ if method in ("GET", "HEAD") or path.endswith(("/reference", "/site-figures")) else _SUBMIT
