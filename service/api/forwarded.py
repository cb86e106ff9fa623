"""What a trusted reverse proxy says about a request: the client's address, scheme and host, and the prefix of the path.

A proxy that serves this service below a prefix either removes it from the path and names it in `X-Forwarded-Prefix`, or
leaves it there, as CALIBRANT_ROOT_PATH says. Either way the routes see a path without it, and links, Location and redirects
carry it. Nobody else is believed.
"""

import ipaddress
import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.schemas import LINK_PREFIX

PREFIX: Final = re.compile(r"(/[A-Za-z0-9._~-]+)*")
"""What a prefix looks like; a segment of dots is refused besides."""

HOST: Final = "calibrant.host"
"""Key of the scope: the host, with its port, under which the caller knows this service."""

_HOST: Final = re.compile(r"[A-Za-z0-9.-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Forwarded:
    """Applies the headers of trusted proxies, and keeps the prefix in redirects."""

    def __init__(self, app: ASGIApp, trusted: Sequence[Network], root_path: str) -> None:
        """Prepare.

        Args:
            app: application behind.
            trusted: networks of the proxies.
            root_path: prefix of every path, unless a proxy names one; empty or beginning with a slash.
        """
        self._app = app
        self._trusted = tuple(trusted)
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope = {**scope, HOST: headers.get("host", "").lower()}
        prefix = self._root_path
        if self._trusts((scope.get("client") or ("", 0))[0]):
            prefix = _prefix(headers.get("x-forwarded-prefix", "")) or prefix
            self._believe(scope, headers)
        if prefix and (scope["path"] + "/").startswith(f"{prefix}/"):
            scope["path"] = scope["path"].removeprefix(prefix) or "/"
            scope["raw_path"] = scope["raw_path"].removeprefix(prefix.encode()) or b"/"

        async def with_prefix(message: Message) -> None:
            if message["type"] == "http.response.start":
                _keep_prefix(MutableHeaders(scope=message), prefix, headers.get("host", ""))
            await send(message)

        token = LINK_PREFIX.set(prefix)
        try:
            await self._app(scope, receive, with_prefix)
        finally:
            LINK_PREFIX.reset(token)

    def _trusts(self, address: str) -> bool:
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(ip in network for network in self._trusted)

    def _believe(self, scope: Scope, headers: Headers) -> None:
        """Take scheme, host and client of a proxy's headers; of several clients the last that is no trusted proxy."""
        if (scheme := headers.get("x-forwarded-proto", "").strip().lower()) in ("http", "https"):
            scope["scheme"] = scheme
        if _HOST.fullmatch(host := headers.get("x-forwarded-host", "").strip()):
            scope[HOST] = host.lower()
        named = ",".join(headers.getlist("x-forwarded-for")).split(",")
        clients = [address.strip() for address in named if address.strip()]
        if clients:
            scope["client"] = (next((one for one in reversed(clients) if not self._trusts(one)), clients[0]), 0)


def _prefix(given: str) -> str:
    """Return a proxy's prefix without a slash at the end; nothing if it does not look like one."""
    prefix = given.strip().rstrip("/")
    dots = {".", ".."} & set(prefix.split("/"))
    return prefix if PREFIX.fullmatch(prefix) and not dots else ""


def _keep_prefix(headers: MutableHeaders, prefix: str, host: str) -> None:
    """Put the prefix before the path of Location; an address of this service becomes a path, whatever its scheme."""
    location = headers.get("location")
    if location is None:
        return
    parts = urlsplit(location)
    if parts.netloc not in ("", host):
        return
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    headers["location"] = path if (path + "/").startswith(f"{prefix}/") and prefix else prefix + path
