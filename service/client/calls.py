"""What is said to a server, and what its answers mean; who sends it, and how it waits, is the clients' own.

A conversation is a generator: it yields calls, is sent their answers and returns what the caller wanted. `Client` and
`AsyncClient` run the same ones, as httpx runs its `Auth.auth_flow`.
"""

import os
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
from pydantic import ValidationError

from ..errors import ServerProblem, ServerUnreachable
from ..schemas import FINISHED, Job, Jobs, Models, Output, Priority, Problem, Scan, State, Summary, Wire
from .result import Result

SEGMENTATIONS: Final = "/v1/segmentations"

WAIT_S: Final = 20
"""Seconds for which the server is asked to hold the first answer."""

POLL_S: Final = 0.5
"""Seconds between two looks at a job that takes longer."""

PROMPT: Final = {"Prefer": f"wait={WAIT_S}"}
"""Header of a request that would rather wait than come again."""

_T = TypeVar("_T")
_Wire = TypeVar("_Wire", bound=Wire)

ScanSource = Path | Scan | str
"""A file, or a scan that was uploaded, or its id."""

Show = Callable[[Job], None]
"""Is called with a job whenever it was looked at."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for.

    Args:
        scan: a file, or an uploaded scan.
        model: name, or name@sha256; the server's default if None.
        outputs: what to keep; everything if empty.
        priority: over the jobs that wait.
        idempotency_key: the same key never makes a second job; a fresh one by default.
    """

    scan: ScanSource
    model: str | None = None
    outputs: tuple[Output, ...] = ()
    priority: Priority = "normal"
    idempotency_key: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True, slots=True)
class Call:
    """One request; all of them may be repeated without harm.

    Args:
        method: of HTTP.
        path: below the server's address.
        params: query.
        headers: beside those of every request.
        body: file that is sent.
        after_s: seconds to wait before.
    """

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Path | None = None
    after_s: float = 0.0


Talk = Generator[Call, httpx.Response, _T]
"""A conversation that ends in a T."""


def models() -> Talk[Models]:
    """Ask what is installed."""
    return read(Models, (yield Call("GET", "/v1/models")))


def upload(scan: Path) -> Talk[Scan]:
    """Send a scan to be kept."""
    return read(Scan, (yield _with_body(Call("POST", "/v1/scans"), scan)))


def submit(order: Order, headers: Mapping[str, str] | None = None) -> Talk[Job]:
    """Send a scan to be segmented."""
    params = {"model": order.model, "outputs": list(order.outputs), "priority": order.priority}
    if not isinstance(order.scan, Path):
        params["scan"] = order.scan.id if isinstance(order.scan, Scan) else order.scan
    call = Call(
        "POST",
        SEGMENTATIONS,
        {name: value for name, value in params.items() if value},
        {"Idempotency-Key": order.idempotency_key, **(headers or {})},
    )
    return read(Job, (yield _with_body(call, order.scan) if isinstance(order.scan, Path) else call))


def find(identifier: str) -> Talk[Job]:
    """Ask how a job stands."""
    return read(Job, (yield Call("GET", f"{SEGMENTATIONS}/{identifier}")))


def wait(job: Job, show: Show) -> Talk[Job]:
    """Look at a job until it has finished."""
    show(job)
    while job.state not in FINISHED:
        job = read(Job, (yield Call("GET", job.links.self, after_s=POLL_S)))
        show(job)
    return job


def fetch(job: Job) -> Talk[Result]:
    """Download what a job has made.

    Raises:
        ServerProblem: it has failed or was cancelled.
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
    """Send a scan, wait for its job and download what it made."""
    job = yield from submit(order, PROMPT)
    return (yield from fetch((yield from wait(job, show))))


def cancel(identifier: str) -> Talk[Job]:
    """Stop a job."""
    return read(Job, (yield Call("POST", f"{SEGMENTATIONS}/{identifier}/cancel")))


def delete(identifier: str) -> Talk[None]:
    """Erase a job."""
    yield Call("DELETE", f"{SEGMENTATIONS}/{identifier}")


def page(state: State | None, cursor: str | None) -> Talk[Jobs]:
    """Ask for a page of the jobs, the newest first."""
    params = {name: value for name, value in {"state": state, "cursor": cursor}.items() if value}
    return read(Jobs, (yield Call("GET", SEGMENTATIONS, params)))


def read(kind: type[_Wire], answer: httpx.Response) -> _Wire:
    """Return what an answer holds.

    Raises:
        ServerProblem: something else.
    """
    try:
        return kind.model_validate_json(answer.content)
    except ValidationError as error:
        msg = f"The server's answer is no {kind.__name__} of ours. Is the address that of a Calibrant service of this version?"
        raise ServerProblem(msg, answer.status_code) from error


def reject_error(answer: httpx.Response) -> None:
    """Raise ServerProblem if the answer, whose body was read, is an error."""
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
    """Return the error of a request that got no answer."""
    return ServerUnreachable(f"{url} did not answer ({type(error).__name__}). Is calibrant serve running there?")


def headers_of(key: str | None) -> dict[str, str]:
    """Return the headers of every request: the key that was given, or CALIBRANT_KEY of the environment."""
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
    """Return `Retry-After` where it is a number of seconds, as ours always is (RFC 9110, section 10.2.3)."""
    value = answer.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else None
