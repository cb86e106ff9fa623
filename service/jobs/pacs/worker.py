"""The work of a DICOM job: pull the series, wait for its segmentation, build the objects, deliver them."""

import math
import shutil
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import structlog
from dbos import DBOS

from service.errors import (
    CalibrantError,
    JobCancelled,
    JobNotFound,
    PacsError,
    ResultUnavailable,
    ScanNotAccepted,
    StorageFull,
    from_code,
)
from service.executors.embedded import ExecutorStopped
from service.executors.on_demand import derive_refusal
from service.executors.pool import MAX_ATTEMPTS
from service.intake.sandbox import check_sandboxed
from service.jobs.pacs.series import reject_other_images, reject_ours
from service.jobs.pacs.status import WORKFLOW, DicomOrder, LiveDicom, inner_of
from service.jobs.segmentation.queue import SegmentationJobs
from service.jobs.segmentation.records import reject_cancelled
from service.pacs.breaker import Breaker
from service.pacs.config import RECEIVED, PacsFile
from service.pacs.delivery import deliver
from service.pacs.ledger import OBJECTS, Ledger
from service.pacs.patience import persist
from service.pacs.peer import SeriesSource, open_peer
from service.pacs.spool import Spool
from service.pacs.web import write_zip
from service.result.files import status_of
from service.schemas import DicomObject, Superseded, problem_of
from service.storage.faults import STORAGE_ERRORS, told
from service.storage.local import StateDirectory, Upload

log = structlog.get_logger(__name__)

STORAGE_PAUSE_S: Final = 2.0
"""Seconds that a job waits after the storage has been repaired."""

P = ParamSpec("P")
T = TypeVar("T")

Build = Callable[[Path, Path, Collection[DicomObject], float, Superseded | None], list[Path]]
"""`service.executors.on_demand.derive_dicom`: result, folder to write to, objects, seconds, what is replaced -> files."""

Outcome = dict[str, Any]
"""Output of a step: ``{"failure": None or {"code": ..., "detail": ...}}``; that of the pull also has a ``scan``."""


@dataclass(slots=True)
class PacsWorker:
    """Does the steps of the workflows; each of them may be repeated after a crash at any point.

    Args:
        queue: the ordinary jobs of the same process.
        state: where scans, results and ledgers lie.
        file: the configured PACS.
        build: makes the DICOM objects.
        build_s: seconds after which building objects is given up.
    """

    queue: SegmentationJobs
    state: StateDirectory
    file: PacsFile
    build: Build
    build_s: float
    live: dict[str, LiveDicom] = field(default_factory=dict)
    """What the running jobs are doing, by id."""
    breakers: dict[str, Breaker] = field(default_factory=dict)
    """Circuit of each PACS, by name."""
    _closing: threading.Event = field(default_factory=threading.Event)

    def close(self) -> None:
        """Interrupt every wait; the next process goes on with the jobs."""
        self._closing.set()
        self.queue.ends.tell()

    def breaker(self, pacs: str) -> Breaker:
        """Return the circuit of a PACS."""
        return self.breakers.setdefault(pacs, Breaker())

    def source(self, pacs: str) -> SeriesSource:
        """Return a connection to a source by its name.

        Raises:
            PacsNotFound: none of this name is configured.
        """
        return Spool(self.state.received) if pacs == RECEIVED else open_peer(self.file.find(pacs))

    def pull(self, identifier: str, order: DicomOrder) -> Outcome:
        """Store the series as a scan; without one in the outcome, the objects are already built or the pull failed."""
        live = self.live.setdefault(identifier, LiveDicom())
        if Ledger.read(self.state.dicom / identifier) is not None:
            return {"failure": None}
        try:
            return {"failure": None, "scan": self._despite_faults(identifier, live, self._stored, order, live)}
        except CalibrantError as error:
            return _failed(identifier, error)

    def build_objects(self, identifier: str, order: DicomOrder) -> Outcome:
        """Wait for the segmentation and leave a ledger of objects to deliver.

        Of a scan that is refused, the ledger holds a report if its destination wants one, and the job fails all the same.
        """
        live = self.live.setdefault(identifier, LiveDicom())
        try:
            if Ledger.read(self.state.dicom / identifier) is None:
                live.stage = "segment"
                job = self._segmented(identifier, order)
                live.stage = "build"
                self._despite_faults(identifier, live, self._build, order, job)
        except CalibrantError as error:
            reported = isinstance(error, ScanNotAccepted) and self._reported(identifier, order, error)
            return _failed(identifier, error) | ({"reported": True} if reported else {})
        return {"failure": None}

    def deliver(self, workflow: str, identifier: str) -> None:
        """Send the pending objects of a job's ledger to their destination.

        Args:
            workflow: id of the delivering workflow.
            identifier: of the job.
        """
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

    def _despite_faults(
        self, identifier: str, live: LiveDicom, act: Callable[Concatenate[str, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return what an act returns, as soon as the storage lets it; for want of space no job fails."""
        faults = 0
        while True:
            try:
                with told():
                    return act(identifier, *args, **kwargs)
            except STORAGE_ERRORS as error:
                faults += 1
                if faults >= MAX_ATTEMPTS and not isinstance(error, StorageFull):
                    raise
                live.waits_for = problem_of(error)
                self.queue.guard.note(error)
            if not self.queue.guard.await_repair(lambda: self._reject_ended(identifier)):
                raise ExecutorStopped
            self._sleep(identifier, STORAGE_PAUSE_S)
            live.waits_for = None

    def _stored(self, identifier: str, order: DicomOrder, live: LiveDicom) -> str:
        """Return the id of the scan that holds the series."""
        with suppress(JobNotFound):  # the segmentation was enqueued before a crash, or by an earlier version
            return self.queue.find(order.owner, inner_of(order.owner, identifier)).scan
        scan = self._pull(identifier, order, live)
        try:
            reject_cancelled(identifier)
        except JobCancelled:
            self.queue.erase_scan(order.owner, scan)
            raise
        return scan

    def _pull(self, identifier: str, order: DicomOrder, live: LiveDicom) -> str:
        """Return the id of a stored zip of exactly the images that the job was made for."""

        def failed(error: PacsError) -> None:
            live.waits_for = problem_of(error)

        def attempt() -> str:
            with self.source(order.pacs) as source, Upload(self.state, order.owner) as upload:
                received: list[str] = []
                write_zip(reject_ours(source.fetch_series(order.study, order.series), received), upload)
                reject_other_images(received, source.find_instances(order.study, order.series), order.instances)
                upload.flush()
                check_sandboxed(upload.path)
                return upload.keep()

        def sleep(seconds: float) -> None:
            self._sleep(identifier, seconds)

        scan = persist(attempt, self.breaker(order.pacs), sleep, failed)
        live.waits_for = None
        return scan

    def _segmented(self, identifier: str, order: DicomOrder) -> str:
        """Return the id of the ordinary job once it has succeeded."""
        # Not `get_result()` of DBOS's handle: it neither ends when the segmentation is erased, nor when the service does.
        inner = inner_of(order.owner, identifier)
        job = self.queue.wait(order.owner, inner, math.inf, lambda: self._reject_ended(identifier))
        if job.problem is not None:
            raise from_code(job.problem.type, job.problem.detail, ResultUnavailable)
        return inner

    def _build(self, identifier: str, order: DicomOrder, job: str) -> None:
        result = self.state.result(job)
        if result is None:
            msg = "The result of the segmentation was erased before it was sent. Ask for the series again."
            raise ResultUnavailable(msg)
        wanted = self.file.find(order.destination).wanted(order.objects, status_of(result))
        superseded = self.superseded(identifier, order)
        self._leave_ledger(
            identifier,
            order,
            lambda objects: self.build(result, objects, wanted, self.build_s, superseded) if wanted else [],
        )

    def _reported(self, identifier: str, order: DicomOrder, error: CalibrantError) -> bool:
        """Leave a ledger with a report on a refused scan, if its destination wants one; return whether there is one."""
        if not self.file.find(order.destination).refused:
            return False
        try:
            bundle = self.queue.registry.find(order.model)
            scan = self.queue.find(order.owner, inner_of(order.owner, identifier)).scan
            path = self.state.scan(order.owner, scan)
            self._leave_ledger(
                identifier,
                order,
                lambda objects: derive_refusal(path, objects, bundle.root, error.detail, self.build_s),
            )
        except (CalibrantError, OSError) as fault:  # the refusal itself is what the job ends with
            log.warning("a refusal was not reported", job=identifier, error=type(fault).__name__)
            return False
        return True

    def _leave_ledger(self, identifier: str, order: DicomOrder, build: Callable[[Path], list[Path]]) -> None:
        """Build objects in a folder of their own, and leave the ledger of them."""
        draft = self.state.begin_attempt(identifier)
        objects = draft / OBJECTS
        objects.mkdir()
        files = build(objects)
        Ledger.of(order.owner, order.destination, files).save(draft)
        with suppress(FileExistsError):
            draft.rename(self.state.dicom / identifier)
        self.state.clear_attempts(identifier)

    def superseded(self, identifier: str, order: DicomOrder) -> Superseded | None:
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

    def _sleep(self, workflow: str, seconds: float) -> None:
        """Wait; the end of the service ends the wait, and so does a cancellation of the workflow."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._closing.wait(min(left, 1.0))
            self._reject_ended(workflow)

    def _reject_ended(self, workflow: str) -> None:
        if self._closing.is_set():
            raise ExecutorStopped  # the next process goes on with the job
        reject_cancelled(workflow)


def _failed(identifier: str, error: CalibrantError) -> Outcome:
    log.info("dicom job ended", job=identifier, state="failed", problem=error.code)
    return {"failure": {"code": error.code, "detail": error.detail}}
