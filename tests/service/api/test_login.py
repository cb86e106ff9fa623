import dataclasses
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.api.auth import COOKIE
from service.storage.keys import remove_key
from tests.service.api.conftest import Guarded

Ask = Callable[..., httpx.Response]


def log_in(ask: Ask, app: FastAPI, key: str, **options: Any) -> httpx.Response:  # noqa: ANN401 - httpx's own
    """Send the login form."""
    return ask(app, "POST", "/login", data={"key": key}, **options)


def attributes(answer: httpx.Response) -> dict[str, str]:
    """Return value and attributes of the cookie that an answer sets, in lower case."""
    (header,) = answer.headers.get_list("set-cookie")
    pairs = (part.strip().partition("=") for part in header.split(";"))
    return {name.lower(): value for name, _, value in pairs}


def test_the_page_asks_for_a_key_and_for_nothing_else(ask: Ask, locked: FastAPI) -> None:
    """The page loads nothing, cannot be framed, is not cached, and hides what is typed."""
    answer = ask(locked, "GET", "/login")

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "form-action 'self'", "frame-ancestors 'none'"} <= {*policy}
    assert re.findall(r"<input [^>]*>", answer.text) == [
        '<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>'
    ]
    assert "<script" not in answer.text
    assert 'role="alert"' not in answer.text


def test_a_key_becomes_a_cookie_that_no_script_reads(ask: Ask, locked: FastAPI, lab_key: str) -> None:
    """The cookie is HttpOnly and SameSite=Strict, lasts as configured, and works like the key without containing it."""
    answer = log_in(ask, locked, f"  {lab_key}\n")

    assert (answer.status_code, answer.headers["location"]) == (303, "/docs")
    cookie = attributes(answer)
    assert {"httponly", "samesite", "max-age", "path", COOKIE} == cookie.keys()
    assert (cookie["samesite"].lower(), cookie["max-age"], cookie["path"]) == ("strict", "28800", "/")
    assert lab_key.split("_", 2)[2] not in str(answer.headers)
    headers = {"Cookie": f"{COOKIE}={cookie[COOKIE]}"}
    assert ask(locked, "GET", "/v1/models", headers=headers).status_code == 200
    assert ask(locked, "GET", "/v1/models", headers={"Cookie": f"{COOKIE}={lab_key}"}).status_code == 401


def test_every_login_has_a_cookie_of_its_own(ask: Ask, locked: FastAPI, lab_key: str) -> None:
    """Logging out in one browser leaves the other logged in."""
    first, second = (attributes(log_in(ask, locked, lab_key))[COOKIE] for _ in range(2))
    assert first != second

    answer = ask(locked, "POST", "/logout", headers={"Cookie": f"{COOKIE}={first}"})

    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    gone = attributes(answer)
    assert (gone[COOKIE].strip('"'), gone["max-age"]) == ("", "0")
    statuses = [
        ask(locked, "GET", "/v1/models", headers={"Cookie": f"{COOKIE}={token}"}).status_code
        for token in (first, second)
    ]
    assert statuses == [401, 200]


def test_the_cookie_travels_encrypted_where_the_page_did(ask: Ask, locked: FastAPI, lab_key: str) -> None:
    """The cookie is Secure over HTTPS and behind a proxy; otherwise a browser would not send it."""
    services = locked.state.services
    assert "secure" not in attributes(log_in(ask, locked, lab_key))
    over_https = ask(locked, "POST", "https://localhost/login", data={"key": lab_key})
    assert "secure" in attributes(over_https)

    settings = services.settings.model_copy(update={"behind_proxy": True})
    locked.state.services = dataclasses.replace(services, settings=settings)

    assert "secure" in attributes(log_in(ask, locked, lab_key))


@pytest.mark.parametrize(
    "key", ["cal_000000000000_x", " ", "{key}x", "sch\u00f6n", "<script>", "x" * 200, "\U0001f9e0", "\x00"]
)
def test_an_unknown_key_is_shown_the_page_again(ask: Ask, locked: FastAPI, lab_key: str, key: str) -> None:
    """An unknown key gets the page with 401 and a sentence, no cookie, and nothing of what was typed."""
    answer = log_in(ask, locked, key.format(key=lab_key))

    assert answer.status_code == 401
    assert '<p role="alert">This key is not known here.' in answer.text
    assert "set-cookie" not in answer.headers
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.text == log_in(ask, locked, "another").text


@pytest.mark.parametrize(
    ("options", "statuses"),
    [
        ({"data": {}}, {422}),
        ({"data": {"key": "x" * 201}}, {422}),
        ({"data": {"key": "x" * 5_000_000}}, {400, 413, 422}),
        ({"data": {f"k{n}": "x" for n in range(5000)}}, {400, 413, 422}),
        ({"json": {"key": "x"}}, {422}),
        ({"content": b"key=x", "headers": {"Content-Type": "text/plain"}}, {422}),
        ({"content": b"--b", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, {400, 422}),
        ({"content": b"--b", "headers": {"Content-Type": "multipart/form-data"}}, {400, 422}),
        ({"files": {"key": ("x", b"x")}}, {422}),
    ],
    ids=["nothing", "long", "5 MB", "5000 fields", "JSON", "text", "cut", "no boundary", "file"],
)
def test_what_is_no_form_of_the_page_is_a_problem(
    ask: Ask, locked: FastAPI, options: dict[str, Any], statuses: set[int]
) -> None:
    """Anything else than the page's form is a client error with a problem document and no cookie."""
    answer = ask(locked, "POST", "/login", **options)

    assert answer.status_code in statuses
    assert answer.headers["content-type"] == "application/problem+json"
    assert "set-cookie" not in answer.headers


def test_without_keys_there_is_nothing_to_log_in_to(ask: Ask, locked: FastAPI) -> None:
    """Where no keys are in use, every key is unknown."""
    locked.state.services = dataclasses.replace(locked.state.services, keys=None)

    assert log_in(ask, locked, "anything").status_code == 401


def test_a_browser_goes_through_a_real_service(guarded: Guarded, login_as: Callable[[str], httpx.Client]) -> None:
    """A client with a cookie jar logs in, reads, and is logged out when its key is removed."""
    key = login_as("browser").headers["Authorization"].removeprefix("Bearer ")
    with httpx.Client(base_url=guarded.url) as browser:
        assert browser.get("/v1/segmentations").status_code == 401
        assert browser.post("/login", data={"key": key}).status_code == 303
        assert browser.get("/v1/segmentations").json() == {"jobs": [], "next": None}
        remove_key(guarded.keys, key.split("_")[1])
        assert browser.get("/v1/segmentations").status_code == 401
        assert browser.post("/login", data={"key": key}).status_code == 401
        assert browser.post("/logout").status_code == 303
        assert COOKIE not in browser.cookies
