from collections.abc import Callable
from typing import Any

import pytest
from httpx_sse import ServerSentEvent

from service.client.events import EventStream
from service.errors import ServerProblem

MakeJob = Callable[..., dict[str, Any]]


def test_an_event_that_is_no_job_is_said() -> None:
    """An event with other data is a CalibrantError."""
    with pytest.raises(ServerProblem, match="not a Job"):
        EventStream("7f").job_of(ServerSentEvent(data="{}"))


def test_a_ping_is_no_job() -> None:
    """An event without data is ignored."""
    stream = EventStream("7f")

    assert stream.job_of(ServerSentEvent(data="", id="x")) is None
    assert "Last-Event-ID" not in stream.request["headers"]
