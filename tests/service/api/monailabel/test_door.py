import asyncio

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from service.api.monailabel.door import PREFIX, VIEWER, Door
from tests.service.api.monailabel.conftest import Labelling

OTHER = "https://elsewhere.example"


def behind(path: str, secret: str | None) -> Scope:
    """Return what the application behind the door receives of a request."""
    told: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del receive
        told.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask() -> None:
        transport = httpx.ASGITransport(Door(app, secret, ()))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await client.get(path)

    asyncio.run(ask())
    return told[0]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("{}/info/", "{}/info"),
        ("{}/info", "{}/info"),
        ("{}/infer/tiny", "{}/infer/tiny"),
        ("{}/{secret}/info/", "{}/info"),
        ("{}/{secret}/auth/token/valid", "{}/auth/token/valid"),
        ("{}/{secret}/", "{}/"),
        ("{}/{secret}", "{}/"),
        ("{}/{secret}x/info/", "{}/{secret}x/info"),
        ("{}/%C3%A9/info/", "{}/\u00e9/info"),
        ("/v1/models/", "/v1/models/"),
        ("/v1/{secret}/info/", "/v1/{secret}/info/"),
        ("{}x/{secret}/info/", "{}x/{secret}/info/"),
    ],
)
def test_secret_and_slash_are_taken_away(path: str, expected: str, secret: str) -> None:
    """The door removes the whole secret and the trailing slash below /monailabel/, also from the raw path."""
    scope = behind(path.format(PREFIX, secret=secret), secret)

    assert scope["path"] == expected.format(PREFIX, secret=secret)
    if secret not in expected.format(PREFIX, secret=secret):
        assert secret.encode() not in scope["raw_path"]


@pytest.mark.parametrize("setting", [None, ""])
def test_without_a_secret_none_is_right(setting: str | None) -> None:
    """If no secret is set, an empty path segment lets nobody in."""
    scope = behind(f"{PREFIX}//info", setting)
    assert scope["path"] == f"{PREFIX}//info"
    assert not scope["calibrant.let_in"]


def test_the_secret_opens_what_a_key_opens(labelling: Labelling, secret: str) -> None:
    """The secret opens everything below /monailabel/ and nothing elsewhere."""
    with httpx.Client(base_url=labelling.url) as http:
        assert http.get(f"{PREFIX}/{secret}/info/").json()["models"]
        assert http.get(f"{PREFIX}/{secret}/auth/").json()["enabled"] is False
        assert http.get(f"{PREFIX}/{secret}/auth/token/valid").status_code == 200
        assert http.get(f"{PREFIX}/auth/").json()["enabled"] is True
        for path in ("info/", "auth/token/valid/", "session/0", f"{secret[:-1]}/info/", f"x/{secret}/info/"):
            assert http.get(f"{PREFIX}/{path}").status_code in {401, 404}, path
        assert http.get(f"{PREFIX}/info/").status_code == 401
        assert http.get(f"/v1/models/{secret}").status_code == 401


def test_what_comes_by_the_secret_belongs_to_the_viewer(labelling: Labelling, secret: str, tiny_scan: bytes) -> None:
    """Results of requests with the secret belong to `viewer`, and the secret shows nobody else's sessions."""
    with httpx.Client(base_url=labelling.url, timeout=240) as http:
        files = {"files": ("scan.nii", tiny_scan)}
        session = http.put(f"{PREFIX}/{secret}/session/", files=files).json()["session_id"]
        keys = {owner: {"Authorization": f"Bearer {labelling.key(owner)}"} for owner in (VIEWER, "somebody")}
        sessions = {owner: http.get(f"{PREFIX}/session/{session}", headers=keys[owner]).json() for owner in keys}
        assert (bool(sessions[VIEWER]), sessions["somebody"]) == (True, None)

        params = {"session_id": session, "output": "json"}
        form = {"params": (None, "{}")}
        job = http.post(f"{PREFIX}/{secret}/infer/hippocampus-mr", params=params, files=form).json()["job_url"]

        assert [http.get(job, headers=keys[owner]).status_code for owner in keys] == [200, 404]


def test_pages_of_known_origins_may_read_the_answers(labelling: Labelling, secret: str, origin: str) -> None:
    """CORS headers are sent for configured origins, below /monailabel/ only, also with a 401."""
    with httpx.Client(base_url=labelling.url) as http:
        for path in (f"{PREFIX}/{secret}/info/", f"{PREFIX}/info/", f"{PREFIX}/auth/"):
            answer = http.get(path, headers={"Origin": origin})
            assert answer.headers["access-control-allow-origin"] == origin
            assert "Origin" in answer.headers["vary"]
            assert "access-control-allow-origin" not in http.get(path, headers={"Origin": OTHER}).headers
        assert "access-control-allow-origin" not in http.get("/v1/models", headers={"Origin": origin}).headers

        asks = {"Origin": origin, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "accept"}
        answer = http.options(f"{PREFIX}/{secret}/session/", headers=asks)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == origin
        assert http.options(f"{PREFIX}/info/", headers=asks | {"Origin": OTHER}).status_code == 400
