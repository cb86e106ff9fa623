"""Describes a DICOM job to its owner, from DBOS's record, the running stage and the ledger."""

import datetime as dt
import hashlib
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from dbos import WorkflowStatus

from service.errors import JobAbandoned, JobCancelled, from_code
from service.jobs.segmentation.queue import identifier_of
from service.pacs.ledger import Ledger
from service.pacs.schemas import DeliveredObject, DicomJob, DicomLinks, DicomStage
from service.schemas import Accept, DicomObject, Problem, State, StatementStatus, problem_of

WORKFLOW: Final = "dicom"
"""DBOS's name of the workflow."""

_UNFINISHED: Final[dict[str, State]] = {"ENQUEUED": "queued", "DELAYED": "queued", "PENDING": "running"}


@dataclass(frozen=True, slots=True)
class DicomOrder:
    """The argument of the workflow.

    Args:
        owner: whose job it is.
        pacs: name of the source.
        study: Study Instance UID.
        series: Series Instance UID.
        instances: digest of the images, by `service.pacs.selection.digest_of`.
        model: identity of the bundle.
        objects: DICOM objects to make.
        destination: name of the PACS that the objects are sent to.
        accept: `anyway`: also a series that says that the model is not made for it.
    """

    owner: str
    pacs: str
    study: str
    series: str
    instances: str
    model: str
    objects: tuple[DicomObject, ...]
    destination: str
    accept: Accept = "stated"

    @classmethod
    def of(cls, status: WorkflowStatus) -> "DicomOrder":
        """Return the order of a workflow."""
        return cls.of_document((status.input or {"args": [{}]})["args"][0])

    @classmethod
    def of_document(cls, document: dict[str, Any]) -> "DicomOrder":
        """Return the order of a JSON document."""
        return cls(**(document | {"objects": tuple(document["objects"])}))

    @property
    def document(self) -> dict[str, Any]:
        """The order as a JSON document; `accept` only if it says anything, so that orders of version 0.1 keep their ids."""
        document = asdict(self) | {"objects": list(self.objects)}
        return {name: value for name, value in document.items() if (name, value) != ("accept", "stated")}

    def identifier(self, key: str | None) -> str:
        """Return the id of the job: equal orders are one job, unless their keys differ."""
        parts = [*map(str, self.document.values()), key or ""]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    def replaces(self, earlier: "DicomOrder") -> bool:
        """Return whether an earlier order was for other images of the same series; a repetition replaces nothing."""
        same = replace(earlier, instances=self.instances, objects=self.objects) == self
        return same and earlier.instances != self.instances


@dataclass(slots=True)
class LiveDicom:
    """What a running job is doing, and what it waits for."""

    stage: DicomStage = "pull"
    waits_for: Problem | None = None


def key_of(identifier: str) -> str:
    """Return the idempotency key of a DICOM job's ordinary job, the segmentation."""
    return f"dicom:{identifier}"


def inner_of(owner: str, identifier: str) -> str:
    """Return the id of a DICOM job's ordinary job, the segmentation."""
    return identifier_of(owner, key_of(identifier))


def describe_dicom_job(
    status: WorkflowStatus,
    live: LiveDicom | None,
    ledger: Ledger | None,
    segmentation: str | None,
    statement: StatementStatus | None = None,
    *,
    cancelled: bool,
) -> DicomJob:
    """Return the job of a workflow.

    Args:
        status: DBOS's record; its output is ``{"failure": None or {...}}``.
        live: the running stage, if it runs in this process.
        ledger: ledger of its objects, once they are made.
        segmentation: id of the ordinary job, once there is one.
        statement: verdict on its answer, once there is one.
        cancelled: whether its delivery was cancelled.
    """
    order = DicomOrder.of(status)
    state, problem = _state(status, ledger, cancelled=cancelled)
    waits_for = live.waits_for if live else None
    if state == "running" and ledger is not None:
        waits_for = next((entry.problem for entry in ledger.pending if entry.problem), None)
    here = f"/v1/dicom/jobs/{status.workflow_id}"
    dead = ledger is not None and bool(ledger.dead)
    return DicomJob(
        id=status.workflow_id,
        state=state,
        stage=_stage(live, ledger) if state == "running" else None,
        pacs=order.pacs,
        study=order.study,
        series=order.series,
        instances=order.instances,
        model=order.model,
        outputs=list(order.objects),
        destination=order.destination,
        created=dt.datetime.fromtimestamp((status.created_at or 0) / 1000, dt.UTC),
        waits_for=waits_for,
        problem=problem,
        statement=statement,
        objects=_objects(ledger),
        links=DicomLinks(
            self=here,
            segmentation=f"/v1/segmentations/{segmentation}" if segmentation else None,
            retry=f"/v1/dicom/deadletters/{status.workflow_id}/retry" if dead else None,
        ),
    )


def _objects(ledger: Ledger | None) -> list[DeliveredObject]:
    return [
        DeliveredObject(uid=entry.uid, state=entry.state, attempts=entry.attempts, problem=entry.problem)
        for entry in (ledger.entries if ledger else [])
    ]


def _stage(live: LiveDicom | None, ledger: Ledger | None) -> DicomStage:
    if ledger is not None:
        return "push"
    return live.stage if live else "pull"


def _state(status: WorkflowStatus, ledger: Ledger | None, *, cancelled: bool) -> tuple[State, Problem | None]:
    if status.status in _UNFINISHED:
        return _UNFINISHED[status.status], None
    if status.status == "CANCELLED" or (cancelled and ledger is not None and ledger.pending):
        return "cancelled", problem_of(JobCancelled("The job was cancelled. Ask for the series again."))
    if status.status != "SUCCESS":
        detail = "The service was interrupted too often while it worked on this job. Ask for the series again."
        return "failed", problem_of(JobAbandoned(detail))
    failure = (status.output or {}).get("failure")
    if failure is not None:
        return "failed", problem_of(from_code(failure["code"], failure["detail"]))
    return _delivered(ledger)


def _delivered(ledger: Ledger | None) -> tuple[State, Problem | None]:
    if ledger is None or ledger.pending:
        return "running", None
    return ("failed", ledger.dead[0].problem) if ledger.dead else ("succeeded", None)
