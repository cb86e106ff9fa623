"""`/login`: exchanges a key for a cookie, for people with a browser."""

from typing import Annotated, Final

from fastapi import APIRouter, Form, Request, Response, status
from fastapi.responses import HTMLResponse, RedirectResponse

from service.api.auth import COOKIE
from service.api.deps import ServicesDep, address_of
from service.schemas import LINK_PREFIX

router = APIRouter(tags=["login"], include_in_schema=False)

_PAGE: Final = """\
<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Calibrant</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 24rem; margin: 15vh auto; padding: 0 1rem; color: #1b1b1b }}
input, button {{ font: inherit; width: 100%; padding: .5rem; margin: .25rem 0 .75rem; box-sizing: border-box }}
[role=alert] {{ border-left: 4px solid #b3261e; padding-left: .75rem }}
small {{ color: #555 }}
</style></head>
<body>
<h1>Calibrant</h1>
{alert}
<form method="post" action="{prefix}/login">
<label for="key">Key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button>Log in</button>
</form>
<small>The operator of this service makes keys with <code>calibrant keys add</code>. For research use only.</small>
</body></html>
"""

_ALERT: Final = '<p role="alert">This key is not known here. Copy it again, or ask the operator for a new one.</p>'

_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
}


@router.get("/login", response_class=HTMLResponse)
def show_login() -> HTMLResponse:
    """Return the page that asks for the key."""
    return HTMLResponse(_PAGE.format(alert="", prefix=LINK_PREFIX.get()), headers=_HEADERS)


@router.post("/login")
def log_in(request: Request, services: ServicesDep, key: Annotated[str, Form(max_length=200)]) -> Response:
    """Set the cookie and redirect to the routes; show the page again for an unknown key."""
    services.rates.reject_guessing(address_of(request))
    owner = services.keys.owner_of(key.strip()) if services.keys else None
    if owner is None:
        services.rates.count_failure(address_of(request))
        return HTMLResponse(
            _PAGE.format(alert=_ALERT, prefix=LINK_PREFIX.get()), status.HTTP_401_UNAUTHORIZED, headers=_HEADERS
        )
    request.state.owner = owner  # for the audit log
    answer = RedirectResponse("/docs", status.HTTP_303_SEE_OTHER)
    answer.set_cookie(
        COOKIE,
        services.sessions.begin(owner),
        max_age=int(services.sessions.seconds),
        httponly=True,
        samesite="strict",
        path=LINK_PREFIX.get() or "/",
        secure=request.url.scheme == "https" or services.settings.behind_proxy,
    )
    return answer


@router.post("/logout")
def log_out(request: Request, services: ServicesDep) -> Response:
    """Forget the session and its cookie."""
    services.sessions.end(request.cookies.get(COOKIE, ""))
    answer = RedirectResponse("/login", status.HTTP_303_SEE_OTHER)
    answer.delete_cookie(COOKIE, path=LINK_PREFIX.get() or "/")
    return answer
