"""The synchronous client: submits scans, waits, fetches results. Threads may share one."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import httpx
from httpx_sse import EventSource
from tenacity import Retrying

from ..schemas import Accept, Job, Models, Output, Priority, Scan, State
from . import calls
from .calls import Call, Order, ScanSource, Show, Talk, no_show
from .events import EventStream
from .result import Result
from .retry import PATIENCE_S, Retry

_T = TypeVar("_T")


class Client:
    """Client of one service; a context manager.

    Every method raises ServerUnreachable if no server answers, and ServerProblem, with the server's problem document, for
    an error.
    """

    def __init__(
        self, url: str, *, key: str | None = None, timeout_s: float = 60.0, patience_s: float = PATIENCE_S
    ) -> None:
        """Prepare a connection.

        Args:
            url: address of the service, e.g. http://127.0.0.1:8000.
            key: API key, where the service uses keys; by default CALIBRANT_KEY of the environment.
            timeout_s: seconds without a byte after which the server counts as unreachable.
            patience_s: seconds over which a request is repeated while the server is unreachable or busy.

        Raises:
            ServerUnreachable: the address is not valid, or does not begin with http:// or https://.
        """
        self._http = httpx.Client(base_url=calls.address_of(url), timeout=timeout_s, headers=calls.headers_of(key))
        self._retry = Retry(patience_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def models(self) -> Models:
        """Return the installed models."""
        return self._talk(calls.models())

    def upload(self, scan: Path | str) -> Scan:
        """Store a scan, a file, at the service and return it with its id, its SHA-256."""
        return self._talk(calls.upload(scan))

    def segment(
        self,
        scan: ScanSource,
        model: str | None = None,
        show: Show = no_show,
        *,
        outputs: tuple[Output, ...] = (),
        priority: Priority = "normal",
        accept: Accept = "stated",
    ) -> Result:
        """Segment a scan and return the result.

        Args:
            scan: file as a pathlib.Path, or an uploaded scan or its id.
            model: name, or name@sha256; the server's default if None.
            show: called with the job whenever it was looked at.
            outputs: outputs to keep; all by default.
            priority: over waiting jobs.
            accept: `anyway`: also a scan that the model does not accept; its statement is then withdrawn.

        Raises:
            ClientError: the scan is a str, but no id.
        """
        return self._talk(calls.segment(Order(scan, model, outputs, priority, accept=accept), show))

    def submit(self, order: Order) -> Job:
        """Submit a scan and return its job without waiting."""
        return self._talk(calls.submit(order))

    def find(self, identifier: str) -> Job:
        """Return a job in its present state."""
        return self._talk(calls.find(identifier))

    def wait(self, job: Job, show: Show = no_show) -> Job:
        """Return a job once it has succeeded, failed or been cancelled."""
        return self._talk(calls.wait(job, show))

    def fetch(self, job: Job) -> Result:
        """Download the outputs of a finished job."""
        return self._talk(calls.fetch(job))

    def cancel(self, identifier: str) -> Job:
        """Cancel a job and return it."""
        return self._talk(calls.cancel(identifier))

    def delete(self, identifier: str) -> None:
        """Erase a job with its results, and its scan unless another job was made from it."""
        self._talk(calls.delete(identifier))

    def list(self, state: State | None = None) -> Iterator[Job]:
        """Yield the caller's jobs, the newest first, page by page."""
        cursor, more = None, True
        while more:
            page = self._talk(calls.page(state, cursor))
            yield from page.jobs
            cursor, more = page.next, page.next is not None

    def events(self, identifier: str) -> Iterator[Job]:
        """Yield a job whenever it has changed, until it has finished; a broken connection is renewed."""
        stream = EventStream(identifier)
        while not stream.finished:
            with closing(self._open(stream)) as answer:
                try:
                    for event in EventSource(answer).iter_sse():
                        job = stream.job_of(event)
                        if job is not None:
                            yield job
                except httpx.TransportError:
                    continue

    def _open(self, stream: EventStream) -> httpx.Response:
        for attempt in Retrying(**self._retry.policy):
            with attempt, self._errors():
                answer = self._http.send(self._http.build_request(**stream.request), stream=True)
                self._retry.met = True
                if answer.is_error:
                    with closing(answer):
                        answer.read()
                calls.reject_error(answer)
        return answer

    def _talk(self, talk: Talk[_T]) -> _T:
        try:
            call = next(talk)
            while True:
                time.sleep(call.after_s)
                call = talk.send(self._send(call))
        except StopIteration as end:
            result: _T = end.value
            return result

    def _send(self, call: Call) -> httpx.Response:
        for attempt in Retrying(**self._retry.policy):
            with attempt, self._errors():
                answer = self._send_once(call)
                self._retry.met = True
                calls.reject_error(answer)
        return answer

    def _send_once(self, call: Call) -> httpx.Response:
        if call.body is None:
            return self._http.request(
                call.method, calls.below(self._http.base_url, call.path), params=call.params, headers=call.headers
            )
        with call.body.open("rb") as file:
            return self._http.request(
                call.method,
                calls.below(self._http.base_url, call.path),
                params=call.params,
                headers=call.headers,
                content=file,
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise calls.unreachable(self._http.base_url, error) from error
