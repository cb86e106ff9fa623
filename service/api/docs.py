"""`/docs` and `/openapi.json`: the routes as a page and as a document; with keys in use, both need one.

FastAPI's own page loads its scripts from the internet, which a hospital does not have; fastapi-offline brings them as files.
"""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any, Final

import fastapi_offline
from fastapi import APIRouter, Request, Response, status
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse

from service.api.auth import caller
from service.api.deps import OwnerDep, ServicesDep
from service.errors import Unauthorized
from service.schemas import LINK_PREFIX

router = APIRouter(include_in_schema=False)

_STATIC: Final = Path(fastapi_offline.__file__).parent / "static"

_FILES: Final = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon.png": "image/png"}
"""Files of the page, by media type."""

_POLICY: Final = (
    "default-src 'none'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@router.get("/docs", response_class=HTMLResponse)
def show_docs(request: Request, services: ServicesDep) -> Response:
    """Return the page of the routes; a browser without a session is sent to the login."""
    try:
        caller(request, services.keys, services.sessions, services.tokens)
    except Unauthorized:
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("/login", status.HTTP_303_SEE_OTHER)
        raise
    root = LINK_PREFIX.get()
    static = f"{root}/static-offline-docs"
    page = get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title=f"{request.app.title} - routes",
        swagger_js_url=f"{static}/swagger-ui-bundle.js",
        swagger_css_url=f"{static}/swagger-ui.css",
        swagger_favicon_url=f"{static}/favicon.png",
    )
    page.headers["Content-Security-Policy"] = _POLICY.format(scripts=_hashes(bytes(page.body).decode()))
    return page


@router.get("/openapi.json")
def show_openapi(request: Request, _: OwnerDep) -> dict[str, Any]:
    """Return the OpenAPI document, with the address under which the caller knows this service."""
    return {**request.app.openapi(), "servers": [{"url": LINK_PREFIX.get() or "/"}]}


@router.get("/static-offline-docs/{name}")
def show_file(name: str) -> Response:
    """Return a script, style or picture of the page."""
    if name not in _FILES:
        return Response(status_code=status.HTTP_404_NOT_FOUND)
    return FileResponse(_STATIC / name, media_type=_FILES[name], headers={"Cache-Control": "public, max-age=3600"})


def _hashes(page: str) -> str:
    """Return the sources of the page's own scripts for a content security policy."""
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
