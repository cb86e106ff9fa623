import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client import http as client_http
from service.client.http import Client
from service.errors import ClientError, ServerProblem, ServerUnreachable
from service.schemas import Job

SUMMARY = {
    "model": "tiny@0",
    "structures": [],
    "foreground_confidence": None,
    "statement": {
        "status": "withdrawn",
        "text": "Withdrawn.",
        "reasons": ["size"],
        "dataset": "two boxes",
        "split": "all",
        "protocol": "held-out",
        "n_persons": 2,
        "n_cases": 2,
        "date": "2026-01-31",
        "engine": "torch",
        "precision": "fp32",
        "figures": None,
    },
    "warnings": [],
}

PROBLEM = {"type": "/problems/constant-volume", "title": "One intensity", "status": 422, "detail": "All are 42."}

Handler = Callable[[httpx.Request], httpx.Response]
Connect = Callable[[Handler], Client]


def _job(state: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever the job's field holds
    return {
        "id": "7f",
        "state": state,
        "model": "tiny@0",
        "created": "2026-01-31T12:00:00Z",
        "stage": None,
        "progress": 0.0,
        "seconds": {},
        "problem": None,
        "links": {"self": "/v1/segmentations/7f"},
        **fields,
    }


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """Return a file to send; nobody here looks into it."""
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(b"voxels")
    return path


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Return the function that makes a client whose server is a function; polling costs no time."""
    monkeypatch.setattr(client_http.time, "sleep", lambda _: None)

    def make(handler: Handler) -> Client:
        client = Client("http://server")
        client._http.close()
        client._http = httpx.Client(base_url="http://server", transport=httpx.MockTransport(handler))
        return client

    return make


def _answer(*jobs: dict[str, Any], requests: list[httpx.Request] | None = None) -> Handler:
    """Return a server that answers the jobs one after the other, then the files."""
    left = list(jobs)
    files = {"mask": b"MASK", "confidence": b"CONFIDENCE", "summary": json.dumps(SUMMARY).encode()}

    def handle(request: httpx.Request) -> httpx.Response:
        request.read()
        if requests is not None:
            requests.append(request)
        name = request.url.path.rpartition("/")[2]
        return httpx.Response(200, content=files[name]) if name in files else httpx.Response(200, json=left.pop(0))

    return handle


def test_a_scan_is_sent_as_it_is_and_comes_back_as_files(connect: Connect, scan: Path) -> None:
    """One POST of the bytes with a fresh key and the wish to wait, then three downloads."""
    requests: list[httpx.Request] = []
    with connect(_answer(_job("succeeded"), _job("succeeded"), requests=requests)) as client:
        result = client.segment(scan, "tiny")
        client.segment(scan)

    post, again = (request for request in requests if request.method == "POST")
    assert post.content == b"voxels"
    assert post.headers["Content-Type"] == "application/octet-stream"
    assert post.headers["Prefer"] == "wait=20"
    assert (post.url.path, post.url.params["model"]) == ("/v1/segmentations", "tiny")
    assert "model" not in again.url.params
    assert uuid.UUID(post.headers["Idempotency-Key"]) != uuid.UUID(again.headers["Idempotency-Key"])
    assert (result.mask, result.confidence) == (b"MASK", b"CONFIDENCE")
    assert result.summary.statement.status == "withdrawn"
    assert result.job.id == "7f"


def test_a_job_is_followed_until_it_has_succeeded(connect: Connect, scan: Path) -> None:
    """A job that takes longer than the server waits is looked at again, and every state is shown."""
    states = [_job("queued"), _job("running", stage="infer", progress=0.5), _job("succeeded", progress=1.0)]
    shown: list[Job] = []
    with connect(_answer(*states)) as client:
        result = client.segment(scan, show=shown.append)

    assert [(job.state, job.stage, job.progress) for job in shown] == [
        ("queued", None, 0.0),
        ("running", "infer", 0.5),
        ("succeeded", None, 1.0),
    ]
    assert result.job == shown[-1]


@pytest.mark.parametrize("states", [["failed"], ["queued", "running", "failed"]])
def test_a_failed_job_raises_its_problem(connect: Connect, scan: Path, states: list[str]) -> None:
    """Detail and status are those of the job's problem, whether it failed at once or later; nothing is downloaded."""
    requests: list[httpx.Request] = []
    jobs = [_job(state, problem=PROBLEM if state == "failed" else None) for state in states]
    with (
        connect(_answer(*jobs, requests=requests)) as client,
        pytest.raises(ServerProblem, match=r"All are 42\.") as caught,
    ):
        client.segment(scan)

    assert caught.value.status == 422
    assert len(requests) == len(states)


def test_a_refusal_raises_its_problem(connect: Connect, scan: Path) -> None:
    """A problem document's detail and the answer's status become the error; foreign members do not matter."""
    refusal = httpx.Response(422, json=PROBLEM | {"instance": "/x"})
    with connect(lambda _: refusal) as client, pytest.raises(ServerProblem, match="All are 42") as caught:
        client.segment(scan)

    assert caught.value.status == 422


@pytest.mark.parametrize("body", ["<html>Bad gateway</html>", "", '{"detail": "Not Found"}', "null"])
def test_an_error_that_is_no_problem_document_is_said(connect: Connect, body: str) -> None:
    """A proxy or another server in the way is suspected; its text is not repeated."""
    with connect(lambda _: httpx.Response(502, text=body)) as client, pytest.raises(ServerProblem) as caught:
        client.models()

    assert caught.value.status == 502
    assert caught.value.detail.startswith("The server answered 502 without saying why.")


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("no"), httpx.ReadTimeout("no"), httpx.RemoteProtocolError("no"), httpx.ReadError("no")]
)
def test_no_answer_is_unreachable(connect: Connect, error: httpx.TransportError) -> None:
    """Whatever the network did, the error names the address and asks whether a service runs there."""

    def fail(_: httpx.Request) -> httpx.Response:
        raise error

    with connect(fail) as client, pytest.raises(ServerUnreachable, match="http://server did not answer") as caught:
        client.models()

    assert type(error).__name__ in caught.value.detail


def test_nobody_listens() -> None:
    """A closed port is unreachable, not a traceback of httpx."""
    with Client("http://127.0.0.1:1") as client, pytest.raises(ServerUnreachable, match="Is calibrant serve running"):
        client.models()


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "nonsense", "http://[::1", "http://host:port"])
def test_an_address_that_is_none_is_said(url: str) -> None:
    """An address without http:// or with a slip is an error of ours, not a traceback of httpx."""
    with pytest.raises(ClientError), Client(url) as client:
        client.models()


@pytest.mark.parametrize("body", ["<html>Welcome</html>", "{}", ""])
def test_an_answer_of_another_server_is_said(connect: Connect, body: str) -> None:
    """An address where something else answers 200 is an error of ours, not a traceback of pydantic."""
    with connect(lambda _: httpx.Response(200, text=body)) as client, pytest.raises(ClientError, match="Calibrant"):
        client.models()


def test_a_closed_client_holds_no_connection() -> None:
    """Leaving the context closes the connection."""
    with Client("http://server") as client:
        assert not client._http.is_closed
    assert client._http.is_closed


def test_the_installed_models_of_a_real_server(server_url: str) -> None:
    """A running service lists its models with identity, and names its default."""
    with Client(server_url) as client:
        models = client.models()

    default = next(model for model in models.models if model.name == models.default)
    assert default.ready
    assert default.identity is not None
    assert default.identity.startswith(f"{models.default}@")


def test_a_real_server_refuses_a_file_that_is_no_scan(server_url: str, scan: Path) -> None:
    """The service's own sentence and status arrive, and nothing of the file."""
    with Client(server_url) as client, pytest.raises(ServerProblem, match="not NIfTI") as caught:
        client.segment(scan)

    assert caught.value.status == 422


def test_a_real_server_refuses_an_unknown_model(server_url: str, scan: Path) -> None:
    """A model that is not installed is 404, before the scan is looked at."""
    with Client(server_url) as client, pytest.raises(ServerProblem, match="not installed") as caught:
        client.segment(scan, "nobody")

    assert caught.value.status == 404
