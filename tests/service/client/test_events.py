import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from httpx_sse import ServerSentEvent

from service.client.events import EventStream
from service.errors import ServerProblem

MakeJob = Callable[..., dict[str, Any]]


def _stream(*jobs: dict[str, Any], first: int = 0) -> httpx.Response:
    text = ": ping\n\n" + "".join(
        f"event: {job['state']}\ndata: {json.dumps(job)}\nid: e{number}\n\n" for number, job in enumerate(jobs, first)
    )
    return httpx.Response(200, content=text.encode(), headers={"Content-Type": "text/event-stream"})


def test_events_are_jobs_until_the_last(ask: Callable[..., Any], make_job: MakeJob) -> None:
    """Every change of a job is yielded, and the stream ends with the job."""
    states = ["queued", "running", "succeeded"]

    assert [job.state for job in ask(lambda _: _stream(*map(make_job, states)), "events", "7f")] == states


def test_a_broken_stream_goes_on_where_it_broke(ask: Callable[..., Any], make_job: MakeJob) -> None:
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


def test_events_of_a_job_that_is_not_there_are_its_problem(ask: Callable[..., Any], problem: dict[str, Any]) -> None:
    """An error answer raises its problem document."""
    with pytest.raises(ServerProblem, match="All are 42") as caught:
        ask(lambda _: httpx.Response(404, json=problem), "events", "7f")

    assert caught.value.status == 404


def test_an_event_that_is_no_job_is_said() -> None:
    """An event with other data is a CalibrantError."""
    with pytest.raises(ServerProblem, match="not a Job"):
        EventStream("7f").job_of(ServerSentEvent(data="{}"))


def test_a_ping_is_no_job() -> None:
    """An event without data is ignored."""
    stream = EventStream("7f")

    assert stream.job_of(ServerSentEvent(data="", id="x")) is None
    assert "Last-Event-ID" not in stream.request["headers"]
