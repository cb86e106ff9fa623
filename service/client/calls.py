"""The requests to a server and the meaning of its answers, without the sending and waiting.

A conversation is a generator: it yields calls, receives their answers and returns the outcome. `Client` and `AsyncClient`
run the same generators, as httpx runs its `Auth.auth_flow`.
"""

import os
import re
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
from pydantic import ValidationError

from ..errors import ClientError, ServerProblem, ServerUnreachable
from ..names import parts_of
from ..schemas import FINISHED, Accept, Job, Jobs, Models, Output, Priority, Problem, Scan, State, Summary, Wire
from .result import Result

SEGMENTATIONS: Final = "/v1/segmentations"

WAIT_S: Final = 20
"""Seconds for which the server is asked to hold the first answer."""

POLL_S: Final = 0.5
"""Seconds between two polls of a job that takes longer."""

PROMPT: Final = {"Prefer": f"wait={WAIT_S}"}
"""Header that asks the server to answer only when the job has finished, if that is soon."""

_T = TypeVar("_T")
_Wire = TypeVar("_Wire", bound=Wire)

ScanSource = Path | Scan | str
"""A file, an uploaded scan, or the id of one, the 64 hex digits of its SHA-256."""

Show = Callable[[Job], None]
"""Called with a job whenever it was looked at."""


def no_show(_: Job) -> None:
    """Show nothing."""


@dataclass(frozen=True, slots=True)
class Order:
    """A segmentation to submit.

    Args:
        scan: a file, an uploaded scan, or the id of one.
        model: name, or name@sha256; the server's default if None.
        outputs: outputs to keep; all if empty.
        priority: over waiting jobs.
        idempotency_key: the same key never makes a second job; a new one by default.
        accept: `anyway`: also a scan that the model does not accept; its statement is then withdrawn.

    Raises:
        ClientError: the scan is a str, but no id.
    """

    scan: ScanSource
    model: str | None = None
    outputs: tuple[Output, ...] = ()
    priority: Priority = "normal"
    idempotency_key: str = field(default_factory=lambda: uuid.uuid4().hex)
    accept: Accept = "stated"

    def __post_init__(self) -> None:
        if isinstance(self.scan, str) and not re.fullmatch("[0-9a-fA-F]{64}", self.scan):
            msg = "A str is the id of an uploaded scan (64 hex digits); for a file pass pathlib.Path(...)."
            raise ClientError(msg)


@dataclass(frozen=True, slots=True)
class Call:
    """One request; every call may be repeated safely.

    Args:
        method: HTTP method.
        path: path below the server's address.
        params: query parameters.
        headers: headers in addition to those of every request.
        body: file to send.
        after_s: seconds to wait before sending.
    """

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Path | None = None
    after_s: float = 0.0


Talk = Generator[Call, httpx.Response, _T]
"""A conversation that returns a T."""


def models() -> Talk[Models]:
    """Get the installed models."""
    return read(Models, (yield Call("GET", "/v1/models")))


def upload(scan: Path | str) -> Talk[Scan]:
    """Store a scan at the service."""
    return read(Scan, (yield _with_body(Call("POST", "/v1/scans"), Path(scan))))


def submit(order: Order, headers: Mapping[str, str] | None = None) -> Talk[Job]:
    """Submit a scan."""
    params: dict[str, Any] = {"model": order.model, "outputs": list(order.outputs), "priority": order.priority}
    if order.accept != "stated":
        params["accept"] = order.accept
    if isinstance(order.scan, Path):
        params |= parts_of(order.scan.name)
    else:
        params["scan"] = order.scan.id if isinstance(order.scan, Scan) else order.scan
    call = Call(
        "POST",
        SEGMENTATIONS,
        {name: value for name, value in params.items() if value},
        {"Idempotency-Key": order.idempotency_key, **(headers or {})},
    )
    return read(Job, (yield _with_body(call, order.scan) if isinstance(order.scan, Path) else call))


def find(identifier: str) -> Talk[Job]:
    """Get a job in its present state."""
    return read(Job, (yield Call("GET", f"{SEGMENTATIONS}/{identifier}")))


def wait(job: Job, show: Show) -> Talk[Job]:
    """Poll a job until it has finished."""
    show(job)
    while job.state not in FINISHED:
        job = read(Job, (yield Call("GET", job.links.self, after_s=POLL_S)))
        show(job)
    return job


def fetch(job: Job) -> Talk[Result]:
    """Download the outputs of a finished job.

    Raises:
        ServerProblem: the job failed or was cancelled.
    """
    if job.problem is not None:
        raise _error_of(job.problem)
    files: dict[str, bytes] = {}
    for name in ("mask", "confidence", "summary"):
        link = getattr(job.links, name)
        if link is not None:
            answer = yield Call("GET", link)
            files[name] = answer.content
            if name == "summary":
                read(Summary, answer)
    return Result(job, files)


def segment(order: Order, show: Show) -> Talk[Result]:
    """Submit a scan, wait for its job and download the outputs."""
    job = yield from submit(order, PROMPT)
    return (yield from fetch((yield from wait(job, show))))


def cancel(identifier: str) -> Talk[Job]:
    """Cancel a job."""
    return read(Job, (yield Call("POST", f"{SEGMENTATIONS}/{identifier}/cancel")))


def delete(identifier: str) -> Talk[None]:
    """Erase a job."""
    yield Call("DELETE", f"{SEGMENTATIONS}/{identifier}")


def page(state: State | None, cursor: str | None) -> Talk[Jobs]:
    """Get a page of the caller's jobs, the newest first."""
    params = {name: value for name, value in {"state": state, "cursor": cursor}.items() if value}
    return read(Jobs, (yield Call("GET", SEGMENTATIONS, params)))


def read(wire_type: type[_Wire], answer: httpx.Response) -> _Wire:
    """Return the content of an answer.

    Raises:
        ServerProblem: the content is of another type.
    """
    try:
        return wire_type.model_validate_json(answer.content)
    except ValidationError as error:
        msg = f"The server's answer is not of type {wire_type.__name__}. Is the address that of a Calibrant service of this version?"
        raise ServerProblem(msg, answer.status_code) from error


def reject_error(answer: httpx.Response) -> None:
    """Raise ServerProblem if an answer, whose body has been read, is an error."""
    if not answer.is_error:
        return
    try:
        problem = Problem.model_validate_json(answer.content)
    except ValidationError:
        msg = (
            f"The server answered {answer.status_code} without saying why. Is the address that of a Calibrant service?"
        )
        raise ServerProblem(msg, answer.status_code, retry_after_s=_retry_after_s(answer)) from None
    raise _error_of(problem.model_copy(update={"status": answer.status_code}), _retry_after_s(answer))


def unreachable(url: httpx.URL, error: httpx.TransportError) -> ServerUnreachable:
    """Return the error for a request without an answer."""
    return ServerUnreachable(f"{url} did not answer ({type(error).__name__}). Is calibrant serve running there?")


def address_of(url: str) -> httpx.URL:
    """Return the address of a server.

    Raises:
        ServerUnreachable: it is not valid, or does not begin with http:// or https://.
    """
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        msg = f"The address cannot be used ({error}). Expected one like http://127.0.0.1:8000."
        raise ServerUnreachable(msg) from error
    if address.scheme not in ("http", "https") or not address.host:
        msg = "The address needs http:// or https://, e.g. http://127.0.0.1:8000."
        raise ServerUnreachable(msg)
    return address


def below(address: httpx.URL, path: str) -> str:
    """Return a path below the server's address: links carry the prefix of the address, if a proxy put one there."""
    prefix = address.path.rstrip("/")
    return path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path


def headers_of(key: str | None) -> dict[str, str]:
    """Return the headers of every request: the given key, or CALIBRANT_KEY of the environment."""
    key = key or os.environ.get("CALIBRANT_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _with_body(call: Call, scan: Path) -> Call:
    headers = {
        **call.headers,
        "Content-Type": "application/octet-stream",
        "Content-Length": str(scan.stat().st_size),
    }
    return Call(call.method, call.path, call.params, headers, scan)


def _error_of(problem: Problem, retry_after_s: float | None = None) -> ServerProblem:
    return ServerProblem(
        problem.detail, problem.status, problem_type=problem.type, title=problem.title, retry_after_s=retry_after_s
    )


def _retry_after_s(answer: httpx.Response) -> float | None:
    """Return `Retry-After` if it is a number of seconds, as this service sends it (RFC 9110, section 10.2.3)."""
    value = answer.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else None
