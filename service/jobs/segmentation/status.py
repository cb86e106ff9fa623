"""Describes a job to its owner, from DBOS's record and the running stage."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dbos import WorkflowStatus

from service.bundle.acceptance import AS_STATED, Admission
from service.errors import JobAbandoned, JobCancelled, from_code
from service.result.files import LOGITS, RESULT
from service.schemas import Accept, CaseResult, Job, Links, Output, Priority, Problem, Stage, State, problem_of

PRIORITIES: Final[dict[Priority, int]] = {"urgent": 1, "normal": 2, "background": 3}
"""DBOS's number of each priority; lower numbers go first."""


@dataclass(frozen=True, slots=True)
class WorkflowInput:
    """The arguments of the workflow, in their order.

    Args:
        owner: whose job it is.
        scan: SHA-256 of the stored scan.
        model: identity of the bundle.
        outputs: outputs to keep.
        admission: what the caller says about the scan.
    """

    owner: str
    scan: str
    model: str
    outputs: tuple[Output, ...]
    admission: Admission = AS_STATED

    @classmethod
    def of(cls, status: WorkflowStatus) -> "WorkflowInput":
        """Return the input of a workflow."""
        return cls.of_arguments(*(status.input or {"args": ("", "", "", ())})["args"])

    @classmethod
    def of_arguments(
        cls,
        owner: str,
        scan: str,
        model: str,
        outputs: Sequence[Output],
        name: Sequence[tuple[str, str]] = (),
        accept: Accept = "stated",
    ) -> "WorkflowInput":
        """Return the input of a workflow's arguments; version 0.1 stored the first four."""
        parts = tuple((part, value) for part, value in name)
        return cls(owner, scan, model, tuple(outputs), Admission(parts, accept))

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The arguments as JSON stores them, those that an older version does not know only if they say anything."""
        known = self.owner, self.scan, self.model, list(self.outputs)
        if self.admission == AS_STATED:
            return known
        return *known, [list(part) for part in self.admission.name], self.admission.accept


@dataclass(slots=True)
class Live:
    """What a running job is doing."""

    stage: Stage | None = None
    progress: float = 0.0
    attempt: int = 1
    waiting: bool = False
    """Whether it has left the queue only to begin the moment the case before it ends."""
    started: float = 0.0
    """`time.monotonic()` of the beginning of its last attempt."""


@dataclass(frozen=True, slots=True)
class Place:
    """A job's position in the queue, and the estimated seconds until it has finished."""

    position: int | None = None
    eta_s: float | None = None


def describe_job(status: WorkflowStatus, live: Live, place: Place, result: Path | None) -> Job:
    """Return the job of a workflow.

    Args:
        status: DBOS's record; its input is a `WorkflowInput`, its output ``{"attempts": n, "failure": None or {...}}``.
        live: the running stage.
        place: place in the queue.
        result: folder of the published result, if there is one.
    """
    order = WorkflowInput.of(status)
    state, problem = _state(status, live)
    running = state == "running"
    done = _case_result(result) if state == "succeeded" else None
    return Job(
        id=status.workflow_id,
        state=state,
        model=order.model,
        scan=order.scan,
        priority=_priority(status),
        outputs=list(order.outputs),
        created=_time(status.created_at) or dt.datetime.fromtimestamp(0, dt.UTC),
        finished=_time(status.completed_at),
        queue_position=place.position,
        eta_s=place.eta_s,
        attempts=_attempts(status, live) if state != "queued" else 0,
        device=done.device if done else None,
        stage=live.stage if running else None,
        progress=live.progress if running else float(state == "succeeded"),
        seconds=done.seconds if done else {},
        problem=problem,
        links=_links(status.workflow_id, state, _kept(order, result) if done else ()),
    )


def _state(status: WorkflowStatus, live: Live) -> tuple[State, Problem | None]:
    if status.status == "SUCCESS":
        failure = (status.output or {}).get("failure")
        if failure is None:
            return "succeeded", None
        return "failed", problem_of(from_code(failure["code"], failure["detail"]))
    if status.status in ("ENQUEUED", "DELAYED"):
        return "queued", None
    if status.status == "PENDING":
        return "queued" if live.waiting else "running", None
    if status.status == "CANCELLED":
        return "cancelled", problem_of(JobCancelled("The job was cancelled. Send the scan again to have it segmented."))
    return "failed", problem_of(
        JobAbandoned("The service was interrupted too often while it worked on this job. Send the scan again.")
    )


def _case_result(folder: Path | None) -> CaseResult | None:
    return None if folder is None else CaseResult.model_validate_json((folder / RESULT).read_bytes())


def _attempts(status: WorkflowStatus, live: Live) -> int:
    """Return how often the computation was begun, by this process of the service and by earlier ones."""
    output: dict[str, Any] = status.output or {}
    return int(output.get("attempts", live.attempt)) + max((status.recovery_attempts or 1) - 1, 0)


def _priority(status: WorkflowStatus) -> Priority:
    return next((name for name, number in PRIORITIES.items() if number == status.priority), "normal")


def _time(milliseconds: int | None) -> dt.datetime | None:
    return None if milliseconds is None else dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC)


def _kept(order: WorkflowInput, result: Path | None) -> tuple[Output, ...]:
    """Return the outputs that still exist: the logits behind the probabilities may be erased before the rest."""
    logits = result is not None and (result / LOGITS).is_file()
    return tuple(name for name in order.outputs if name != "probabilities" or logits)


def _links(identifier: str, state: State, kept: tuple[Output, ...]) -> Links:
    here = f"/v1/segmentations/{identifier}"
    if state in ("queued", "running"):
        return Links(self=here, events=f"{here}/events", cancel=f"{here}/cancel")
    names: list[str] = list(kept)
    if "probabilities" in kept:
        names += ["uncertainty", "reference"]
    files = {name: f"{here}/{name}" for name in names}
    return Links(self=here, bundle=f"{here}/bundle.zip" if kept else None, **files)
