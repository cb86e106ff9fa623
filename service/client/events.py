"""Follows the stream of a job's events (server-sent events) through broken connections; httpx-sse parses it."""

from typing import Any

from httpx_sse import ServerSentEvent
from pydantic import ValidationError

from ..errors import ServerProblem
from ..schemas import FINISHED, Job
from .calls import SEGMENTATIONS


class EventStream:
    """Position in the event stream of a job."""

    def __init__(self, identifier: str) -> None:
        """Begin at the start.

        Args:
            identifier: of the job.
        """
        self.finished = False
        self._path = f"{SEGMENTATIONS}/{identifier}/events"
        self._last = ""

    @property
    def request(self) -> dict[str, Any]:
        """Arguments for httpx of the request that continues where the last connection broke."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": self._last} if self._last else {})
        return {"method": "GET", "url": self._path, "headers": headers}

    def job_of(self, event: ServerSentEvent) -> Job | None:
        """Return the job of an event; None for an event without data.

        Raises:
            ServerProblem: the data is not a job.
        """
        if not event.data:
            return None
        try:
            job = Job.model_validate_json(event.data)
        except ValidationError as error:
            msg = "The server's event is not a Job. Is the address that of a Calibrant service of this version?"
            raise ServerProblem(msg, 502) from error
        self._last = event.id
        self.finished = job.state in FINISHED
        return job
