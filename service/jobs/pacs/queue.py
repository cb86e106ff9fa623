"""A series of a PACS in, its results in a PACS out: pull, an ordinary segmentation, objects, push; through any crash.

Two workflows, each one step that may run any number of times. The first ends with a ledger of objects on the disk, the
second sends what the ledger calls pending, in a queue of its own for each destination: a PACS that is down for a
weekend holds up nobody else. The id follows from what is asked for and from the images, so that asking twice, or an event
that comes twice, is one job; images that came late are another.
"""

import contextvars
import datetime as dt
import shutil
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog
from dbos import DBOS, DBOSContextSetAuth, SetWorkflowID, WorkflowStatus

from service.errors import (
    CalibrantError,
    DeadLetterNotFound,
    JobCancelled,
    JobNotFound,
    PacsError,
    ResultUnavailable,
    StorageFull,
    from_code,
)
from service.executors.embedded import ExecutorStopped
from service.intake.sandbox import check_sandboxed
from service.jobs.pacs.series import PacsRequest, choose_series, reject_other_images, reject_ours
from service.jobs.pacs.status import DicomOrder, LiveDicom, describe_dicom_job, inner_of, key_of
from service.jobs.segmentation.queue import MAX_RECOVERIES, SegmentationJobs, reject_cancelled
from service.jobs.segmentation.status import WorkflowInput
from service.pacs.breaker import Breaker
from service.pacs.config import RECEIVED, PacsFile
from service.pacs.delivery import deliver
from service.pacs.ledger import OBJECTS, Ledger
from service.pacs.patience import persist
from service.pacs.peer import SeriesSource, open_peer
from service.pacs.schemas import DicomJob
from service.pacs.selection import digest_of
from service.pacs.spool import Spool
from service.pacs.web import write_zip
from service.schemas import FINISHED, DicomObject, Superseded, problem_of
from service.storage.local import StateDirectory, Upload

log = structlog.get_logger(__name__)

WORKFLOW: Final = "dicom"
PUSH: Final = "dicom-push"
QUEUE: Final = "dicom"

POLL_S: Final = 0.5
"""Seconds between two looks at each queue. A series takes its PACS longer, and every look some of a core, work or no work."""

PULLS: Final = 4
"""Series that are pulled or wait for their segmentation at a time; the others wait in the queue."""

WATCH_S: Final = 0.2
"""Seconds between two looks at the segmentation that a job waits for."""

PUSHES: Final = 2
"""Results that are sent to one PACS at a time."""

Build = Callable[[Path, Path, Collection[DicomObject], float, Superseded | None], list[Path]]
"""`service.executors.on_demand.derive_dicom`: result, folder to write to, objects, seconds, what is replaced -> files."""


@dataclass(slots=True)
class PacsJobs:
    """Makes, runs, describes and erases DICOM jobs, beside the `SegmentationJobs` of the same process."""

    queue: SegmentationJobs
    state: StateDirectory
    file: PacsFile
    build: Build
    build_s: float
    """Seconds after which building objects is given up."""
    _live: dict[str, LiveDicom] = field(default_factory=dict)
    _breakers: dict[str, Breaker] = field(default_factory=dict)
    _closing: threading.Event = field(default_factory=threading.Event)
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _dicom: Callable[..., dict[str, Any]] = field(init=False)
    _push: Callable[..., None] = field(init=False)

    def register(self) -> None:
        """Tell DBOS of the workflows."""

        @DBOS.step(name="pull_and_segment")
        def pull_and_segment(identifier: str, order: dict[str, Any]) -> dict[str, Any]:
            return self._run(identifier, DicomOrder.of_document(order))

        @DBOS.step(name="deliver")
        def send(workflow: str, identifier: str) -> None:
            self._deliver(workflow, identifier)

        @DBOS.workflow(name=PUSH, max_recovery_attempts=MAX_RECOVERIES)
        def push(identifier: str) -> None:
            send(str(DBOS.workflow_id), identifier)

        @DBOS.workflow(name=WORKFLOW, max_recovery_attempts=MAX_RECOVERIES)
        def dicom(order: dict[str, Any]) -> dict[str, Any]:
            identifier = str(DBOS.workflow_id)
            outcome = pull_and_segment(identifier, order)
            if outcome["failure"] is None:
                self._enqueue_push(identifier, order["destination"], 0)
            return outcome

        self._dicom, self._push = dicom, push

    def start(self) -> None:
        """Let the queues run and sweep what no job leads to; DBOS has been launched."""
        known = {each.workflow_id for each in DBOS.list_workflows(name=WORKFLOW, load_input=False, load_output=False)}
        for folder in list(self.state.dicom.iterdir()):
            if folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)
        sizes = {QUEUE: PULLS} | {_push_queue(name): PUSHES for name in self.file.pacs}
        for name, n in sizes.items():
            DBOS.register_queue(name, worker_concurrency=n, polling_interval_sec=POLL_S, on_conflict="always_update")

    def close(self) -> None:
        """Interrupt what waits; the next start takes it up again."""
        self._closing.set()

    def breaker(self, pacs: str) -> Breaker:
        """Return the circuit of a PACS."""
        return self._breakers.setdefault(pacs, Breaker())

    def source(self, pacs: str) -> SeriesSource:
        """Return a connection to a source by its name.

        Raises:
            PacsNotFound: none of this name is configured.
        """
        return Spool(self.state.received) if pacs == RECEIVED else open_peer(self.file.find(pacs))

    def submit(self, request: PacsRequest, key: str | None = None) -> DicomJob:
        """Return the job for a series; the same one for the same series, images, model, objects and destination.

        Args:
            request: what is asked for.
            key: another one gives another job all the same.

        Raises:
            PacsNotFound: source or destination are not configured.
            SeriesNotFound: the source holds no such series, or none that fits.
            AmbiguousSeries: several fit.
            UnsuitableSeries: it holds results, or was made by this service.
            PacsError: the source does not answer, or answers something else.
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
        )
        identifier = order.identifier(key)
        with SetWorkflowID(identifier), DBOSContextSetAuth(order.owner, None):
            DBOS.enqueue_workflow(QUEUE, self._dicom, order.document)
        return self.find(order.owner, identifier)

    def find(self, owner: str, identifier: str) -> DicomJob:
        """Return a job.

        Raises:
            JobNotFound: the owner has none of this id.
        """
        return self._describe(self._status(owner, identifier))

    def page(self, owner: str, limit: int) -> list[DicomJob]:
        """Return an owner's newest jobs."""
        found = DBOS.list_workflows(name=WORKFLOW, user=owner, sort_desc=True, limit=limit)
        return [self._describe(status) for status in found]

    def cancel(self, owner: str, identifier: str) -> DicomJob:
        """Stop a job, also while it waits, and return it; one that has finished stays as it is.

        Raises:
            JobNotFound: the owner has none of this id.
        """
        if self.find(owner, identifier).state not in FINISHED:
            self._stop(identifier)
        return self.find(owner, identifier)

    def erase(self, owner: str, identifier: str) -> None:
        """Stop a job and erase it with its segmentation and its objects here; a PACS keeps what it has.

        Raises:
            JobNotFound: the owner has none of this id.
        """
        self._status(owner, identifier)
        self._stop(identifier)
        with suppress(JobNotFound):
            self.queue.erase(owner, inner_of(owner, identifier))
        for status in self._pushes(identifier):
            DBOS.delete_workflow(status.workflow_id)
        DBOS.delete_workflow(identifier)
        shutil.rmtree(self.state.dicom / identifier, ignore_errors=True)

    def erase_finished(self, before: dt.datetime) -> int:
        """Erase every owner's jobs that were made before a time and have finished, and return how many those were."""
        removed = 0
        for status in DBOS.list_workflows(name=WORKFLOW, end_time=before.isoformat()):
            if self._describe(status).state in FINISHED:
                self.erase(DicomOrder.of(status).owner, status.workflow_id)
                removed += 1
        return removed

    def dead_letters(self, owner: str) -> list[DicomJob]:
        """Return an owner's jobs of which something could not be delivered, the newest first."""
        found = []
        for folder in self.state.dicom.iterdir():
            ledger = Ledger.read(folder)
            if ledger is not None and ledger.owner == owner and ledger.dead:
                with suppress(JobNotFound):
                    found.append(self.find(owner, folder.name))
        return sorted(found, key=lambda job: job.created, reverse=True)

    def retry(self, owner: str, identifier: str) -> DicomJob:
        """Let what could not be delivered be sent again, and return the job.

        Raises:
            DeadLetterNotFound: the owner has no such job, or everything of it was or will be delivered.
        """
        folder = self.state.dicom / identifier
        with self._turn:
            ledger = Ledger.read(folder) if identifier.isalnum() else None
            if ledger is None or ledger.owner != owner or not ledger.dead or ledger.pending:
                msg = "No dead letter has this id: nothing of such a job was given up, or it is tried at the moment."
                raise DeadLetterNotFound(msg)
            ledger.revive()
            ledger.save(folder)
            self._enqueue_push(identifier, ledger.destination, ledger.retries)
        return self.find(owner, identifier)

    def _run(self, identifier: str, order: DicomOrder) -> dict[str, Any]:
        """Leave a ledger of objects, or return why that failed; safe to repeat after a crash at any point."""
        live = self._live[identifier] = LiveDicom()
        failure = None
        try:
            if Ledger.read(self.state.dicom / identifier) is None:
                job = self._segmented(identifier, order, live)
                live.stage = "build"
                self._build(identifier, order, job)
        except CalibrantError as error:
            failure = {"code": error.code, "detail": error.detail}
        except OSError as error:
            detail = f"The state directory could not be written ({error.strerror})."
            failure = {"code": StorageFull.code, "detail": detail}
        finally:
            self._live.pop(identifier, None)
        if failure is not None:
            log.info("dicom job ended", job=identifier, state="failed", problem=failure["code"])
        return {"failure": failure}

    def _segmented(self, identifier: str, order: DicomOrder, live: LiveDicom) -> str:
        """Return the id of the ordinary job, which has succeeded."""
        inner = inner_of(order.owner, identifier)
        try:
            self.queue.find(order.owner, inner)
        except JobNotFound:
            live.stage = "pull"
            scan = self._pull(identifier, order, live)
            try:
                reject_cancelled(identifier)
            except JobCancelled:
                self.queue.erase_scan(order.owner, scan)
                raise
            asked = WorkflowInput(order.owner, scan, order.model, ("mask", "confidence", "summary", "probabilities"))
            # DBOS starts no workflow from within a step. This one is a job of its own, as if a user had sent the scan; its
            # key makes a repetition of the step harmless.
            contextvars.Context().run(self.queue.submit, asked, idempotency_key=key_of(identifier))
        live.stage = "segment"
        while (job := self.queue.find(order.owner, inner)).state not in FINISHED:
            self._sleep(identifier, WATCH_S)
        if job.problem is not None:
            raise from_code(job.problem.type, job.problem.detail, ResultUnavailable)
        return inner

    def _pull(self, identifier: str, order: DicomOrder, live: LiveDicom) -> str:
        """Return the id of the stored scan: a zip of exactly the images that the job was made for."""

        def failed(error: PacsError) -> None:
            live.waits_for = problem_of(error)

        def attempt() -> str:
            with self.source(order.pacs) as source, Upload(self.state, order.owner) as upload:
                seen: list[str] = []
                write_zip(reject_ours(source.fetch_series(order.study, order.series), seen), upload)
                reject_other_images(seen, source.find_instances(order.study, order.series), order.instances)
                upload.flush()
                check_sandboxed(upload.path)
                return upload.keep()

        def sleep(seconds: float) -> None:
            self._sleep(identifier, seconds)

        scan = persist(attempt, self.breaker(order.pacs), sleep, failed)
        live.waits_for = None
        return scan

    def _build(self, identifier: str, order: DicomOrder, job: str) -> None:
        result = self.state.result(job)
        if result is None:
            msg = "The result of the segmentation was erased before it was sent. Ask for the series again."
            raise ResultUnavailable(msg)
        draft = self.state.begin_attempt(identifier)
        objects = draft / OBJECTS
        objects.mkdir()
        files = self.build(result, objects, order.objects, self.build_s, self._superseded(identifier, order))
        Ledger.of(order.owner, order.destination, files).save(draft)
        with suppress(FileExistsError):
            draft.rename(self.state.dicom / identifier)
        self.state.clear_attempts(identifier)

    def _superseded(self, identifier: str, order: DicomOrder) -> Superseded | None:
        """Return the report of the newest earlier job for the same series with other images; None without one."""
        later = True
        for status in DBOS.list_workflows(name=WORKFLOW, user=order.owner, sort_desc=True):
            earlier = DicomOrder.of(status)
            if status.workflow_id == identifier:
                later = False
            elif not later and order.replaces(earlier):
                ledger = Ledger.read(self.state.dicom / status.workflow_id)
                if ledger is not None and ledger.report is not None:
                    return ledger.report
        return None

    def _deliver(self, workflow: str, identifier: str) -> None:
        folder = self.state.dicom / identifier
        ledger = Ledger.read(folder)
        if ledger is None:  # erased meanwhile
            return
        breaker = self.breaker(ledger.destination)
        try:
            with open_peer(self.file.find(ledger.destination)) as peer:
                ledger = deliver(folder, peer, breaker, lambda seconds: self._sleep(workflow, seconds))
        except (JobCancelled, FileNotFoundError):  # cancelled or erased meanwhile
            return
        if not ledger.dead:
            shutil.rmtree(folder / OBJECTS, ignore_errors=True)  # the PACS has them
        log.info("dicom job ended", job=identifier, state="failed" if ledger.dead else "succeeded")

    def _enqueue_push(self, identifier: str, destination: str, number: int) -> None:
        with SetWorkflowID(f"{identifier}-{number}"):
            DBOS.enqueue_workflow(_push_queue(destination), self._push, identifier)

    def _sleep(self, workflow: str, seconds: float) -> None:
        """Wait; the end of the service ends the wait, so that the next life takes the job up, and so does a cancellation."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._closing.wait(min(left, 1.0)):
                raise ExecutorStopped
            reject_cancelled(workflow)

    def _pushes(self, identifier: str) -> list[WorkflowStatus]:
        return DBOS.list_workflows(name=PUSH, workflow_id_prefix=f"{identifier}-", load_input=False, load_output=False)

    def _stop(self, identifier: str) -> None:
        status = DBOS.get_workflow_status(identifier)
        DBOS.cancel_workflow(identifier)
        for push in self._pushes(identifier):
            DBOS.cancel_workflow(push.workflow_id)
        if status is not None:
            with suppress(CalibrantError):  # there is none, or it has finished
                owner = DicomOrder.of(status).owner
                self.queue.cancel(owner, inner_of(owner, identifier))

    def _status(self, owner: str, identifier: str) -> WorkflowStatus:
        status = DBOS.get_workflow_status(identifier)
        # Another owner's job is answered as one that does not exist.
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
        cancelled = any(each.status == "CANCELLED" for each in self._pushes(identifier))
        ledger = Ledger.read(self.state.dicom / identifier)
        return describe_dicom_job(status, self._live.get(identifier), ledger, inner, cancelled=cancelled)


def _push_queue(pacs: str) -> str:
    return f"{PUSH}:{pacs}"
