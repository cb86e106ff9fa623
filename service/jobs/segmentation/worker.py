"""Computes the jobs that have left the queue, one on each device at a time, and publishes their results."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog

from service.bundle.description import BundleDescription
from service.bundle.registry import Registry
from service.errors import (
    CalibrantError,
    DeviceUnavailable,
    InferenceCrashed,
    InferenceDeadline,
    JobCancelled,
    StorageFull,
)
from service.executors.embedded import ExecutorStopped
from service.executors.pool import MAX_ATTEMPTS, ExecutorPool
from service.jobs.guard import Guard
from service.jobs.segmentation.ends import Ends
from service.jobs.segmentation.records import reject_cancelled
from service.jobs.segmentation.status import Live, WorkflowInput
from service.observability.metrics import Metrics
from service.result.files import RESULT, SUMMARY
from service.schemas import CaseResult, Report, Stage, Summary
from service.storage.faults import STORAGE_ERRORS, told
from service.storage.local import StateDirectory

log = structlog.get_logger(__name__)

AHEAD_S: Final = 0.2
"""Estimated seconds before the end of a case at which the next one leaves the queue.

Otherwise a poll interval of the queue separates consecutive cases.
"""

BACK_OFF_S: Final = (2.0, 10.0)
"""Seconds between the first crash of a case and its second attempt, and between the second crash and the third attempt."""

PAUSE_S: Final = 1.0
"""Seconds that a job waits after the storage has been repaired; each time twice as long, up to `LONGEST_PAUSE_S`."""

LONGEST_PAUSE_S: Final = 60.0

Outcome = dict[str, Any]
"""Output of the workflow: ``{"attempts": n, "failure": None or {"code": ..., "detail": ...}}``."""


@dataclass(slots=True)
class Worker:
    """Runs cases and knows what the unfinished jobs of this process are doing.

    Args:
        state: where scans and results lie.
        registry: of the bundles.
        executor: computes the cases.
        metrics: counts how the jobs end.
        take: sets how many jobs may be out of the queue. One that is out without a device waits for one.
        note: told the id of a job that has left the queue or ended.
        guard: a job that finds no room waits there.
        leave: called with the id of each job that has ended, with `turn` held.
    """

    state: StateDirectory
    registry: Registry
    executor: ExecutorPool
    metrics: Metrics
    take: Callable[[int], None]
    note: Callable[[str], None]
    guard: Guard
    leave: Callable[[str], None] = lambda _: None
    live: dict[str, Live] = field(default_factory=dict)
    """Jobs that have left the queue and have not ended, by id."""
    cancelled: set[str] = field(default_factory=set)
    """Those of them that were cancelled."""
    turn: threading.Lock = field(default_factory=threading.Lock)
    """Held while results are published or erased."""
    ended: deque[str] = field(default_factory=lambda: deque(maxlen=100))
    """Jobs that ended last; DBOS may not have recorded that yet."""
    ends: Ends = field(default_factory=Ends)
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=20))
    """Durations of the cases that succeeded last."""
    _ahead: bool = False
    """Whether, with one device, the next job may leave the queue before the running case has ended."""

    @property
    def places(self) -> int:
        """Number of jobs that may be out of the queue at any time.

        With several devices one job more than devices is: cases end so often that one should always be at hand, and so
        soon that no urgent job waits long behind it. With one device the next job comes only when a case is about to end.
        """
        size = self.executor.size
        return size if size == 1 else size + 1

    def run(self, identifier: str, order: WorkflowInput) -> Outcome:
        """Publish the result, or return the failure; safe to repeat after a crash at any point."""
        live = self.live[identifier] = Live(waiting=True)
        self.note(identifier)
        failure = None
        try:
            # A cancellation that came before the job was in `live` is only known to the database.
            reject_cancelled(identifier)
            if self.state.result(identifier) is None:
                self._compute(identifier, order, live)
            else:
                live.waiting, live.attempt = False, 0  # counted by the process that published it
        except CalibrantError as error:
            failure = {"code": error.code, "detail": error.detail}
        finally:
            self.state.clear_attempts(identifier)
            with self.turn:
                if identifier in self.cancelled:
                    self.state.forget_job(identifier)
                self.ended.append(identifier)
                self.live.pop(identifier, None)
                self.cancelled.discard(identifier)
                self.leave(identifier)
            self.note(identifier)
            self.ends.tell()
        self._take_ahead(ahead=False)
        self._log(identifier, order, failure)
        return {"attempts": live.attempt, "failure": failure}

    def stop(self, identifier: str) -> None:
        """End the computation of a job that was cancelled, if it runs, and wake whoever waits for the job."""
        with self.turn:
            if identifier in self.live:
                self.cancelled.add(identifier)
        self.ends.tell()

    def _compute(self, identifier: str, order: WorkflowInput, live: Live) -> None:
        """Compute the case until a result is published."""
        bundle = self.registry.find(order.model)
        faults = 0

        def report(stage: Stage, progress: float) -> None:
            live.stage, live.progress = stage, progress
            taken = time.monotonic() - live.started
            if stage == "infer" and progress and taken * (1 / progress - 1) < AHEAD_S < taken:
                self._take_ahead(ahead=True)

        while True:
            self.state.find_scan(order.owner, order.scan)
            if self.state.result(identifier) is not None:  # it was published, and only the proof of that failed
                return
            try:
                with told():
                    self._attempt(identifier, order, bundle, report, live)
            except (DeviceUnavailable, InferenceCrashed, InferenceDeadline) as error:
                self._prepare_another_attempt(identifier, live, error)
            except STORAGE_ERRORS as error:
                faults += 1
                self._await_storage(identifier, live, error, faults)
            else:
                self.seconds.append(time.monotonic() - live.started)
                return

    def _attempt(
        self, identifier: str, order: WorkflowInput, bundle: BundleDescription, report: Report, live: Live
    ) -> None:
        """Compute the case once and publish its result."""
        folder = self.state.begin_attempt(identifier)
        with self.executor.lend(lambda: self._reject_cancelled(identifier, "before it began")) as device:
            live.waiting = False
            live.started = time.monotonic()
            device.run(
                self.state.scan(order.owner, order.scan),
                bundle,
                folder,
                report,
                lambda: identifier in self.cancelled,
                order.outputs,
                order.admission,
            )
        with self.turn:
            self._reject_cancelled(identifier, "when it was done")
            self.state.publish(identifier, folder)

    def _await_storage(self, identifier: str, live: Live, error: CalibrantError, faults: int) -> None:
        """Let a job wait until the storage works again; raise the error if it works and the job still meets the error.

        For want of space no job fails: of that, it may need more than others.
        """
        live.waiting = True
        self.state.clear_attempts(identifier)
        self.guard.note(error)
        log.warning("a job waits for the storage", job=identifier, problem=error.code)
        check = partial(self._reject_cancelled, identifier, "while it waited")
        if not self.guard.await_repair(check):
            raise ExecutorStopped
        if faults >= MAX_ATTEMPTS and not isinstance(error, StorageFull):
            raise error
        self._pause(min(PAUSE_S * 2 ** (faults - 1), LONGEST_PAUSE_S), check)

    def _pause(self, seconds: float, check: Callable[[], None]) -> None:
        if not self.guard.pause(seconds, check):
            raise ExecutorStopped

    def _prepare_another_attempt(self, identifier: str, live: Live, error: CalibrantError) -> None:
        """Let the case wait for a device that computes; raise the error if it was tried often enough."""
        if isinstance(error, DeviceUnavailable):  # it has not begun
            live.waiting = True
            return
        if live.attempt == MAX_ATTEMPTS:
            raise error
        # Whatever killed the process, e.g. a machine short of memory, may kill the next one, too, for a moment.
        live.waiting = True
        self._pause(BACK_OFF_S[live.attempt - 1], partial(self._reject_cancelled, identifier, "between two attempts"))
        live.attempt += 1

    def _reject_cancelled(self, identifier: str, when: str) -> None:
        if identifier in self.cancelled:
            msg = f"The job was cancelled {when}."
            raise JobCancelled(msg)

    def _take_ahead(self, *, ahead: bool) -> None:
        """With one device, let the next job leave the queue ahead of its turn, or in its turn; with several, one always is."""
        if self.places == 1 and self._ahead != ahead:
            self._ahead = ahead
            self.take(1 + ahead)

    def _log(self, identifier: str, order: WorkflowInput, failure: dict[str, str] | None) -> None:
        """Count and log how a job ended."""
        model = order.model.partition("@")[0]
        folder = self.state.result(identifier)
        if failure is None and folder is not None:
            try:
                seconds = CaseResult.model_validate_json((folder / RESULT).read_bytes()).seconds
                summary = _summary(folder)
            except OSError as error:  # it is published, whether the disk can read it now or not
                log.warning("a result cannot be read", job=identifier, error=type(error).__name__)
                return
            confidence = summary.foreground_confidence if summary else None
            self.metrics.case_succeeded(model, seconds, confidence, summary.statement.status if summary else None)
            log.info("job succeeded", job=identifier, model=model, seconds=seconds)
        elif failure is not None:
            state = "cancelled" if failure["code"] == JobCancelled.code else "failed"
            self.metrics.case_ended(model, state)
            log.info("job ended", job=identifier, model=model, state=state, problem=failure["code"])


def _summary(folder: Path) -> Summary | None:
    """Return the summary of a result; None if the job did not keep it."""
    path = folder / SUMMARY
    return Summary.model_validate_json(path.read_bytes()) if path.is_file() else None
