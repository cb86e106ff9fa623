from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client.calls import Order
from service.errors import ClientError, ServerProblem, ServerUnreachable
from service.schemas import Job, Scan

MakeJob = Callable[..., dict[str, Any]]
Answer = Callable[..., Callable[[httpx.Request], httpx.Response]]
Ask = Callable[..., Any]


def test_a_scan_is_sent_as_it_is_and_comes_back_as_files(
    ask: Ask, answer: Answer, make_job: MakeJob, scan: Path
) -> None:
    """The client POSTs the bytes with a new key and Prefer: wait, then downloads three files."""
    requests: list[httpx.Request] = []
    result = ask(answer(make_job("succeeded"), requests=requests), "segment", scan, "tiny", outputs=("mask", "summary"))

    post, *others = requests
    assert (post.method, post.url.path, post.content) == ("POST", "/v1/segmentations", b"voxels")
    assert post.headers["Content-Type"] == "application/octet-stream"
    assert (post.headers["Content-Length"], "Transfer-Encoding" in post.headers) == ("6", False)
    assert post.headers["Prefer"] == "wait=20"
    assert len(post.headers["Idempotency-Key"]) == 32
    assert post.url.params.multi_items() == [
        ("model", "tiny"),
        ("outputs", "mask"),
        ("outputs", "summary"),
        ("priority", "normal"),
    ]
    assert [request.url.path for request in others] == [
        f"/v1/segmentations/7f/{name}" for name in ("mask", "confidence", "summary")
    ]
    assert (result.mask, result.confidence) == (b"MASK", b"CONFIDENCE")
    assert result.summary.statement.status == "withdrawn"
    assert result.job.id == "7f"


@pytest.mark.parametrize("uploaded", [Scan(id="ab" * 32, bytes=6), "ab" * 32])
def test_an_uploaded_scan_is_named_instead(ask: Ask, answer: Answer, make_job: MakeJob, uploaded: Scan | str) -> None:
    """A scan that was uploaded before is not sent again."""
    requests: list[httpx.Request] = []
    ask(answer(make_job("succeeded"), requests=requests), "segment", uploaded)

    assert requests[0].url.params["scan"] == "ab" * 32
    assert requests[0].content == b""


def test_orders_have_keys_of_their_own(scan: Path) -> None:
    """Two orders of one scan have different keys by default."""
    assert Order(scan).idempotency_key != Order(scan).idempotency_key


def test_a_job_is_followed_until_it_has_succeeded(ask: Ask, answer: Answer, make_job: MakeJob, scan: Path) -> None:
    """A job that takes longer than the server waits is polled every half second, and every state is shown."""
    states = [make_job("queued"), make_job("running", stage="infer", progress=0.5), make_job("succeeded", progress=1.0)]
    shown: list[Job] = []
    result = ask(answer(*states), "segment", scan, show=shown.append)

    assert [(job.state, job.stage, job.progress) for job in shown] == [
        ("queued", None, 0.0),
        ("running", "infer", 0.5),
        ("succeeded", None, 1.0),
    ]
    assert result.job == shown[-1]
    assert ask.paused.count(0.5) == 2  # type: ignore[attr-defined] # of the fixture


@pytest.mark.parametrize("states", [["failed"], ["queued", "running", "failed"]])
def test_a_failed_job_raises_its_problem(
    ask: Ask, answer: Answer, make_job: MakeJob, scan: Path, states: list[str]
) -> None:
    """The error is the job's problem document, whether it failed at once or later; nothing is downloaded."""
    requests: list[httpx.Request] = []
    with pytest.raises(ServerProblem, match=r"All are 42\.") as caught:
        ask(answer(*map(make_job, states), requests=requests), "segment", scan)

    error = caught.value
    assert (error.status, error.problem_type, error.title) == (422, "/problems/constant-volume", "One intensity")
    assert len(requests) == len(states)


def test_only_what_the_job_kept_is_downloaded(ask: Ask, answer: Answer, make_job: MakeJob, scan: Path) -> None:
    """Outputs that the job did not keep are missing, and asking for one is an error."""
    job = make_job("succeeded", links={"self": "/v1/segmentations/7f", "mask": "/v1/segmentations/7f/mask"})
    result = ask(answer(job), "segment", scan, outputs=("mask",))

    assert list(result.files) == ["mask"]
    with pytest.raises(ClientError, match="did not keep the confidence"):
        _ = result.confidence


def test_a_refusal_raises_its_problem(ask: Ask, problem: dict[str, Any]) -> None:
    """A problem document is raised as an error; its unknown members are ignored."""
    refusal = httpx.Response(413, json=problem | {"instance": "/x"})
    with pytest.raises(ServerProblem, match="All are 42") as caught:
        ask(lambda _: refusal, "models")

    assert (caught.value.status, caught.value.problem_type) == (413, "/problems/constant-volume")


@pytest.mark.parametrize("body", ["<html>Bad gateway</html>", "", '{"detail": "Not Found"}', "null"])
def test_an_error_that_is_no_problem_document_is_said(ask: Ask, body: str) -> None:
    """For any other error body, the message suspects another server and does not repeat the text."""
    with pytest.raises(ServerProblem) as caught:
        ask(lambda _: httpx.Response(502, text=body), "models")

    assert caught.value.status == 502
    assert caught.value.detail.startswith("The server answered 502 without saying why.")


@pytest.mark.parametrize("body", ["<html>Welcome</html>", "{}", ""])
def test_an_answer_of_another_server_is_said(ask: Ask, body: str) -> None:
    """A 200 with other content is a CalibrantError, not a pydantic exception."""
    with pytest.raises(ServerProblem, match="Calibrant"):
        ask(lambda _: httpx.Response(200, text=body), "models")


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("no"), httpx.ReadTimeout("no"), httpx.RemoteProtocolError("no"), httpx.ReadError("no")]
)
def test_no_answer_is_unreachable(ask: Ask, error: httpx.TransportError) -> None:
    """Every network failure names the address and asks whether a service runs there."""

    def fail(_: httpx.Request) -> httpx.Response:
        raise error

    with pytest.raises(ServerUnreachable, match="http://server did not answer") as caught:
        ask(fail, "models")

    assert type(error).__name__ in caught.value.detail


def test_a_request_is_sent_again_whole_until_the_server_is_back(
    ask: Ask, answer: Answer, make_job: MakeJob, scan: Path
) -> None:
    """After a lost connection or a busy answer, the same body is sent with the same Idempotency-Key."""
    bodies: list[tuple[bytes, str]] = []
    later = answer(make_job("succeeded"))

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method != "POST":
            return later(request)
        bodies.append((request.content, request.headers["Idempotency-Key"]))
        if len(bodies) == 1:
            raise httpx.ReadError("reset")  # noqa: EM101 - as httpx says it
        return httpx.Response(503, headers={"Retry-After": "3"}) if len(bodies) == 2 else later(request)

    assert ask(handle, "segment", scan, patience_s=30).mask == b"MASK"
    assert len(bodies) == 3
    assert set(bodies) == {(b"voxels", bodies[0][1])}
    assert 3.0 in ask.paused  # type: ignore[attr-defined] # of the fixture


def test_every_page_of_jobs_is_fetched(ask: Ask, make_job: MakeJob) -> None:
    """The cursor of a page requests the next one, with the same filter."""
    pages = {None: ("a", "second"), "second": ("b", None)}
    asked: list[str | None] = []

    def handle(request: httpx.Request) -> httpx.Response:
        assert request.url.params["state"] == "queued"
        asked.append(request.url.params.get("cursor"))
        name, following = pages[asked[-1]]
        return httpx.Response(200, json={"jobs": [make_job("queued", id=name)], "next": following})

    assert [job.id for job in ask(handle, "list", "queued")] == ["a", "b"]
    assert asked == [None, "second"]


@pytest.mark.parametrize(
    ("method", "arguments", "sent"),
    [
        ("find", ["7f"], "GET /v1/segmentations/7f"),
        ("cancel", ["7f"], "POST /v1/segmentations/7f/cancel"),
        ("delete", ["7f"], "DELETE /v1/segmentations/7f"),
    ],
)
def test_a_job_is_found_cancelled_and_erased(
    ask: Ask, make_job: MakeJob, method: str, arguments: list[str], sent: str
) -> None:
    """Each method is one request of the API."""
    requests: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        requests.append(f"{request.method} {request.url.path}")
        return httpx.Response(204) if request.method == "DELETE" else httpx.Response(200, json=make_job("cancelled"))

    found = ask(handle, method, *arguments)

    assert requests == [sent]
    assert found is None if method == "delete" else found.state == "cancelled"


def test_a_scan_is_uploaded(ask: Ask, scan: Path) -> None:
    """The bytes are sent to /v1/scans, and the scan's id is returned."""
    found = ask(lambda request: httpx.Response(201, json={"id": request.content.hex(), "bytes": 6}), "upload", scan)

    assert found == Scan(id=b"voxels".hex(), bytes=6)


def test_a_job_is_submitted_waited_for_and_fetched(ask: Ask, answer: Answer, make_job: MakeJob, scan: Path) -> None:
    """The three steps of a batch send no Prefer header, and the given key."""
    requests: list[httpx.Request] = []
    job = ask(answer(make_job("queued"), requests=requests), "submit", Order(scan, idempotency_key="k"))
    done = ask(answer(make_job("succeeded")), "wait", job)

    assert (requests[0].headers["Idempotency-Key"], "Prefer" in requests[0].headers) == ("k", False)
    assert ask(answer(), "fetch", done).mask == b"MASK"
