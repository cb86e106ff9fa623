import logging
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.requests import HTTPConnection
from starlette.routing import Mount, Route

from service.api import auth
from service.api.auth import COOKIE, Sessions, caller
from service.errors import Unauthorized
from service.storage.keys import Keys, Owner, Scope, add_key, remove_key
from tests.service.api.conftest import Guarded

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts"))

import write_tenancy

Ask = Callable[..., httpx.Response]
Client = Callable[[str], httpx.Client]

ROUTE = "/v1/segmentations"
OPEN = {"/v2/health/live", "/v2/health/ready", "/login", "/logout", "/static-offline-docs/{name}"}
OPEN |= {"/monailabel/auth", "/monailabel/auth/token"}
OPEN |= {"/v1/hooks/orthanc"}  # Orthanc's script sends the webhook's secret instead
"""Routes that need no key."""


def routes(router: FastAPI | APIRouter) -> list[tuple[str, str]]:
    """Return method and path of every route, including undocumented ones."""
    methods_and_paths = []
    for route in router.routes:
        if isinstance(route, Route | APIRoute):
            methods_and_paths += [(method, route.path) for method in sorted(route.methods or [])]
        elif isinstance(route, Mount):
            assert route.path == "/static-offline-docs"
        else:
            methods_and_paths += routes(route.original_router)  # type: ignore[attr-defined]  # FastAPI's, of include_router
    return methods_and_paths


def test_every_route_but_the_open_ones_needs_a_key(ask: Ask, locked: FastAPI) -> None:
    """Every route outside the list of open ones answers 401 with the same document."""
    closed = [(method, path) for method, path in routes(locked) if path not in OPEN]
    documented = {(method.upper(), path) for path, all_ in locked.openapi()["paths"].items() for method in all_}
    assert documented <= {*routes(locked)}
    assert len(closed) >= 14
    seen = set()
    for method, path in closed:
        answer = ask(locked, method, path.replace("{", "").replace("}", ""), content=b"no scan")
        assert answer.status_code == 401, (method, path)
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["content-type"] == "application/problem+json"
        if method != "HEAD":
            seen.add(answer.text)

    assert len(seen) == 1
    assert '"type":"/problems/unauthorized"' in seen.pop()


def test_the_open_routes_are_open(ask: Ask, locked: FastAPI) -> None:
    """Health and login need no key."""
    assert ask(locked, "GET", "/v2/health/live").status_code == 200
    for path in ("/login", "/static-offline-docs/swagger-ui.css"):
        assert ask(locked, "GET", path).status_code == 200


def test_a_key_opens_every_closed_route(ask: Ask, locked: FastAPI, lab_key: str) -> None:
    """With a key, no route answers 401, so that the test above cannot pass for another reason."""
    headers = {"Authorization": f"Bearer {lab_key}"}
    for method, path in routes(locked):
        if path not in OPEN:
            answer = ask(locked, method, path.replace("{", "").replace("}", ""), content=b"no scan", headers=headers)
            assert answer.status_code != 401, (method, path)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic {key}",
        "{key}",
        "Bearer {key}x",
        "Bearer cal_000000000000_{secret}",
        "Bearer cal_{id}_" + "A" * 43,
        "Bearer cal_{id}",
        "Bearer " + "x" * 60_000,
        "Bearer {key} {key}",
        "Bearer cal_{id}_sch\u00f6n",
        "Bearer \u00fc\u00ff",
        "Bearer null",
        "Bearer ../../keys.json",
    ],
)
def test_what_is_no_key_is_401(ask: Ask, locked: FastAPI, lab_key: str, header: str) -> None:
    """A missing, partial, wrong, very long or non-ASCII key gets the same document, which does not say what was wrong."""
    _, identifier, secret = lab_key.split("_", 2)
    value = header.format(key=lab_key, id=identifier, secret=secret)

    answer = ask(locked, "GET", "/v1/models", headers={"Authorization": value.encode("latin-1")})

    assert answer.status_code == 401
    assert answer.text == ask(locked, "GET", "/v1/models").text


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer "])
def test_the_scheme_is_written_in_any_case(ask: Ask, locked: FastAPI, lab_key: str, scheme: str) -> None:
    """An authentication scheme is case-insensitive (RFC 9110, section 11.1)."""
    assert ask(locked, "GET", "/v1/models", headers={"Authorization": f"{scheme} {lab_key}"}).status_code == 200


def test_a_removed_key_stops_working(ask: Ask, locked: FastAPI, keys_file: Path, lab_key: str) -> None:
    """A removed key is refused at once, also in a browser session; another key still works."""
    other = add_key(keys_file, "lab", admin=False)
    owner = Keys(keys_file).owner_of(lab_key)
    assert owner is not None
    cookie = {"Cookie": f"{COOKIE}={locked.state.services.sessions.begin(owner)}"}
    key = {"Authorization": f"Bearer {lab_key}"}
    assert [ask(locked, "GET", "/v1/models", headers=headers).status_code for headers in (key, cookie)] == [200, 200]

    remove_key(keys_file, owner.key)

    assert [ask(locked, "GET", "/v1/models", headers=headers).status_code for headers in (key, cookie)] == [401, 401]
    assert ask(locked, "GET", "/v1/models", headers={"Authorization": f"Bearer {other}"}).status_code == 200


def test_a_damaged_file_of_keys_lets_nobody_in(ask: Ask, locked: FastAPI, keys_file: Path, lab_key: str) -> None:
    """The answer is 401, not an internal error, and does not show the file's path."""
    keys_file.write_text("{")

    answer = ask(locked, "GET", "/v1/models", headers={"Authorization": f"Bearer {lab_key}"})

    assert answer.status_code == 401
    assert "keys.json" not in answer.text


def connection(cookie: str = "") -> HTTPConnection:
    """Return a request with a cookie."""
    return HTTPConnection({"type": "http", "headers": [(b"cookie", f"{COOKIE}={cookie}".encode())]})


def test_sessions_end(monkeypatch: pytest.MonkeyPatch, keys_file: Path, lab_key: str) -> None:
    """A session ends after its hours and at logout; tokens are long and never the same."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    keys, sessions = Keys(keys_file), Sessions(0.5)
    owner = keys.owner_of(lab_key)
    assert owner is not None
    tokens = [sessions.begin(owner) for _ in range(3)]
    assert len({*tokens}) == 3
    assert min(map(len, tokens)) >= 43
    assert [caller(connection(token), keys, sessions) for token in tokens] == [owner] * 3

    sessions.end(tokens[0])
    sessions.end("unknown")
    with pytest.raises(Unauthorized):
        caller(connection(tokens[0]), keys, sessions)
    now += 1799
    assert caller(connection(tokens[1]), keys, sessions) == owner
    now += 1
    with pytest.raises(Unauthorized):
        caller(connection(tokens[1]), keys, sessions)


def test_sessions_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit, ended sessions are dropped first, then the oldest."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(auth, "_MOST_SESSIONS", 3)
    sessions, owner = Sessions(1), Owner("lab", admin=False)
    tokens = [sessions.begin(owner) for _ in range(5)]
    assert [sessions.owner_of(token) is not None for token in tokens] == [False, False, True, True, True]

    now += 3601
    sessions.begin(owner)

    assert len(sessions._sessions) == 1


def test_without_keys_everybody_is_the_same_owner() -> None:
    """On a loopback address without keys, every caller is `local`."""
    assert caller(connection("whatever"), None, Sessions(1)) == Owner("local", admin=True)


def test_owners_see_their_own_only(login_as: Client, nifti: Callable[..., bytes], guarded: Guarded) -> None:
    """Another owner's job, result and scan answer on every route exactly like unknown ids."""
    we, they = login_as("we"), login_as("they")
    content = nifti(cal_max=uuid.uuid4().int % 1000)
    theirs = they.post(ROUTE, content=content, headers={"Prefer": "wait=50", "Idempotency-Key": "shared"}).json()
    assert theirs["state"] == "succeeded"
    unknown = uuid.uuid4().hex, "0" * 64
    document = they.get("/openapi.json").json()["paths"]
    compared = 0
    for path, methods in document.items():
        for method in methods:
            if "{job_id}" not in path and "{scan_id}" not in path:
                continue
            answers = [
                we.request(method, path.format(job_id=job, scan_id=scan))
                for job, scan in ((theirs["id"], theirs["scan"]), unknown)
            ]
            assert {answer.status_code for answer in answers} == {404}, (method, path)
            assert answers[0].text == answers[1].text
            assert answers[0].headers.keys() == answers[1].headers.keys()
            compared += 1
    assert compared >= 9

    assert we.get(ROUTE).json() == {"jobs": [], "next": None}
    assert we.post(ROUTE, params={"scan": theirs["scan"]}).status_code == 404
    ours = we.post(ROUTE, content=content, headers={"Idempotency-Key": "shared"}).json()
    assert ours["id"] != theirs["id"]
    assert ours["scan"] == theirs["scan"]
    assert we.delete(f"{ROUTE}/{ours['id']}").status_code == 204
    assert they.get(f"{ROUTE}/{theirs['id']}").json() == theirs
    assert they.get(f"/v1/scans/{theirs['scan']}").status_code == 200
    assert sorted(path.parent.name for path in guarded.state.glob(f"scans/*/{theirs['scan']}")) == ["they"]


def test_no_key_is_ever_logged(guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    """Neither keys nor cookies appear in the service's output or its database."""
    key = add_key(guarded.keys, "logged", admin=False)
    secret = key.split("_", 2)[2]
    with caplog.at_level(logging.CRITICAL):
        client = guarded.client(key)
        token = client.post("/login", data={"key": key}).cookies[COOKIE]
        client.post("/login", data={"key": key + "wrong"})
        client.get("/v1/models", headers={"Authorization": f"Bearer {key}wrong"})
        client.get(f"/{key}?key={key}")
        client.get("/v1/models")

    for file in (guarded.log, *guarded.state.glob("jobs.sqlite*")):
        content = file.read_bytes()
        assert secret.encode() not in content
        assert token.encode() not in content


@pytest.mark.parametrize(
    ("method", "path", "scopes"),
    [
        ("GET", "/v1/segmentations/{job_id}", {"read"}),
        ("HEAD", "/v1/segmentations/{job_id}/mask", {"read"}),
        ("POST", "/v1/segmentations", {"submit"}),
        ("DELETE", "/v1/scans/{scan_id}", {"submit"}),
        ("PUT", "/monailabel/session", {"submit"}),
        ("POST", "/v1/segmentations/{job_id}/reference", {"read"}),
        ("POST", "/monailabel/infer/{model}", {"submit", "read"}),
    ],
)
def test_what_changes_nothing_needs_to_read_and_all_else_to_submit(method: str, path: str, scopes: set[str]) -> None:
    """A reference is sent, but measures a result; an inference takes a scan and answers with its mask."""
    assert auth.needed_for(method, path) == scopes


@pytest.mark.parametrize(("scope", "refused"), [("read", "POST"), ("submit", "GET")])
def test_a_key_does_what_it_is_for(ask: Ask, locked: FastAPI, keys_file: Path, scope: Scope, refused: str) -> None:
    """A key with one scope is refused what needs the other, with a message that names both; also as a cookie."""
    key = add_key(keys_file, "gateway", admin=False, scopes=frozenset({scope}))
    cookie = ask(locked, "POST", "/login", data={"key": key}).cookies[COOKIE]

    for headers in ({"Authorization": f"Bearer {key}"}, {"Cookie": f"{COOKIE}={cookie}"}):
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/scans")):
            answer = ask(locked, method, path, headers=headers)
            assert (answer.status_code == 403) == (method == refused)
        answer = ask(locked, refused, "/v1/models" if refused == "GET" else "/v1/scans", headers=headers)
        assert answer.json()["type"] == "/problems/forbidden"
        assert f"for {scope} only" in answer.json()["detail"]


def test_the_committed_table_is_what_a_service_answers(guarded: Guarded) -> None:
    """docs/tenancy.md shows what every operation answers to callers who may not use it; scripts/write_tenancy.py writes it."""
    table = write_tenancy.table(guarded.url, guarded.keys)

    assert write_tenancy.TARGET.read_text() == table
    for row in table.splitlines():
        if row.startswith(("| GET ", "| POST ", "| DELETE ")):
            assert " | 2" not in row, row
