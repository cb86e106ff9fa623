"""`/monailabel/auth`: API keys as the tokens of 3D Slicer; the password is the key, the user name is ignored."""

from typing import Annotated

from fastapi import APIRouter, Form, Request

from service.api.deps import ServicesDep, address_of
from service.api.monailabel.door import PREFIX, ViewerDep, came_by_secret
from service.errors import InvalidRequest, Unauthorized

router = APIRouter(prefix=f"{PREFIX}/auth", include_in_schema=False)


@router.get("")
def show_auth(request: Request, services: ServicesDep) -> dict[str, bool | str]:
    """Return whether a token is needed; 3D Slicer asks this before every other request."""
    return {"enabled": services.keys is not None and not came_by_secret(request), "client_id": "", "realm": "Calibrant"}


@router.post("/token")
def make_token(
    request: Request, services: ServicesDep, password: Annotated[str, Form(max_length=200)]
) -> dict[str, str]:
    """Return the key as a token.

    Raises:
        InvalidRequest: no keys are in use.
        Unauthorized: the key is not known.
        RateLimited: too many were unknown of late.
    """
    if services.keys is None:
        msg = "This service uses no keys. Connect without a user name and password."
        raise InvalidRequest(msg)
    services.rates.reject_guessing(address_of(request))
    key = password.strip()
    if services.keys.owner_of(key) is None:
        services.rates.count_failure(address_of(request))
        msg = "This key is not known here. The password is a key that the operator made with calibrant keys add; the user name does not matter."
        raise Unauthorized(msg)
    return {"access_token": key, "token_type": "Bearer"}


@router.get("/token/valid")
def is_token_valid(_: ViewerDep) -> dict[str, bool]:
    """Answer 200 to a known key, 401 to any other."""
    return {"valid": True}
