"""The contract suite of the clients: the same calls, answers and errors, whether they wait or are awaited."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client.calls import Order
from service.errors import ClientError, ServerProblem, ServerUnreachable
from service.schemas import Job, Scan

Handler = Callable[[httpx.Request], httpx.Response]
MakeJob = Callable[..., dict[str, Any]]
Answer = Callable[..., Handler]


class Ask:
    """Calls a method of a client whose server is a function; waiting takes no time.

    Args:
        paused: collects the seconds of every pause.
    """

    def __init__(self, paused: list[float]) -> None:
        self.paused = paused

    def __call__(
        self, handler: Handler, method: str, *arguments: object, patience_s: float = 0, **options: object
    ) -> Any:  # noqa: ANN401 - of any method
        """Return what the method returns; what it yields comes back as a list."""
        raise NotImplementedError


class ClientContract:
    """Contract of either client; a subclass provides the fixture `ask`."""

    @pytest.fixture
    def ask(self, paused: list[float]) -> Ask:
        """Return the function that calls the client."""
        raise NotImplementedError

    def test_a_scan_is_sent_as_it_is_and_comes_back_as_files(
        self, ask: Ask, answer: Answer, make_job: MakeJob, scan: Path
    ) -> None:
        """The client POSTs the bytes with a new key and Prefer: wait, then downloads three files."""
        requests: list[httpx.Request] = []
        result = ask(
            answer(make_job("succeeded"), requests=requests), "segment", scan, "tiny", outputs=("mask", "summary")
        )

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
    def test_an_uploaded_scan_is_named_instead(
        self, ask: Ask, answer: Answer, make_job: MakeJob, uploaded: Scan | str
    ) -> None:
        """A scan that was uploaded before is not sent again."""
        requests: list[httpx.Request] = []
        ask(answer(make_job("succeeded"), requests=requests), "segment", uploaded)

        assert requests[0].url.params["scan"] == "ab" * 32
        assert requests[0].content == b""

    def test_a_job_is_followed_until_it_has_succeeded(
        self, ask: Ask, answer: Answer, make_job: MakeJob, scan: Path
    ) -> None:
        """A job that takes longer than the server waits is polled every half second, and every state is shown."""
        states = [
            make_job("queued"),
            make_job("running", stage="infer", progress=0.5),
            make_job("succeeded", progress=1.0),
        ]
        shown: list[Job] = []
        result = ask(answer(*states), "segment", scan, show=shown.append)

        assert [(job.state, job.stage, job.progress) for job in shown] == [
            ("queued", None, 0.0),
            ("running", "infer", 0.5),
            ("succeeded", None, 1.0),
        ]
        assert result.job == shown[-1]
        assert ask.paused.count(0.5) == 2

    @pytest.mark.parametrize("states", [["failed"], ["queued", "running", "failed"]])
    def test_a_failed_job_raises_its_problem(
        self, ask: Ask, answer: Answer, make_job: MakeJob, scan: Path, states: list[str]
    ) -> None:
        """The error is the job's problem document, whether it failed at once or later; nothing is downloaded."""
        requests: list[httpx.Request] = []
        with pytest.raises(ServerProblem, match=r"All are 42\.") as caught:
            ask(answer(*map(make_job, states), requests=requests), "segment", scan)

        error = caught.value
        assert (error.status, error.problem_type, error.title) == (422, "/problems/constant-volume", "One intensity")
        assert len(requests) == len(states)

    def test_only_what_the_job_kept_is_downloaded(
        self, ask: Ask, answer: Answer, make_job: MakeJob, scan: Path
    ) -> None:
        """Outputs that the job did not keep are missing, and asking for one is an error."""
        job = make_job("succeeded", links={"self": "/v1/segmentations/7f", "mask": "/v1/segmentations/7f/mask"})
        result = ask(answer(job), "segment", scan, outputs=("mask",))

        assert list(result.files) == ["mask"]
        with pytest.raises(ClientError, match="did not keep the confidence"):
            _ = result.confidence

    def test_a_refusal_raises_its_problem(self, ask: Ask, problem: dict[str, Any]) -> None:
        """A problem document is raised as an error; its unknown members are ignored."""
        refusal = httpx.Response(413, json=problem | {"instance": "/x"})
        with pytest.raises(ServerProblem, match="All are 42") as caught:
            ask(lambda _: refusal, "models")

        assert (caught.value.status, caught.value.problem_type) == (413, "/problems/constant-volume")

    @pytest.mark.parametrize("body", ["<html>Bad gateway</html>", "", '{"detail": "Not Found"}', "null"])
    def test_an_error_that_is_no_problem_document_is_said(self, ask: Ask, body: str) -> None:
        """For any other error body, the message suspects another server and does not repeat the text."""
        with pytest.raises(ServerProblem) as caught:
            ask(lambda _: httpx.Response(502, text=body), "models")

        assert caught.value.status == 502
        assert caught.value.detail.startswith("The server answered 502 without saying why.")

    @pytest.mark.parametrize("body", ["<html>Welcome</html>", "{}", ""])
    def test_an_answer_of_another_server_is_said(self, ask: Ask, body: str) -> None:
        """A 200 with other content is a CalibrantError, not a pydantic exception."""
        with pytest.raises(ServerProblem, match="Calibrant"):
            ask(lambda _: httpx.Response(200, text=body), "models")

    @pytest.mark.parametrize(
        "error",
        [httpx.ConnectError("no"), httpx.ReadTimeout("no"), httpx.RemoteProtocolError("no"), httpx.ReadError("no")],
    )
    def test_no_answer_is_unreachable(self, ask: Ask, error: httpx.TransportError) -> None:
        """Every network failure names the address and asks whether a service runs there."""

        def fail(_: httpx.Request) -> httpx.Response:
            raise error

        with pytest.raises(ServerUnreachable, match="http://server did not answer") as caught:
            ask(fail, "models")

        assert type(error).__name__ in caught.value.detail

    def test_a_request_is_sent_again_whole_until_the_server_is_back(
        self, ask: Ask, answer: Answer, make_job: MakeJob, scan: Path
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
        assert any(3 <= pause <= 4 for pause in ask.paused)  # those that were refused together are spread

    def test_every_page_of_jobs_is_fetched(self, ask: Ask, make_job: MakeJob) -> None:
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
        self, ask: Ask, make_job: MakeJob, method: str, arguments: list[str], sent: str
    ) -> None:
        """Each method is one request of the API."""
        requests: list[str] = []

        def handle(request: httpx.Request) -> httpx.Response:
            requests.append(f"{request.method} {request.url.path}")
            return (
                httpx.Response(204) if request.method == "DELETE" else httpx.Response(200, json=make_job("cancelled"))
            )

        found = ask(handle, method, *arguments)

        assert requests == [sent]
        assert found is None if method == "delete" else found.state == "cancelled"

    def test_a_scan_is_uploaded(self, ask: Ask, scan: Path) -> None:
        """The bytes are sent to /v1/scans, and the scan's id is returned."""
        found = ask(lambda request: httpx.Response(201, json={"id": request.content.hex(), "bytes": 6}), "upload", scan)

        assert found == Scan(id=b"voxels".hex(), bytes=6)

    def test_a_job_is_submitted_waited_for_and_fetched(
        self, ask: Ask, answer: Answer, make_job: MakeJob, scan: Path
    ) -> None:
        """The three steps of a batch send no Prefer header, and the given key."""
        requests: list[httpx.Request] = []
        job = ask(answer(make_job("queued"), requests=requests), "submit", Order(scan, idempotency_key="k"))
        done = ask(answer(make_job("succeeded")), "wait", job)

        assert (requests[0].headers["Idempotency-Key"], "Prefer" in requests[0].headers) == ("k", False)
        assert ask(answer(), "fetch", done).mask == b"MASK"

    def test_events_are_jobs_until_the_last(self, ask: Ask, make_job: MakeJob) -> None:
        """Every change of a job is yielded, and the stream ends with the job."""
        states = ["queued", "running", "succeeded"]

        assert [job.state for job in ask(lambda _: _stream(*map(make_job, states)), "events", "7f")] == states

    def test_a_broken_stream_goes_on_where_it_broke(self, ask: Ask, make_job: MakeJob) -> None:
        """The second connection sends the id of the first one's last event, so that nothing is repeated or lost."""
        asked: list[str | None] = []

        def handle(request: httpx.Request) -> httpx.Response:
            asked.append(request.headers.get("Last-Event-ID"))
            if len(asked) == 1:
                return _stream(make_job("queued"), make_job("running"))
            if len(asked) == 2:
                raise httpx.ConnectError("restarting")  # noqa: EM101 - as httpx says it
            return _stream(make_job("succeeded"), first=2)

        found = ask(handle, "events", "7f", patience_s=30)

        assert [job.state for job in found] == ["queued", "running", "succeeded"]
        assert asked == [None, "e1", "e1"]

    def test_events_of_a_job_that_is_not_there_are_its_problem(self, ask: Ask, problem: dict[str, Any]) -> None:
        """An error answer raises its problem document."""
        with pytest.raises(ServerProblem, match="All are 42") as caught:
            ask(lambda _: httpx.Response(404, json=problem), "events", "7f")

        assert caught.value.status == 404


def _stream(*jobs: dict[str, Any], first: int = 0) -> httpx.Response:
    text = ": ping\n\n" + "".join(
        f"event: {job['state']}\ndata: {json.dumps(job)}\nid: e{number}\n\n" for number, job in enumerate(jobs, first)
    )
    return httpx.Response(200, content=text.encode(), headers={"Content-Type": "text/event-stream"})
