"""The asynchronous client, for asyncio and trio."""

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import anyio
import httpx
from httpx_sse import EventSource
from tenacity import AsyncRetrying

from ..schemas import Accept, Job, Models, Output, Priority, Scan, State
from . import calls
from .calls import Call, Order, ScanSource, Show, Talk, no_show
from .events import EventStream
from .result import Result
from .retry import PATIENCE_S, Retry

_T = TypeVar("_T")

_PIECE = 1 << 20


class AsyncClient:
    """Client of one service; an asynchronous context manager with the methods of `Client`."""

    def __init__(
        self, url: str, *, key: str | None = None, timeout_s: float = 60.0, patience_s: float = PATIENCE_S
    ) -> None:
        """Prepare a connection; arguments and errors are those of `Client`."""
        self._http = httpx.AsyncClient(base_url=calls.address_of(url), timeout=timeout_s, headers=calls.headers_of(key))
        self._retry = Retry(patience_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def models(self) -> Models:
        """Return the installed models."""
        return await self._talk(calls.models())

    async def upload(self, scan: Path | str) -> Scan:
        """Store a scan, a file, at the service and return it with its id, its SHA-256."""
        return await self._talk(calls.upload(scan))

    async def segment(
        self,
        scan: ScanSource,
        model: str | None = None,
        show: Show = no_show,
        *,
        outputs: tuple[Output, ...] = (),
        priority: Priority = "normal",
        accept: Accept = "stated",
    ) -> Result:
        """Segment a scan and return the result; arguments are those of `Client.segment`."""
        return await self._talk(calls.segment(Order(scan, model, outputs, priority, accept=accept), show))

    async def submit(self, order: Order) -> Job:
        """Submit a scan and return its job without waiting."""
        return await self._talk(calls.submit(order))

    async def find(self, identifier: str) -> Job:
        """Return a job in its present state."""
        return await self._talk(calls.find(identifier))

    async def wait(self, job: Job, show: Show = no_show) -> Job:
        """Return a job once it has succeeded, failed or been cancelled."""
        return await self._talk(calls.wait(job, show))

    async def fetch(self, job: Job) -> Result:
        """Download the outputs of a finished job."""
        return await self._talk(calls.fetch(job))

    async def cancel(self, identifier: str) -> Job:
        """Cancel a job and return it."""
        return await self._talk(calls.cancel(identifier))

    async def delete(self, identifier: str) -> None:
        """Erase a job with its results, and its scan unless another job was made from it."""
        await self._talk(calls.delete(identifier))

    async def list(self, state: State | None = None) -> AsyncIterator[Job]:
        """Yield the caller's jobs, the newest first, page by page."""
        cursor, more = None, True
        while more:
            page = await self._talk(calls.page(state, cursor))
            for job in page.jobs:
                yield job
            cursor, more = page.next, page.next is not None

    async def events(self, identifier: str) -> AsyncIterator[Job]:
        """Yield a job whenever it has changed, until it has finished; a broken connection is renewed."""
        stream = EventStream(identifier)
        while not stream.finished:
            async with aclosing(await self._open(stream)) as answer:
                try:
                    async for event in EventSource(answer).aiter_sse():
                        job = stream.job_of(event)
                        if job is not None:
                            yield job
                except httpx.TransportError:
                    continue

    async def _open(self, stream: EventStream) -> httpx.Response:
        async for attempt in AsyncRetrying(**self._retry.policy):
            with attempt, self._errors():
                answer = await self._http.send(self._http.build_request(**stream.request), stream=True)
                self._retry.met = True
                if answer.is_error:
                    async with aclosing(answer):
                        await answer.aread()
                calls.reject_error(answer)
        return answer

    async def _talk(self, talk: Talk[_T]) -> _T:
        try:
            call = next(talk)
            while True:
                await anyio.sleep(call.after_s)
                call = talk.send(await self._send(call))
        except StopIteration as end:
            result: _T = end.value
            return result

    async def _send(self, call: Call) -> httpx.Response:
        async for attempt in AsyncRetrying(**self._retry.policy):
            with attempt, self._errors():
                content = None if call.body is None else _pieces(call.body)
                answer = await self._http.request(
                    call.method,
                    calls.below(self._http.base_url, call.path),
                    params=call.params,
                    headers=call.headers,
                    content=content,
                )
                self._retry.met = True
                calls.reject_error(answer)
        return answer

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise calls.unreachable(self._http.base_url, error) from error


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    async with await anyio.open_file(path, "rb") as file:
        while piece := await file.read(_PIECE):
            yield piece
