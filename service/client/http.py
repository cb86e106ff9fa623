"""A minimal client: send a scan, wait, fetch the results."""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import httpx
from pydantic import ValidationError

from service.errors import ServerProblem, ServerUnreachable
from service.schemas import Job, Models, Problem, Summary, Wire

_Wire = TypeVar("_Wire", bound=Wire)

WAIT_S: Final = 20
"""Seconds for which the server is asked to hold the first answer."""

POLL_S: Final = 0.5
"""Seconds between two looks at a job that takes longer."""


@dataclass(frozen=True, slots=True)
class Result:
    """A finished segmentation.

    Args:
        job: its record.
        mask: NIfTI file (.nii.gz), label values on the scan's grid.
        confidence: NIfTI file (.nii.gz), values in [1/C, 1].
        summary: the image-level calibration summary.
    """

    job: Job
    mask: bytes
    confidence: bytes
    summary: Summary


class Client:
    """Talks to one service; a context manager."""

    def __init__(self, url: str, *, timeout_s: float = 60.0) -> None:
        """Prepare a connection.

        Raises:
            ServerUnreachable: the address is none.

        Args:
            url: of the service, e.g. http://127.0.0.1:8000.
            timeout_s: seconds without a byte after which the server counts as gone.
        """
        try:
            self._http = httpx.Client(base_url=url, timeout=timeout_s)
        except httpx.InvalidURL as error:
            msg = f"The address cannot be used ({error}). Expected one like http://127.0.0.1:8000."
            raise ServerUnreachable(msg) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def models(self) -> Models:
        """Return what is installed.

        Raises:
            ServerUnreachable: no answer.
            ServerProblem: an error answer.
        """
        return _read(Models, self._request("GET", "/v1/models"))

    def segment(self, scan: Path, model: str | None = None, show: Callable[[Job], None] = lambda _: None) -> Result:
        """Send a scan and return its result once it is there.

        Args:
            scan: NIfTI file.
            model: name, or name@sha256; the server's default if None.
            show: called with the job as it changes.

        Raises:
            ServerUnreachable: no answer.
            ServerProblem: the scan or the request was refused, or the job failed.
        """
        headers = {"Prefer": f"wait={WAIT_S}", "Idempotency-Key": uuid.uuid4().hex}
        parameters = {"model": model} if model else {}
        with scan.open("rb") as file:
            headers["Content-Type"] = "application/octet-stream"
            answer = self._request("POST", "/v1/segmentations", content=file, headers=headers, params=parameters)
        job = _read(Job, answer)
        while job.state in ("queued", "running"):
            show(job)
            time.sleep(POLL_S)
            job = _read(Job, self._request("GET", job.links.self))
        show(job)
        if job.problem is not None:
            raise ServerProblem(job.problem.detail, job.problem.status)
        return self._fetch(job)

    def _fetch(self, job: Job) -> Result:
        mask, confidence, summary = (
            self._request("GET", f"{job.links.self}/{name}") for name in ("mask", "confidence", "summary")
        )
        return Result(job, mask.content, confidence.content, _read(Summary, summary))

    def _request(self, method: str, path: str, **options: object) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **options)  # type: ignore[arg-type]
        except httpx.TransportError as error:
            msg = f"{self._http.base_url} did not answer ({type(error).__name__}). Is calibrant serve running there?"
            raise ServerUnreachable(msg) from error
        if answer.is_error:
            raise ServerProblem(_detail(answer), answer.status_code)
        return answer


def _read(kind: type[_Wire], answer: httpx.Response) -> _Wire:
    try:
        return kind.model_validate_json(answer.content)
    except ValidationError as error:
        msg = f"The server's answer is no {kind.__name__} of ours. Is the address that of a Calibrant service of this version?"
        raise ServerProblem(msg, answer.status_code) from error


def _detail(answer: httpx.Response) -> str:
    try:
        return Problem.model_validate_json(answer.content).detail
    except ValidationError:
        return (
            f"The server answered {answer.status_code} without saying why. Is the address that of a Calibrant service?"
        )
