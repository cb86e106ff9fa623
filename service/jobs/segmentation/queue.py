"""The durable job: a scan and a model in, one published result out, through crashes of any process.

DBOS owns queue, state and recovery. The workflow is one step, which may run any number of times: it begins by looking
for a published result, and publishing is one rename.
"""

import concurrent.futures
import datetime as dt
import hashlib
import secrets
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from anyio import to_thread
from dbos import (
    DBOS,
    DBOSConfig,
    DBOSContextSetAuth,
    DBOSPortableJSONSerializer,
    Queue,
    SetEnqueueOptions,
    SetWorkflowID,
    WorkflowStatus,
    error,
)
from sqlalchemy.exc import SQLAlchemyError

from service.bundle.registry import Registry
from service.errors import CalibrantError, IdempotencyKeyReused, InvalidRequest, JobFinished, JobNotFound
from service.executors.pool import ExecutorPool
from service.jobs.database import JobDatabase, SqliteDatabase
from service.jobs.guard import Guard
from service.jobs.segmentation.bounds import Bounds
from service.jobs.segmentation.ends import Ends
from service.jobs.segmentation.line import Line
from service.jobs.segmentation.records import QUEUE, STATUSES, WORKFLOW, newest_first
from service.jobs.segmentation.status import PRIORITIES, Live, Place, WorkflowInput, describe_job
from service.jobs.segmentation.watch import RECORDING_S, Watch
from service.jobs.segmentation.worker import Outcome, Worker
from service.jobs.table import STARTED, WAITING, Cursor, JobTable
from service.observability.metrics import Metrics
from service.schemas import FINISHED, Job, Priority, State
from service.storage.local import StateDirectory
from service.storage.room import Room

POLL_S: Final = 0.05
"""Seconds between two looks at the queue."""

LOOK_S: Final = 1.0
"""Most seconds between two looks at a job that somebody waits for: no end is announced when DBOS gives up a job."""

MAX_RECOVERIES: Final = 100
"""Times the whole service may die during one job before the job is given up."""

MOST_REMEMBERED: Final = 20_000
"""Records of unfinished jobs that are kept in memory, a few kilobytes each."""

DRAIN_S: Final = 10
"""Seconds that a running job has to finish when the service is asked to end."""

# To be raised when a change makes jobs of the earlier version unreadable; otherwise jobs survive an upgrade.
_VERSION = "2"


@dataclass(slots=True)
class SegmentationJobs:
    """Submits, describes, cancels and erases jobs; one per process, because DBOS is."""

    state: StateDirectory
    registry: Registry
    executor: ExecutorPool
    metrics: Metrics
    database: JobDatabase
    bounds: Bounds = field(default_factory=lambda: Bounds(20_000, 50_000))
    worker: Worker = field(init=False)
    watch: Watch = field(init=False)
    guard: Guard = field(init=False)
    line: Line = field(init=False)
    table: JobTable = field(init=False)
    on_expiry: Callable[[str, str], None] = field(default=lambda _owner, _job: None, init=False)
    """Told owner and id of each job that the retention policy has erased."""
    _known: dict[str, WorkflowStatus] = field(default_factory=dict, init=False)
    """Records of jobs in the line that somebody has asked for."""
    _queue: Queue | None = field(default=None, init=False)
    _segment: Callable[..., Outcome] = field(init=False)

    def __post_init__(self) -> None:
        self.guard = Guard(Room(self.state), self.database)
        if isinstance(self.database, SqliteDatabase):
            self.database.await_repair, self.database.note = self.guard.await_repair, self.guard.note
        self.table = JobTable(self.database)
        self.line = Line(self.table, QUEUE, sorted(PRIORITIES.values()))
        self.worker = Worker(
            self.state,
            self.registry,
            self.executor,
            self.metrics,
            self._set_concurrency,
            self.line.leave,
            self.guard,
            self.bounds.leave,
        )
        self.watch = Watch(self.look_at, self.worker.ends, self.worker.ended)

    @property
    def ends(self) -> Ends:
        """Announces the ends of jobs; whatever else should interrupt a wait may tell it, too."""
        return self.worker.ends

    def launch(self, register: Callable[[], None] = lambda: None) -> None:
        """Open the job database and go on with the jobs that a crash interrupted.

        Args:
            register: registers further workflows with DBOS, before it goes on with interrupted ones.

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
        if isinstance(self.database, SqliteDatabase):
            config["system_database_engine"] = self.database.engine
        DBOS(config=config)

        @DBOS.step(name="run_case")
        def run_case(identifier: str, *arguments: Any) -> Outcome:  # noqa: ANN401 - those of a `WorkflowInput`
            return self.worker.run(identifier, WorkflowInput.of_arguments(*arguments))

        @DBOS.workflow(name=WORKFLOW, max_recovery_attempts=MAX_RECOVERIES)
        def segment(*arguments: Any) -> Outcome:  # noqa: ANN401 - as above
            return run_case(str(DBOS.workflow_id), *arguments)

        self._segment = segment
        register()
        self.guard.start()
        DBOS.launch()
        self.table.prepare()
        unfinished = DBOS.list_workflows(name=WORKFLOW, status=STATUSES["queued"], load_output=False)
        with self.worker.turn:
            self.bounds.begin_with({status.workflow_id: WorkflowInput.of(status).owner for status in unfinished})
            for identifier in self.worker.ended:  # meanwhile
                self.bounds.leave(identifier)
        self._sweep()
        self._queue = DBOS.register_queue(
            QUEUE, worker_concurrency=self.worker.places, polling_interval_sec=POLL_S, on_conflict="always_update"
        )

    def _sweep(self) -> None:
        """Erase results without a job: the job was erased while its computation ended."""
        results = [folder.name for folder in self.state.results.iterdir()]
        for identifier in self.table.missing(results, [WORKFLOW]):
            self.state.forget_job(identifier)

    def close(self) -> None:
        """Take no more jobs and give the running one a moment; if it needs longer, the next launch computes it again."""
        self.guard.stop()  # who waits for the storage waits for the next start
        DBOS.destroy(destroy_registry=True, workflow_completion_timeout_sec=DRAIN_S)
        self.executor.stop()
        self.database.release()

    @property
    def why_not(self) -> str:
        """Why no job could be accepted, computed and published now; empty if one could."""
        if self.executor.ready:
            return self.guard.trouble.detail if self.guard.trouble else ""
        return self.executor.why_not or "The inference process is still starting."

    def submit(self, order: WorkflowInput, *, priority: Priority = "normal", idempotency_key: str | None = None) -> Job:
        """Return the job for a stored scan; from here on it survives any crash.

        Args:
            order: scan, model and outputs.
            priority: over waiting jobs.
            idempotency_key: the same key with the same order returns the same job.

        Raises:
            IdempotencyKeyReused: the key belongs to another order.
            ScanNotFound: the scan was erased meanwhile, with another job.
            CalibrantError: disk or database cannot be used at the moment.
            TooManyJobs, ServiceBusy: there is no room for another job.
        """
        self.guard.reject()
        identifier = identifier_of(order.owner, idempotency_key)
        with self.worker.turn:
            self._reject_full(order.owner, identifier, idempotency_key)
            self.state.find_scan(order.owner, order.scan)
            is_new = idempotency_key is None or DBOS.get_workflow_status(identifier) is None
            self._enqueue(order, identifier, priority)
            if is_new:
                self.bounds.join(identifier, order.owner)
        status = DBOS.get_workflow_status(identifier)
        if status is None or WorkflowInput.of(status) != order:
            msg = "The Idempotency-Key was used before for another scan, model or outputs, or with another `accept`. Send a new key for a new request."
            raise IdempotencyKeyReused(msg)
        return self._describe(status)

    def reject_full(self, owner: str, idempotency_key: str | None = None) -> None:
        """Refuse a job before its scan is received, if there is no room for it; one that exists already needs none.

        Raises:
            TooManyJobs, ServiceBusy: as `submit`.
        """
        with self.worker.turn:
            self._reject_full(owner, identifier_of(owner, idempotency_key), idempotency_key)

    def count_in(self, identifier: str, owner: str) -> None:
        """Count a job of another kind among the owner's unfinished ones."""
        with self.worker.turn:
            self.bounds.join(identifier, owner)

    def count_out(self, identifier: str) -> None:
        """Count it no longer."""
        with self.worker.turn:
            self.bounds.leave(identifier)

    def _reject_full(self, owner: str, identifier: str, idempotency_key: str | None) -> None:
        try:
            self.bounds.reject_full(owner, self._seconds_between_ends)
        except CalibrantError:
            if idempotency_key is None or DBOS.get_workflow_status(identifier) is None:
                raise

    def _seconds_between_ends(self) -> float | None:
        seconds = self.worker.seconds
        return sum(seconds) / len(seconds) / max(self.executor.working, 1) if seconds else None

    def enqueue_child(self, order: WorkflowInput, idempotency_key: str) -> None:
        """Enqueue a job from within a workflow, which DBOS records as its parent; repeating that is harmless.

        The parent counts among the unfinished jobs, so this one does not.
        """
        with self.worker.turn:
            self._enqueue(order, identifier_of(order.owner, idempotency_key), "normal")

    def _enqueue(self, order: WorkflowInput, identifier: str, priority: Priority) -> None:
        with (
            SetWorkflowID(identifier),
            DBOSContextSetAuth(order.owner, None),
            SetEnqueueOptions(priority=PRIORITIES[priority]),
        ):
            DBOS.enqueue_workflow(QUEUE, self._segment, *order.arguments)
        self.line.join(identifier, PRIORITIES[priority])

    def find(self, owner: str, identifier: str) -> Job:
        """Return a job.

        Raises:
            JobNotFound: the owner has no job with this id.
        """
        return self._describe(self._status(owner, identifier))

    def page(self, owner: str, state: State | None, before: Cursor | None, limit: int) -> list[Job]:
        """Return an owner's jobs, the newest first.

        Args:
            owner: whose.
            state: only those in this state.
            before: only those older than this one.
            limit: at most this many.
        """
        jobs: list[Job] = []
        for status in newest_first(self.table, owner, state, before, limit + 1):
            job = self._describe(status)
            if state in (None, job.state):
                jobs.append(job)
            if len(jobs) == limit:
                break
        return jobs

    def wait(self, owner: str, identifier: str, seconds: float, check: Callable[[], None] = lambda: None) -> Job:
        """Return the job once it has finished, or as it stands after this many seconds.

        Args:
            owner: whose job it is.
            identifier: of the job.
            seconds: to wait at most.
            check: called before each look at the job; it ends the wait by raising.
        """
        deadline = time.monotonic() + seconds
        job = None
        while True:
            check()
            ended, left = self.ends.next, deadline - time.monotonic()
            if job is None or left <= 0 or self._may_have_ended(identifier):
                job = self.find(owner, identifier)
                if job.state in FINISHED or left <= 0:
                    return job
            concurrent.futures.wait([ended], min(left, self._pause_s(identifier)))

    async def wait_async(self, owner: str, identifier: str, seconds: float) -> Job:
        """Return the same as `wait`, without holding a thread meanwhile."""
        return await self.watch.until_finished(await to_thread.run_sync(self.find, owner, identifier), seconds)

    def look_at(self, identifiers: Collection[str]) -> dict[str, Job]:
        """Return the jobs with these ids that exist, of any owner."""
        known = {identifier: self._remembered(identifier) for identifier in identifiers}
        unknown = [identifier for identifier, status in known.items() if status is None]
        for status in DBOS.list_workflows(workflow_ids=unknown, name=WORKFLOW) if unknown else []:
            known[status.workflow_id] = self._remember(status)
        return {identifier: self._describe(status) for identifier, status in known.items() if status is not None}

    def _may_have_ended(self, identifier: str) -> bool:
        """Return False for a job that is being computed: the end of another one is no reason to read the database."""
        return identifier not in self.worker.live or identifier in self.worker.cancelled

    def _pause_s(self, identifier: str) -> float:
        return RECORDING_S if identifier in self.worker.ended else LOOK_S

    def cancel(self, owner: str, identifier: str) -> Job:
        """Stop a job, even during its computation, and return it.

        Raises:
            JobNotFound: the owner has no job with this id.
            JobFinished: it has finished; a job that was cancelled before is returned as it is.
        """
        self._status(owner, identifier)
        self._stop(identifier)
        job = self.find(owner, identifier)
        if job.state != "cancelled":
            msg = f"The job has {job.state}: it cannot be cancelled any more. DELETE erases it."
            raise JobFinished(msg)
        with self.worker.turn:
            if identifier not in self.worker.live:  # its result may be published and not yet recorded
                self.state.forget_job(identifier)
        return job

    def erase(self, owner: str, identifier: str) -> None:
        """Stop the job if it has not finished, and erase it, its result, and its scan if no other job needs it.

        Raises:
            JobNotFound: the owner has no job with this id.
        """
        order = WorkflowInput.of(self._status(owner, identifier))
        self._stop(identifier)
        with self.worker.turn:
            # The record comes last: after a crash in between, the job can still be found and erased again.
            if not self.table.uses(WORKFLOW, owner, order.scan, besides=identifier):
                self.state.forget_scan(owner, order.scan)
            self.state.forget_job(identifier)
            DBOS.delete_workflow(identifier)
            self.line.leave(identifier)
        self._known.pop(identifier, None)
        self.database.forget()

    def erase_scan(self, owner: str, scan: str) -> None:
        """Erase a scan that no job was made from.

        Raises:
            ScanNotFound: the owner has no scan with this id.
            InvalidRequest: there is such a job.
        """
        with self.worker.turn:
            self.state.find_scan(owner, scan)
            if self.uses(owner, scan):
                msg = "A segmentation of this scan exists. Delete that; the scan is erased with it."
                raise InvalidRequest(msg)
            self.state.forget_scan(owner, scan)

    def erase_finished(self, before: dt.datetime) -> int:
        """Erase the jobs of every owner that finished before a time, and return their number."""
        statuses = [name for state in FINISHED for name in STATUSES[state]]
        old = DBOS.list_workflows(
            name=WORKFLOW, status=statuses, completed_before=before.isoformat(), load_output=False
        )
        for status in old:
            with suppress(JobNotFound):  # its owner was faster
                owner = WorkflowInput.of(status).owner
                self.erase(owner, status.workflow_id)
                self.on_expiry(owner, status.workflow_id)
        return len(old)

    def count(self) -> dict[State, int]:
        """Return how many jobs wait and how many run."""
        reading = self.line.reading
        running = sum(self._computes(identifier) for identifier in reading.started)
        return {"queued": len(reading) - running, "running": running}

    def uses(self, owner: str, scan: str) -> bool:
        """Return whether any job of an owner was made from a scan."""
        return self.table.uses(WORKFLOW, owner, scan)

    def _stop(self, identifier: str) -> None:
        self.guard.room.give_up_reserve()
        # One database statement decides whether the job ends or is cancelled: exactly one of the two happens.
        DBOS.cancel_workflow(identifier)
        self.line.leave(identifier)
        self.worker.stop(identifier)
        with self.worker.turn:
            if identifier not in self.worker.live:
                self.bounds.leave(identifier)

    def _status(self, owner: str, identifier: str) -> WorkflowStatus:
        status = self._remembered(identifier)
        if status is None:
            status = DBOS.get_workflow_status(identifier)
            if status is not None:
                self._remember(status)
        # Another owner's job gets the same answer as one that does not exist.
        if status is None or status.name != WORKFLOW or WorkflowInput.of(status).owner != owner:
            msg = "No segmentation has this id. It may have been deleted."
            raise JobNotFound(msg)
        return status

    def _remembered(self, identifier: str) -> WorkflowStatus | None:
        """Return the record of a job that has not changed since it was read."""
        status = self._known.get(identifier)
        if status is None or status.status != self.line.status_of(identifier) or identifier in self.worker.ended:
            return None
        return status

    def _remember(self, status: WorkflowStatus) -> WorkflowStatus:
        if self.line.status_of(status.workflow_id) == status.status:
            if len(self._known) >= MOST_REMEMBERED:
                self._known = {one: known for one, known in self._known.items() if self.line.status_of(one)}
            if len(self._known) < MOST_REMEMBERED:
                self._known[status.workflow_id] = status
        return status

    def _describe(self, status: WorkflowStatus) -> Job:
        identifier = status.workflow_id
        live = self.worker.live.get(identifier, Live(waiting=not self._runs(status)))
        result = self.state.result(identifier) if status.status == "SUCCESS" else None
        return describe_job(status, live, self._place(status), result)

    def _place(self, status: WorkflowStatus) -> Place:
        seconds = self.worker.seconds
        mean_s = sum(seconds) / len(seconds) if seconds else None
        if self._runs(status):
            return Place(None, mean_s)
        if status.status not in (WAITING, STARTED):
            return Place()
        ahead = self.line.ahead_of(status.workflow_id, status.priority or 0, self._computes)
        rounds = ahead // max(self.executor.working, 1) + 1
        return Place(ahead, None if mean_s is None else rounds * mean_s)

    def _runs(self, status: WorkflowStatus) -> bool:
        """Return whether a job is being computed, or has been and is not yet recorded as finished."""
        return status.status == STARTED and self._computes(status.workflow_id)

    def _computes(self, identifier: str) -> bool:
        """Return the same of a job that has left the queue."""
        live = self.worker.live.get(identifier)
        return identifier in self.worker.ended if live is None else not live.waiting

    def _set_concurrency(self, jobs: int) -> None:
        if self._queue is not None:  # a job of an earlier process may run before the launch has ended
            with suppress(error.DBOSException, SQLAlchemyError):  # it only saves time
                self._queue.set_worker_concurrency(jobs)


def identifier_of(owner: str, idempotency_key: str | None) -> str:
    """Return the id of a job: always the same for a key of an owner, a new one without a key."""
    if idempotency_key is None:
        # Later ids are greater: DBOS's times are whole seconds with SQLite on Python 3.11.
        return f"{time.time_ns() // 1000:014x}{secrets.token_hex(9)}"
    return hashlib.sha256(f"{owner}\0{idempotency_key}".encode()).hexdigest()[:32]
