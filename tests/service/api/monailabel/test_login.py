import dataclasses
from collections.abc import Callable

import httpx
import pytest
from fastapi import FastAPI

from tests.service.api.monailabel.conftest import Labelling, Slicer

Ask = Callable[..., httpx.Response]

TOKEN = "/monailabel/auth/token"  # noqa: S105 - a path


def test_the_password_is_the_key(slicer: Slicer, labelling: Labelling) -> None:
    """3D Slicer gets a token for any user name with the key as password, and the token works as the key."""
    assert slicer.method("GET", "/info/")[0] == 401

    assert slicer.connect(f"  {labelling.key('slicer')}\n")

    assert slicer.method("GET", "/info/")[0] == 200


@pytest.mark.parametrize("password", ["", "cal_000000000000_x", "DOE^JANE", "x" * 201])
def test_an_unknown_key_gets_no_token(ask: Ask, locked: FastAPI, password: str) -> None:
    """The answer is a problem document that repeats nothing of the input."""
    form = {"username": "DOE^JANE", "password": password, "grant_type": "password"}
    answer = ask(locked, "POST", f"{TOKEN}/", data=form)

    assert answer.status_code in {401, 422}
    assert answer.headers["content-type"] == "application/problem+json"
    assert "JANE" not in answer.text
    assert ask(locked, "GET", f"{TOKEN}/valid", headers={"Authorization": f"Bearer {password}"}).status_code == 401


def test_without_keys_nobody_is_asked_for_one(ask: Ask, locked: FastAPI) -> None:
    """Without keys no token is needed, and a password is answered with that advice."""
    locked.state.services = dataclasses.replace(locked.state.services, keys=None)

    assert ask(locked, "GET", "/monailabel/auth/").json() == {"enabled": False, "client_id": "", "realm": "Calibrant"}
    assert ask(locked, "GET", f"{TOKEN}/valid").status_code == 200
    assert ask(locked, "POST", TOKEN, data={"password": "x"}).json()["type"] == "/problems/invalid-request"
