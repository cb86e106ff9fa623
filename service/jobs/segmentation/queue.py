"""The durable job: a scan and a model in, one published result out, through crashes of any process.

DBOS owns queue, state and recovery. The workflow is one step, which may run any number of times: it begins by looking
for a published result, and publishing is one rename.
"""

import datetime as dt
import hashlib
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog
from dbos import (
    DBOS,
    DBOSConfig,
    DBOSContextSetAuth,
    DBOSPortableJSONSerializer,
    Queue,
    SetEnqueueOptions,
    SetWorkflowID,
    WorkflowStatus,
)

from service.bundle.registry import Registry
from service.errors import (
    CalibrantError,
    IdempotencyKeyReused,
    InferenceCrashed,
    InferenceDeadline,
    InvalidRequest,
    JobCancelled,
    JobFinished,
    JobNotFound,
    StorageFull,
)
from service.executors.embedded import EmbeddedExecutor
from service.jobs.database import JobDatabase
from service.jobs.segmentation.ends import Ends
from service.jobs.segmentation.status import PRIORITIES, Live, Place, WorkflowInput, describe_job
from service.observability.metrics import Metrics
from service.result.files import RESULT, SUMMARY
from service.schemas import FINISHED, CaseResult, Job, Priority, Stage, State, Summary
from service.storage.local import StateDirectory

log = structlog.get_logger(__name__)

QUEUE: Final = "segmentations"
WORKFLOW: Final = "segment"
"""DBOS's name of the workflow; there are others beside it."""

AHEAD_S: Final = 0.2
"""Seconds before a case ends at which the next one leaves the queue: else its look there comes between any two cases."""

POLL_S: Final = 0.05
"""Seconds between two looks at the queue."""

LOOK_S: Final = 1.0
"""Seconds between two looks at a job that somebody waits for: it may end without a word, when DBOS gives it up."""

RECORDING_S: Final = 0.005
"""Seconds between two looks at a job that has ended and is not yet recorded as finished."""

MAX_ATTEMPTS: Final = 3
"""Times a case may kill or hang the inference process before its job fails."""

MAX_RECOVERIES: Final = 100
"""Times the whole service may die during one job before the job is given up."""

DRAIN_S: Final = 10
"""Seconds that a job has to finish when the service is asked to end."""

# Raised when a change makes jobs of the earlier version unreadable; otherwise jobs outlive an upgrade.
_VERSION = "2"

_STATUSES: Final[dict[State, list[str]]] = {
    "queued": ["ENQUEUED", "DELAYED", "PENDING"],
    "running": ["PENDING"],
    "succeeded": ["SUCCESS"],
    "failed": ["SUCCESS", "ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"],
    "cancelled": ["CANCELLED"],
}
"""DBOS's words for ours; a job that failed is a workflow that succeeded in saying so, a pending one may wait for its turn."""

_Outcome = dict[str, Any]


@dataclass(slots=True)
class SegmentationJobs:
    """Submits, runs, describes, cancels and erases jobs; one per process, because DBOS is."""

    state: StateDirectory
    registry: Registry
    executor: EmbeddedExecutor
    metrics: Metrics
    database: JobDatabase
    _live: dict[str, Live] = field(default_factory=dict)
    _cancelled: set[str] = field(default_factory=set)
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _computing: threading.Lock = field(default_factory=threading.Lock)
    _ended: deque[str] = field(default_factory=lambda: deque(maxlen=100))
    _ends: Ends = field(default_factory=Ends)
    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=20))
    _taken: int = 1
    _queue: Queue = field(init=False)
    _segment: Callable[[str, str, str, list[str]], _Outcome] = field(init=False)

    def launch(self, register: Callable[[], None] = lambda: None) -> None:
        """Open the job database and go on with the jobs that a crash interrupted.

        Args:
            register: tells DBOS of further workflows, before it goes on with those that a crash interrupted.

        Raises:
            SettingsError: another service uses the database.
        """
        self.database.hold()
        config: DBOSConfig = {
            "name": "calibrant",
            "system_database_url": self.database.address,
            "executor_id": "local",
            "application_version": _VERSION,
            "console_log_level": "CRITICAL",
            "serializer": DBOSPortableJSONSerializer(),
        }
        DBOS(config=config)

        @DBOS.step(name="run_case")
        def run_case(identifier: str, owner: str, scan: str, model: str, outputs: list[str]) -> _Outcome:
            return self._run_once(identifier, WorkflowInput(owner, scan, model, tuple(outputs)))  # type: ignore[arg-type]  # JSON keeps no Literal

        @DBOS.workflow(name=WORKFLOW, max_recovery_attempts=MAX_RECOVERIES)
        def segment(owner: str, scan: str, model: str, outputs: list[str]) -> _Outcome:
            return run_case(str(DBOS.workflow_id), owner, scan, model, outputs)

        self._segment = segment
        register()
        DBOS.launch()
        self._sweep()
        self._queue = DBOS.register_queue(
            QUEUE, worker_concurrency=1, polling_interval_sec=POLL_S, on_conflict="always_update"
        )

    def _sweep(self) -> None:
        """Erase results that no job leads to: it was erased while its computation ended."""
        known = {status.workflow_id for status in DBOS.list_workflows(load_input=False, load_output=False)}
        for folder in list(self.state.results.iterdir()):
            if folder.name not in known:
                self.state.forget_job(folder.name)

    def close(self) -> None:
        """Take no more jobs and give the one that runs a moment; if it needs longer, the next launch takes it up again."""
        DBOS.destroy(destroy_registry=True, workflow_completion_timeout_sec=DRAIN_S)
        self.executor.stop()
        self.database.release()

    @property
    def ready(self) -> bool:
        """Whether the inference process lives and the database answers."""
        return self.executor.ready and self.database.reachable

    def submit(self, order: WorkflowInput, *, priority: Priority = "normal", idempotency_key: str | None = None) -> Job:
        """Return the job for a scan that lies in the state directory; it survives any crash from here on.

        Args:
            order: what is asked for.
            priority: over the jobs that wait.
            idempotency_key: the same key with the same order returns the same job.

        Raises:
            IdempotencyKeyReused: the key belongs to another order.
            ScanNotFound: the scan was erased meanwhile, with another job.
        """
        identifier = identifier_of(order.owner, idempotency_key)
        with (
            self._turn,
            SetWorkflowID(identifier),
            DBOSContextSetAuth(order.owner, None),
            SetEnqueueOptions(priority=PRIORITIES[priority]),
        ):
            self.state.find_scan(order.owner, order.scan)
            DBOS.enqueue_workflow(QUEUE, self._segment, *order.arguments)
        status = DBOS.get_workflow_status(identifier)
        if status is None or WorkflowInput.of(status) != order:
            msg = "The Idempotency-Key was used before for another scan, model or outputs. Send a new key for a new request."
            raise IdempotencyKeyReused(msg)
        return self._describe(status)

    def find(self, owner: str, identifier: str) -> Job:
        """Return a job.

        Raises:
            JobNotFound: the owner has none of this id.
        """
        return self._describe(self._status(owner, identifier))

    def page(self, owner: str, state: State | None, before: tuple[int, str] | None, limit: int) -> list[Job]:
        """Return an owner's jobs, the newest first.

        Args:
            owner: whose.
            state: only those in this state.
            before: only those older than this one, (milliseconds of its creation, its id).
            limit: at most so many.
        """
        found: list[Job] = []
        for status in self._newest_first(owner, state, before, limit + 1):
            job = self._describe(status)
            if state in (None, job.state):
                found.append(job)
            if len(found) == limit:
                break
        return found

    def _newest_first(
        self, owner: str, state: State | None, before: tuple[int, str] | None, batch: int
    ) -> Iterator[WorkflowStatus]:
        """Yield an owner's workflows. DBOS leaves open how those of one time are ordered: here by id, too."""
        while True:
            found = DBOS.list_workflows(
                name=WORKFLOW,
                user=owner,
                status=_STATUSES[state] if state else None,
                # Up to and including that millisecond; DBOS cuts off what is less.
                end_time=dt.datetime.fromtimestamp((before[0] + 0.5) / 1000, dt.UTC).isoformat() if before else None,
                sort_desc=True,
                limit=batch,
            )
            last_batch = len(found) < batch
            found.sort(key=_age, reverse=True)
            # More of the oldest time may follow.
            sure = [each for each in found if last_batch or each.created_at != found[-1].created_at]
            following = [each for each in sure if before is None or _age(each) < before]
            yield from following
            if last_batch:
                return
            if following:
                before = _age(following[-1])
            else:
                batch *= 2

    def wait(self, owner: str, identifier: str, seconds: float) -> Job:
        """Return the job once it has finished, or as it stands after so many seconds."""
        deadline = time.monotonic() + seconds
        while True:
            seen = self._ends.count
            job, left = self.find(owner, identifier), deadline - time.monotonic()
            if job.state in FINISHED or left <= 0:
                return job
            if identifier in self._ended:
                time.sleep(RECORDING_S)
            else:
                self._ends.wait(seen, min(left, LOOK_S))

    def cancel(self, owner: str, identifier: str) -> Job:
        """Stop a job, also inside its computation, and return it.

        Raises:
            JobNotFound: the owner has none of this id.
            JobFinished: it has finished; a job that was cancelled before is returned as it is.
        """
        self._status(owner, identifier)
        self._stop(identifier)
        job = self.find(owner, identifier)
        if job.state != "cancelled":
            msg = f"The job has {job.state}: it cannot be cancelled any more. DELETE erases it."
            raise JobFinished(msg)
        with self._turn:
            if identifier not in self._live:  # it may have published and not yet said so
                self.state.forget_job(identifier)
        return job

    def erase(self, owner: str, identifier: str) -> None:
        """Stop the job if it has not finished, and erase it, its result, and its scan if no other job needs it.

        Raises:
            JobNotFound: the owner has none of this id.
        """
        order = WorkflowInput.of(self._status(owner, identifier))
        self._stop(identifier)
        with self._turn:
            DBOS.delete_workflow(identifier)
            self.state.forget_job(identifier)
            if not self.uses(owner, order.scan):
                self.state.forget_scan(owner, order.scan)

    def erase_scan(self, owner: str, scan: str) -> None:
        """Erase a scan that no job was made from.

        Raises:
            ScanNotFound: the owner has none of this id.
            InvalidRequest: there is such a job.
        """
        with self._turn:
            self.state.find_scan(owner, scan)
            if self.uses(owner, scan):
                msg = "A segmentation of this scan exists. Delete that; it takes the scan along."
                raise InvalidRequest(msg)
            self.state.forget_scan(owner, scan)

    def erase_finished(self, before: dt.datetime) -> int:
        """Erase every owner's jobs that finished before a time, and return how many those were."""
        statuses = [name for state in FINISHED for name in _STATUSES[state]]
        old = DBOS.list_workflows(
            name=WORKFLOW, status=statuses, completed_before=before.isoformat(), load_output=False
        )
        for status in old:
            with suppress(JobNotFound):  # its owner was faster
                self.erase(WorkflowInput.of(status).owner, status.workflow_id)
        return len(old)

    def count(self) -> dict[State, int]:
        """Return how many jobs wait and how many run."""
        active = DBOS.list_workflows(name=WORKFLOW, status=_STATUSES["queued"], load_input=False, load_output=False)
        running = sum(self._runs(status) for status in active)
        return {"queued": len(active) - running, "running": running}

    def uses(self, owner: str, scan: str) -> bool:
        """Return whether any job of an owner was made from a scan."""
        jobs = DBOS.list_workflows(name=WORKFLOW, user=owner, load_output=False)
        return any(WorkflowInput.of(status).scan == scan for status in jobs)

    def _stop(self, identifier: str) -> None:
        # One statement of the database decides between a job that ends now and this: exactly one of them stands.
        DBOS.cancel_workflow(identifier)
        with self._turn:
            if identifier in self._live:
                self._cancelled.add(identifier)
        self._ends.tell()

    def _status(self, owner: str, identifier: str) -> WorkflowStatus:
        status = DBOS.get_workflow_status(identifier)
        # Another owner's job is answered as one that does not exist.
        if status is None or status.name != WORKFLOW or WorkflowInput.of(status).owner != owner:
            msg = "No segmentation has this id. It may have been deleted."
            raise JobNotFound(msg)
        return status

    def _describe(self, status: WorkflowStatus) -> Job:
        identifier = status.workflow_id
        live = self._live.get(identifier, Live(waiting=not self._runs(status)))
        return describe_job(status, live, self._place(status), self.state.result(identifier))

    def _place(self, status: WorkflowStatus) -> Place:
        mean = sum(self._seconds) / len(self._seconds) if self._seconds else None
        if self._runs(status):
            return Place(None, mean)
        if status.status not in ("ENQUEUED", "PENDING"):
            return Place()
        waiting = DBOS.list_workflows(
            queue_name=QUEUE, status=["ENQUEUED", "PENDING"], load_input=False, load_output=False
        )
        # Stable: those of one priority stay in the order in which they came, in which DBOS takes them.
        waiting.sort(key=lambda other: (not self._runs(other), other.status != "PENDING", other.priority or 0))
        order = [other.workflow_id for other in waiting]
        ahead = order.index(status.workflow_id) if status.workflow_id in order else 0
        return Place(ahead, None if mean is None else (ahead + 1) * mean)

    def _runs(self, status: WorkflowStatus) -> bool:
        """Return whether a job is being computed, or has been and is not yet recorded as finished."""
        if status.status != "PENDING":
            return False
        live = self._live.get(status.workflow_id)
        return status.workflow_id in self._ended if live is None else not live.waiting

    def _run_once(self, identifier: str, order: WorkflowInput) -> _Outcome:
        """Publish the result, or return the failure; safe to repeat after a crash at any point."""
        live = self._live[identifier] = Live(waiting=True)
        failure = None
        try:
            reject_cancelled(identifier)
            if self.state.result(identifier) is None:
                self._attempt(identifier, order, live)
            else:
                live.waiting, live.attempt = False, 0  # the life that published it was counted
        except CalibrantError as error:
            failure = {"code": error.code, "detail": error.detail}
        except OSError as error:
            detail = f"The state directory could not be written ({error.strerror})."
            failure = {"code": StorageFull.code, "detail": detail}
        finally:
            self.state.clear_attempts(identifier)
            with self._turn:
                if identifier in self._cancelled:
                    self.state.forget_job(identifier)
                self._ended.append(identifier)
                self._live.pop(identifier, None)
                self._cancelled.discard(identifier)
            self._ends.tell()
        self._take_from_queue(1)
        self._tell(identifier, order, failure)
        return {"attempts": live.attempt, "failure": failure}

    def _take_from_queue(self, jobs: int) -> None:
        """Let so many jobs be out of the queue: with two, one waits until the case that is computed has ended."""
        if self._taken != jobs:
            self._taken = jobs
            with suppress(Exception):  # it would only save time
                self._queue.set_worker_concurrency(jobs)

    def _attempt(self, identifier: str, order: WorkflowInput, live: Live) -> None:
        bundle = self.registry.find(order.model)
        scan = self.state.scan(order.owner, order.scan)

        def report(stage: Stage, progress: float) -> None:
            live.stage, live.progress = stage, progress
            taken = time.monotonic() - started
            if stage == "infer" and progress and taken * (1 / progress - 1) < AHEAD_S < taken:
                self._take_from_queue(2)

        def cancelled() -> bool:
            return identifier in self._cancelled

        for live.attempt in range(1, MAX_ATTEMPTS + 1):
            folder = self.state.begin_attempt(identifier)
            try:
                with self._computing:
                    live.waiting = False
                    if cancelled():
                        msg = "The job was cancelled before it began."
                        raise JobCancelled(msg)
                    started = time.monotonic()
                    self.executor.run(scan, bundle, folder, report, cancelled, order.outputs)
            except (InferenceCrashed, InferenceDeadline):
                if live.attempt == MAX_ATTEMPTS:
                    raise
            else:
                with self._turn:
                    if cancelled():
                        msg = "The job was cancelled when it was done."
                        raise JobCancelled(msg)
                    self.state.publish(identifier, folder)
                self._seconds.append(time.monotonic() - started)
                return

    def _tell(self, identifier: str, order: WorkflowInput, failure: dict[str, str] | None) -> None:
        """Count and log how a job ended."""
        model = order.model.partition("@")[0]
        folder = self.state.result(identifier)
        if failure is None and folder is not None:
            seconds = CaseResult.model_validate_json((folder / RESULT).read_bytes()).seconds
            summary = _summary(folder)
            confidence = summary.foreground_confidence if summary else None
            withdrawn = summary is not None and summary.statement.status == "withdrawn"
            self.metrics.case_succeeded(model, seconds, confidence, withdrawn=withdrawn)
            log.info("job succeeded", job=identifier, model=model, seconds=seconds)
        elif failure is not None:
            state = "cancelled" if failure["code"] == JobCancelled.code else "failed"
            self.metrics.case_ended(model, state)
            log.info("job ended", job=identifier, model=model, state=state, problem=failure["code"])


def _summary(folder: Path) -> Summary | None:
    """Return the summary of a result; None if it was not asked for."""
    path = folder / SUMMARY
    return Summary.model_validate_json(path.read_bytes()) if path.is_file() else None


def identifier_of(owner: str, idempotency_key: str | None) -> str:
    """Return the id of a job: always the same for a key of an owner, a new one without a key."""
    if idempotency_key is None:
        # Later ones are greater: DBOS's times are whole seconds with SQLite on Python 3.11.
        return f"{time.time_ns() // 1000:014x}{secrets.token_hex(9)}"
    return hashlib.sha256(f"{owner}\0{idempotency_key}".encode()).hexdigest()[:32]


def _age(status: WorkflowStatus) -> tuple[int, str]:
    return status.created_at or 0, status.workflow_id


def reject_cancelled(identifier: str) -> None:
    """Raise JobCancelled if a job was cancelled or erased."""
    # A job that was cancelled or erased between the queue and `_live` could not be told.
    status = DBOS.get_workflow_status(identifier)
    if status is None or status.status == "CANCELLED":
        msg = "The job was cancelled before it began."
        raise JobCancelled(msg)
