"""HTTP connections with bounds: size and time of a request's head, rate of its body, rate of reading the answer, number.

uvicorn has none of these for the parser in use: a head of any size is kept in memory, and a client that sends nothing, or
hardly anything, keeps its connection for ever. Everything here is counted before the application is asked.
"""

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.api.problems import MEDIA_TYPE
from service.api.security import HEADERS
from service.errors import CalibrantError, HeadersTooLarge, MalformedRequest, RequestTooSlow, ServiceBusy
from service.schemas import problem_of
from service.settings import Settings

LINGER_S: Final = 2.0
"""Seconds for which the rest of a refused request is read and dropped: a client that is still sending sees the answer."""

WINDOW_S: Final = 30.0
"""Seconds over which the rate of a body is measured, and within which a client must take some of its answer."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds of a connection.

    Args:
        head_bytes: request line and headers, or trailers.
        head_s: seconds within which they must be complete.
        body_rate: least bytes per second of a body, over `window_s`.
        connections: number of connections at a time.
        window_s: seconds.
    """

    head_bytes: int
    head_s: float
    body_rate: float
    connections: int
    window_s: float = WINDOW_S


class BoundedConnection(HttpToolsProtocol):
    """A connection of uvicorn, with `limits`."""

    limits: ClassVar[ConnectionLimits]

    _refused = False
    _in_head = True
    _progress = False
    """Whether the last bytes completed a head, or belonged to a body."""
    _pending = 0
    """Bytes since then: of a head, of trailers or of a chunk's frame."""
    _body = 0
    """Bytes of the body in this window."""
    idle_since = 0.0
    """When it was made, or when its last request was complete, by the clock of the event loop."""
    _deadline: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Admit the connection; if there are too many, the one that has been silent for longest gives way."""
        super().connection_made(transport)
        self.idle_since = self.loop.time()
        self._await(self.limits.head_s, self._head_is_late)
        if len(self.connections) > self.limits.connections:
            silent = [one for one in self.connections if isinstance(one, BoundedConnection) and one.is_silent]
            oldest = min(silent, key=lambda one: one.idle_since)
            if oldest is self:
                self._refuse(ServiceBusy("The service has as many connections as it may. Try again in a moment.", 1))
            else:
                oldest.transport.abort()

    @property
    def is_silent(self) -> bool:
        """Whether no request is being received or answered, its head excepted."""
        return self._in_head and self._unanswered is None and not self._refused

    @property
    def _unanswered(self) -> RequestResponseCycle | None:
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return None if cycle is None or cycle.response_complete else cycle

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadlines."""
        self._await(None)
        if self._stall is not None:
            self._stall.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what was received, unless it goes beyond the bounds."""
        if self._refused:
            return
        if self._in_head and self._deadline is None:
            self._await(self.limits.head_s, self._head_is_late)
        self._progress = False
        super().data_received(data)
        self._pending = 0 if self._progress else self._pending + len(data)
        if self._pending > self.limits.head_bytes:
            self._refuse(self._too_large())

    def on_headers_complete(self) -> None:
        """Begin to answer, unless the head is too large."""
        self._progress, self._in_head = True, False
        if self._refused:
            return
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.head_bytes:
            self._refuse(self._too_large())
            return
        super().on_headers_complete()
        self._body = 0
        self._await(self.limits.window_s, self._judge_body)

    def on_body(self, body: bytes) -> None:
        """Pass a piece of the body on."""
        self._progress = True
        self._body += len(body)
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Expect the next head."""
        self._progress = self._in_head = True
        self.idle_since = self.loop.time()
        self._await(None)
        if not self._refused:
            super().on_message_complete()

    def pause_writing(self) -> None:
        """Give the client a time within which it must take some of the answer."""
        super().pause_writing()
        self._stall = self.loop.call_later(self.limits.window_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Note that it has."""
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        del msg
        self._refuse(MalformedRequest("This is not a valid HTTP/1.1 request. Send it with an HTTP library or curl."))

    def _await(self, seconds: float | None, late: Any = None) -> None:  # noqa: ANN401 - a method without arguments
        """Set the deadline of what is received, or none."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, late)

    def _head_is_late(self) -> None:
        if not self._pending:
            self.transport.close()  # nothing was asked
            return
        msg = f"The head of the request was not complete after {self.limits.head_s:g} seconds. Send it at once."
        self._refuse(RequestTooSlow(msg))

    def _judge_body(self) -> None:
        # Whoever was not asked to send, or sent more than was taken, is not to blame.
        waits = self.flow.read_paused or self.cycle.waiting_for_100_continue or bool(self.cycle.body)
        if not waits and self._body < self.limits.body_rate * self.limits.window_s:
            msg = f"{self._body} bytes of the body came within {self.limits.window_s:g} seconds; at least {self.limits.body_rate:g} per second are expected. Send the scan again over a faster connection."
            self._refuse(RequestTooSlow(msg))
            return
        self._body = 0
        self._await(self.limits.window_s, self._judge_body)

    def _too_large(self) -> CalibrantError:
        return HeadersTooLarge(
            f"At most {self.limits.head_bytes} bytes of headers are accepted. Send the scan as the body, and fewer cookies."
        )

    def _refuse(self, error: CalibrantError) -> None:
        """Answer with a problem document, end the request, and close the connection once the client had time to read it."""
        self._refused = True
        self._await(None)
        self.pipeline.clear()
        can_answer = True
        if (cycle := self._unanswered) is not None:
            # The head of another request cannot be answered before this one.
            can_answer = not self._in_head and not cycle.response_started
            cycle.disconnected = True
            cycle.message_event.set()
        if self.transport.is_closing():
            return
        if not can_answer:
            self.transport.abort()
            return
        self.transport.write(_answer(error))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._deadline = self.loop.call_later(LINGER_S, self.transport.abort)


def bounded(settings: Settings) -> type[BoundedConnection]:
    """Return the class of a server's connections."""
    limits = ConnectionLimits(
        settings.max_header_bytes, settings.header_deadline_s, settings.min_upload_bytes_per_s, settings.max_connections
    )
    return type("Connection", (BoundedConnection,), {"limits": limits})


def _answer(error: CalibrantError) -> bytes:
    body = problem_of(error).model_dump_json().encode()
    headers = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), "connection": "close", **HEADERS}
    if error.retry_after_s is not None:
        headers["retry-after"] = f"{error.retry_after_s:.0f}"
    status = HTTPStatus(error.status)
    lines = [f"HTTP/1.1 {status} {status.phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body
