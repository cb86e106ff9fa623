"""A series of a PACS in, its results in a PACS out: pull, an ordinary segmentation, objects, push; through any crash.

Two workflows. The first pulls the series, enqueues the segmentation as its child and ends with a ledger of objects on the
disk. The second sends the pending objects of the ledger, in a queue of its own for each destination: a PACS that is
down for a weekend holds up no other. Each step may run any number of times. A job's id follows from the request and the
images, so that asking twice, or an event that comes twice, is one job; images that came late are another.
"""

import datetime as dt
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import InitVar, dataclass, field
from typing import Any, Final

from dbos import DBOS, DBOSContextSetAuth, SetWorkflowID, WorkflowStatus

from service.bundle.acceptance import Admission
from service.errors import CalibrantError, DeadLetterNotFound, JobNotFound
from service.jobs.pacs.series import PacsRequest, choose_series
from service.jobs.pacs.status import WORKFLOW, DicomOrder, describe_dicom_job, inner_of, key_of
from service.jobs.pacs.worker import Build, Outcome, PacsWorker
from service.jobs.segmentation.queue import MAX_RECOVERIES, SegmentationJobs
from service.jobs.segmentation.status import WorkflowInput
from service.pacs.breaker import Breaker
from service.pacs.config import PacsFile
from service.pacs.ledger import Ledger
from service.pacs.peer import SeriesSource
from service.pacs.schemas import DicomJob
from service.pacs.selection import digest_of
from service.result.files import status_of
from service.schemas import ALL_OUTPUTS, FINISHED
from service.storage.local import StateDirectory

PUSH: Final = "dicom-push"
QUEUE: Final = "dicom"

POLL_S: Final = 0.5
"""Seconds between two looks at each queue: short beside the transfer of a series, long enough to leave the cores alone."""

PULLS: Final = 4
"""Series that are pulled or wait for their segmentation at a time; the others wait in the queue."""

PUSHES: Final = 2
"""Results that are sent to one PACS at a time."""


@dataclass(slots=True)
class PacsJobs:
    """Makes, describes and erases DICOM jobs, beside the `SegmentationJobs` of the same process."""

    queue: SegmentationJobs
    state: StateDirectory
    file: PacsFile
    build: InitVar[Build]
    build_s: InitVar[float]
    """Seconds after which building objects is given up."""
    worker: PacsWorker = field(init=False)
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _dicom: Callable[..., Outcome] = field(init=False)
    _push: Callable[..., None] = field(init=False)

    def __post_init__(self, build: Build, build_s: float) -> None:
        self.worker = PacsWorker(self.queue, self.state, self.file, build, build_s)

    def register(self) -> None:
        """Register the workflows with DBOS."""

        # An earlier version did everything up to the ledger in this step, and DBOS has recorded its name.
        @DBOS.step(name="pull_and_segment")
        def pull(identifier: str, order: dict[str, Any]) -> Outcome:
            return self.worker.pull(identifier, DicomOrder.of_document(order))

        @DBOS.step(name="build_objects")
        def build_objects(identifier: str, order: dict[str, Any]) -> Outcome:
            return self.worker.build_objects(identifier, DicomOrder.of_document(order))

        @DBOS.step(name="deliver")
        def send(workflow: str, identifier: str) -> None:
            self.worker.deliver(workflow, identifier)

        @DBOS.workflow(name=PUSH, max_recovery_attempts=MAX_RECOVERIES)
        def push(identifier: str) -> None:
            send(str(DBOS.workflow_id), identifier)

        @DBOS.workflow(name=WORKFLOW, max_recovery_attempts=MAX_RECOVERIES)
        def dicom(order: dict[str, Any]) -> Outcome:
            identifier = str(DBOS.workflow_id)
            try:
                outcome = pull(identifier, order)
                if "scan" in outcome:  # otherwise it failed, or the ledger is there
                    admission = Admission(accept=order.get("accept", "stated"))
                    asked = WorkflowInput(order["owner"], outcome["scan"], order["model"], ALL_OUTPUTS, admission)
                    self.queue.enqueue_child(asked, key_of(identifier))
                    outcome = build_objects(identifier, order)
            finally:
                self.worker.live.pop(identifier, None)
                self.queue.count_out(identifier)
            if outcome["failure"] is None or outcome.get("reported"):
                self._enqueue_push(identifier, order["destination"], 0)
            return {"failure": outcome["failure"]}

        self._dicom, self._push = dicom, push

    def start(self) -> None:
        """Let the queues run and erase ledgers without a job; DBOS has been launched."""
        for status in DBOS.list_workflows(name=WORKFLOW, status=["ENQUEUED", "PENDING"], load_output=False):
            self.queue.count_in(status.workflow_id, DicomOrder.of(status).owner)
        ledgers = [folder.name for folder in self.state.dicom.iterdir()]
        for identifier in self.queue.table.missing(ledgers, [WORKFLOW]):
            shutil.rmtree(self.state.dicom / identifier, ignore_errors=True)
        sizes = {QUEUE: PULLS} | {_push_queue(name): PUSHES for name in self.file.pacs}
        for name, n in sizes.items():
            DBOS.register_queue(name, worker_concurrency=n, polling_interval_sec=POLL_S, on_conflict="always_update")

    def close(self) -> None:
        """Interrupt what waits; the next start takes it up again."""
        self.worker.close()

    def breaker(self, pacs: str) -> Breaker:
        """Return the circuit of a PACS."""
        return self.worker.breaker(pacs)

    def source(self, pacs: str) -> SeriesSource:
        """Return a connection to a source by its name.

        Raises:
            PacsNotFound: none of this name is configured.
        """
        return self.worker.source(pacs)

    def submit(self, request: PacsRequest, key: str | None = None) -> DicomJob:
        """Return the job for a series; equal series, images, model, objects and destination are one job.

        Args:
            request: the series, and what to do with it.
            key: a different key makes a different job of an equal request.

        Raises:
            PacsNotFound: source or destination are not configured.
            SeriesNotFound: the source holds no such series, or none that fits.
            AmbiguousSeries: several fit.
            UnsuitableSeries: it holds results, or was made by this service.
            PacsError: the source fails.
        """
        self.file.find(request.destination)
        with self.source(request.pacs) as source:
            series = choose_series(source, request)
            digest = digest_of(source.find_instances(series.study, series.uid))
        order = DicomOrder(
            owner=request.owner,
            pacs=request.pacs,
            study=series.study,
            series=series.uid,
            instances=digest,
            model=request.model,
            objects=request.objects,
            destination=request.destination,
            accept=request.accept,
        )
        identifier = order.identifier(key)
        if DBOS.get_workflow_status(identifier) is None:
            self.queue.count_in(identifier, order.owner)
        with SetWorkflowID(identifier), DBOSContextSetAuth(order.owner, None):
            DBOS.enqueue_workflow(QUEUE, self._dicom, order.document)
        return self.find(order.owner, identifier)

    def find(self, owner: str, identifier: str) -> DicomJob:
        """Return a job.

        Raises:
            JobNotFound: the owner has no job with this id.
        """
        return self._describe(self._status(owner, identifier))

    def page(self, owner: str, limit: int) -> list[DicomJob]:
        """Return an owner's newest jobs."""
        statuses = DBOS.list_workflows(name=WORKFLOW, user=owner, sort_desc=True, limit=limit)
        return [self._describe(status) for status in statuses]

    def cancel(self, owner: str, identifier: str) -> DicomJob:
        """Stop a job, even while it waits, and return it; a finished job stays as it is.

        Raises:
            JobNotFound: the owner has no job with this id.
        """
        if self.find(owner, identifier).state not in FINISHED:
            self._stop(identifier)
        return self.find(owner, identifier)

    def erase(self, owner: str, identifier: str) -> None:
        """Stop a job and erase it with its segmentation and objects; the PACS keeps what is stored there.

        Raises:
            JobNotFound: the owner has no job with this id.
        """
        self._status(owner, identifier)
        self._stop(identifier)
        with suppress(JobNotFound):
            self.queue.erase(owner, inner_of(owner, identifier))
        for status in self._pushes(identifier):
            DBOS.delete_workflow(status.workflow_id)
        DBOS.delete_workflow(identifier)
        shutil.rmtree(self.state.dicom / identifier, ignore_errors=True)
        self.queue.database.forget()

    def erase_finished(self, before: dt.datetime) -> int:
        """Erase the finished jobs of every owner that were made before a time, and return their number."""
        removed = 0
        for status in DBOS.list_workflows(name=WORKFLOW, end_time=before.isoformat()):
            if self._describe(status).state in FINISHED:
                self.erase(DicomOrder.of(status).owner, status.workflow_id)
                removed += 1
        return removed

    def dead_letters(self, owner: str) -> list[DicomJob]:
        """Return an owner's jobs with objects that could not be delivered, the newest first."""
        jobs = []
        for folder in self.state.dicom.iterdir():
            ledger = Ledger.read(folder)
            if ledger is not None and ledger.owner == owner and ledger.dead:
                with suppress(JobNotFound):
                    jobs.append(self.find(owner, folder.name))
        return sorted(jobs, key=lambda job: job.created, reverse=True)

    def retry(self, owner: str, identifier: str) -> DicomJob:
        """Send the undelivered objects of a job again, and return the job.

        Raises:
            DeadLetterNotFound: the owner has no such job, or none of its objects is dead.
        """
        folder = self.state.dicom / identifier
        with self._turn:
            ledger = Ledger.read(folder) if identifier.isalnum() else None
            if ledger is None or ledger.owner != owner or not ledger.dead or ledger.pending:
                msg = (
                    "No dead letter has this id: none of the job's objects was given up, or they are being sent again."
                )
                raise DeadLetterNotFound(msg)
            ledger.revive()
            ledger.save(folder)
            self._enqueue_push(identifier, ledger.destination, ledger.retries)
        return self.find(owner, identifier)

    def _enqueue_push(self, identifier: str, destination: str, number: int) -> None:
        with SetWorkflowID(f"{identifier}-{number}"):
            DBOS.enqueue_workflow(_push_queue(destination), self._push, identifier)

    def _pushes(self, identifier: str) -> list[WorkflowStatus]:
        return DBOS.list_workflows(name=PUSH, workflow_id_prefix=f"{identifier}-", load_input=False, load_output=False)

    def _stop(self, identifier: str) -> None:
        status = DBOS.get_workflow_status(identifier)
        DBOS.cancel_workflow(identifier)
        self.queue.count_out(identifier)
        for push in self._pushes(identifier):
            DBOS.cancel_workflow(push.workflow_id)
        if status is not None:
            with suppress(CalibrantError):  # there is no segmentation yet, or it has finished
                owner = DicomOrder.of(status).owner
                self.queue.cancel(owner, inner_of(owner, identifier))

    def _status(self, owner: str, identifier: str) -> WorkflowStatus:
        status = DBOS.get_workflow_status(identifier)
        # Another owner's job gets the same answer as one that does not exist.
        if status is None or status.name != WORKFLOW or DicomOrder.of(status).owner != owner:
            msg = "No DICOM job has this id. It may have been deleted."
            raise JobNotFound(msg)
        return status

    def _describe(self, status: WorkflowStatus) -> DicomJob:
        identifier = status.workflow_id
        owner = DicomOrder.of(status).owner
        inner: str | None = inner_of(owner, identifier)
        try:
            self.queue.find(owner, str(inner))
        except JobNotFound:
            inner = None
        cancelled = any(push.status == "CANCELLED" for push in self._pushes(identifier))
        ledger = Ledger.read(self.state.dicom / identifier)
        result = self.state.result(inner) if inner else None
        verdict = status_of(result) if result else None
        live = self.worker.live.get(identifier)
        return describe_dicom_job(status, live, ledger, inner, verdict, cancelled=cancelled)


def _push_queue(pacs: str) -> str:
    return f"{PUSH}:{pacs}"
