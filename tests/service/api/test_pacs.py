import datetime as dt
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.api.auth import Sessions
from service.api.deps import Services
from service.app import create_app
from service.bundle.registry import DEFAULT_MODEL, SHIPPED, Registry
from service.errors import DeadLetterNotFound, JobNotFound, PacsUnreachable
from service.jobs.pacs.series import PacsRequest
from service.observability.metrics import Metrics
from service.pacs.breaker import Breaker
from service.pacs.config import read_pacs_file
from service.pacs.schemas import DicomJob, DicomLinks
from service.settings import Settings
from service.storage.keys import Keys, add_key
from service.storage.local import StateDirectory

JOB = DicomJob(
    id="a" * 32,
    state="queued",
    stage=None,
    pacs="clinic",
    study="1.2",
    series="1.2.3",
    instances="d" * 64,
    model="m@0",
    outputs=["seg"],
    destination="clinic",
    created=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    waits_for=None,
    problem=None,
    objects=[],
    links=DicomLinks(self=f"/v1/dicom/jobs/{'a' * 32}", segmentation=None, retry=None),
)
BODY = {"pacs": "clinic", "series": "1.2.3"}


class Fake:
    """The DICOM jobs and arrivals of a service with one job."""

    def __init__(self, file: Path) -> None:
        self.file = read_pacs_file(file)
        self.requests: list[tuple[PacsRequest, str | None]] = []
        self.hints: list[tuple[str, str]] = []
        self.gone = False

    def submit(self, request: PacsRequest, key: str | None) -> DicomJob:
        """Note the request."""
        if self.gone:
            msg = "The PACS gave no connection."
            raise PacsUnreachable(msg)
        self.requests.append((request, key))
        return JOB

    def find(self, owner: str, identifier: str) -> DicomJob:
        """Return the job of its owner."""
        if (owner, identifier) != ("lab", JOB.id):
            msg = "No DICOM job has this id."
            raise JobNotFound(msg)
        return JOB

    cancel = find

    def erase(self, owner: str, identifier: str) -> None:
        """Raise unless it is there."""
        self.find(owner, identifier)

    def page(self, owner: str, limit: int) -> list[DicomJob]:
        """Return the jobs of the owner."""
        return [JOB][:limit] if owner == "lab" else []

    def dead_letters(self, owner: str) -> list[DicomJob]:
        """Return the owner's jobs."""
        return self.page(owner, 1)

    def retry(self, owner: str, identifier: str) -> DicomJob:
        """Raise DeadLetterNotFound."""
        msg = f"{owner} has no {identifier}"
        raise DeadLetterNotFound(msg)

    def breaker(self, _: str) -> Breaker:
        """Return a closed circuit."""
        return Breaker()

    def note(self, pacs: str, series: str) -> None:
        """Note the hint."""
        self.hints.append((pacs, series))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Return the fake jobs."""
    monkeypatch.setenv("HOOK_SECRET", "open sesame")
    (tmp_path / "pacs.toml").write_text(
        '[pacs.clinic]\nurl = "http://127.0.0.1:9/dicom-web"\n'
        '[webhook]\npacs = "clinic"\nsecret = { env = "HOOK_SECRET" }\n'
    )
    return Fake(tmp_path / "pacs.toml")


Send = Callable[..., httpx.Response]


@pytest.fixture
def send(tmp_path: Path, fake: Fake, ask: Callable[..., httpx.Response]) -> Send:
    """Return the function that sends a request as `lab` or as somebody else."""
    keys = tmp_path / "keys.json"
    owners = {name: add_key(keys, name, admin=name == "root") for name in ("lab", "other", "root")}
    settings = Settings(state_dir=tmp_path / "state", keys_file=keys)
    app: FastAPI = create_app(settings)
    state = StateDirectory(settings.state_dir)
    nothing: Any = SimpleNamespace(reject_full=lambda *_: None)
    services: Any = (settings, state, Registry.scan(SHIPPED), nothing, Keys(keys), Sessions(8), Metrics(), fake, fake)
    app.state.services = Services(*services)

    def request(method: str, url: str, owner: str | None = "lab", **options: Any) -> httpx.Response:  # noqa: ANN401 - httpx's own
        headers = options.pop("headers", {}) | ({"Authorization": f"Bearer {owners[owner]}"} if owner else {})
        return ask(app, method, url, headers=headers, **options)

    return request


def test_a_series_is_asked_for(send: Send, fake: Fake) -> None:
    """The answer is 202 with a Location; defaults are filled in, and the destination is the source."""
    answer = send("POST", "/v1/dicom/jobs", json=BODY, headers={"Idempotency-Key": "k"})
    assert (answer.status_code, answer.headers["Location"]) == (202, JOB.links.self)
    ((request, key),) = fake.requests
    assert (request.owner, request.series, request.destination, key) == ("lab", "1.2.3", "clinic", "k")
    assert request.objects == ("seg", "sr", "sc")
    assert request.model.startswith(f"{DEFAULT_MODEL}@")


@pytest.mark.parametrize(
    "change",
    [
        {"series": None},
        {"series": "../../system"},
        {"pacs": "http://169.254.169.254/"},
        {"destination": "HTTP://X"},
        {"objects": []},
        {"objects": ["anything"]},
        {"select": {"description": "("}},
        {"select": {"description": "(?=a)"}},
        {"url": "http://127.0.0.1/"},
    ],
)
def test_what_cannot_be_asked_for(send: Send, fake: Fake, change: dict[str, object]) -> None:
    """Addresses, slow patterns and UIDs that are paths are refused."""
    answer = send("POST", "/v1/dicom/jobs", json=BODY | change)
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-request")
    assert fake.requests == []


def test_a_pacs_that_is_gone_is_a_502(send: Send, fake: Fake) -> None:
    """An unreachable PACS is a 502, and no job is made."""
    fake.gone = True
    answer = send("POST", "/v1/dicom/jobs", json=BODY)
    assert (answer.status_code, answer.json()["type"]) == (502, "/problems/pacs-unreachable")


def test_everybody_sees_their_own(send: Send) -> None:
    """Another owner's job does not exist for the caller; without a key, nothing is shown."""
    here = JOB.links.self
    assert send("GET", here).json()["id"] == JOB.id
    assert send("GET", "/v1/dicom/jobs").json()["jobs"][0]["id"] == JOB.id
    assert send("GET", "/v1/dicom/deadletters").json()["jobs"][0]["id"] == JOB.id
    assert send("POST", f"{here}/cancel").status_code == 202
    assert send("DELETE", here).status_code == 204
    assert send("POST", f"/v1/dicom/deadletters/{JOB.id}/retry").status_code == 404
    for method, url in (("GET", here), ("POST", f"{here}/cancel"), ("DELETE", here)):
        assert send(method, url, "other").status_code == 404
        assert send(method, url, None).status_code == 401
    assert send("GET", "/v1/dicom/jobs", "other").json() == {"jobs": []}
    assert send("GET", "/v1/dicom/jobs/..%2f..%2fetc").status_code in (404, 422)


def test_pacs_are_named_and_administrators_try_them(send: Send) -> None:
    """Everybody sees the names of the PACS, only administrators test them, and nobody sees addresses."""
    assert send("GET", "/v1/dicom/pacs").json() == {"pacs": ["clinic"]}
    assert send("POST", "/v1/dicom/pacs/clinic/test").status_code == 403
    health = send("POST", "/v1/dicom/pacs/clinic/test", "root").json()
    assert (health["ok"], health["circuit"], health["checks"][0]["name"]) == (False, "closed", "QIDO-RS")
    assert "127.0.0.1" not in str(health)
    assert send("POST", "/v1/dicom/pacs/nowhere/test", "root").status_code == 404


def test_orthanc_tells_with_a_shared_secret(send: Send, fake: Fake) -> None:
    """The webhook needs the shared secret; without it, the answer is 401 and nothing changes."""
    body = {"series": "1.2.3"}
    for wrong in (
        {},
        {"X-Calibrant-Secret": ""},
        {"X-Calibrant-Secret": "open sesamf"},
        {"X-Calibrant-Secret": b"\xff"},
    ):
        assert send("POST", "/v1/hooks/orthanc", None, json=body, headers=wrong).status_code == 401
    assert fake.hints == []
    answer = send("POST", "/v1/hooks/orthanc", None, json=body, headers={"X-Calibrant-Secret": "open sesame"})
    assert answer.status_code == 202
    assert fake.hints == [("clinic", "1.2.3")]


def test_without_a_webhook_there_is_none(send: Send, fake: Fake) -> None:
    """Without a configured webhook, no secret is accepted, not even an empty one."""
    fake.file = fake.file.model_copy(update={"webhook": None})
    answer = send("POST", "/v1/hooks/orthanc", None, json={"series": "1.2.3"}, headers={"X-Calibrant-Secret": ""})
    assert answer.status_code == 404
