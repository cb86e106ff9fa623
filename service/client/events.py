"""The stream of a job's events (server-sent events) through broken connections; the parsing is httpx-sse's."""

from typing import Any

from httpx_sse import ServerSentEvent
from pydantic import ValidationError

from ..errors import ServerProblem
from ..schemas import FINISHED, Job
from .calls import SEGMENTATIONS


class EventStream:
    """Where in a job's stream one is."""

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
        """The request that goes on where the last connection broke, as arguments for httpx."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": self._last} if self._last else {})
        return {"method": "GET", "url": self._path, "headers": headers}

    def job_of(self, event: ServerSentEvent) -> Job | None:
        """Return the job of an event, None for one that holds none.

        Raises:
            ServerProblem: no job of ours.
        """
        if not event.data:
            return None
        try:
            job = Job.model_validate_json(event.data)
        except ValidationError as error:
            msg = "The server's event is no Job of ours. Is the address that of a Calibrant service of this version?"
            raise ServerProblem(msg, 502) from error
        self._last = event.id
        self.finished = job.state in FINISHED
        return job
