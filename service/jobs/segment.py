"""The durable job: a scan and a model in, one published result out, through crashes of any process.

DBOS owns queue, state and recovery. The workflow is one step, which may run any number of times: it begins by looking
for a published result, and publishing is one rename.
"""

import hashlib
import sqlite3
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SetWorkflowID

from service.bundle.registry import Registry
from service.errors import (
    CalibrantError,
    IdempotencyKeyReused,
    InferenceCrashed,
    InferenceDeadline,
    JobNotFound,
    StorageFull,
)
from service.executors.embedded import EmbeddedExecutor
from service.jobs.status import Live, describe_job
from service.schemas import Job, Stage
from service.storage.local import StateDirectory

QUEUE: Final = "segmentations"
POLL_S: Final = 0.05
"""Seconds between two looks at the queue, and at a job that somebody waits for."""

MAX_ATTEMPTS: Final = 3
"""Times a case may kill or hang the inference process before its job fails."""

MAX_RECOVERIES: Final = 100
"""Times the whole service may die during one job before the job is given up."""

DRAIN_S: Final = 10
"""Seconds that a job has to finish when the service is asked to end."""

# Raised when a change makes jobs of the earlier version unreadable; otherwise jobs outlive an upgrade.
_VERSION = "1"

_OWNER = "local"
"""The one owner of a service on a loopback address without keys."""


@dataclass(slots=True)
class JobQueue:
    """Submits, runs and describes jobs; one per process, because DBOS is."""

    state: StateDirectory
    registry: Registry
    executor: EmbeddedExecutor
    _live: dict[str, Live] = field(default_factory=dict)
    _segment: Callable[[str, str], dict[str, str] | None] = field(init=False)

    def launch(self) -> None:
        """Open the job database and go on with the jobs that a crash interrupted."""
        _use_write_ahead_log(self.state)
        config: DBOSConfig = {
            "name": "calibrant",
            "system_database_url": f"sqlite:///{self.state.database}",
            "executor_id": "local",
            "application_version": _VERSION,
            "console_log_level": "CRITICAL",
            "serializer": DBOSPortableJSONSerializer(),
            "notification_listener_polling_interval_sec": POLL_S,
        }
        DBOS(config=config)

        @DBOS.step(name="run_case")
        def run_case(identifier: str, scan_sha256: str, model: str) -> dict[str, str] | None:
            return self._run_once(identifier, scan_sha256, model)

        @DBOS.workflow(name="segment", max_recovery_attempts=MAX_RECOVERIES)
        def segment(scan_sha256: str, model: str) -> dict[str, str] | None:
            return run_case(str(DBOS.workflow_id), scan_sha256, model)

        self._segment = segment
        DBOS.launch()
        DBOS.register_queue(QUEUE, worker_concurrency=1, polling_interval_sec=POLL_S, on_conflict="always_update")

    def close(self) -> None:
        """Take no more jobs and give the one that runs a moment; if it needs longer, the next launch takes it up again."""
        DBOS.destroy(destroy_registry=True, workflow_completion_timeout_sec=DRAIN_S)
        self.executor.stop()

    def submit(self, scan_sha256: str, model: str, idempotency_key: str | None) -> Job:
        """Return the job for a scan that lies in the state directory; it survives any crash from here on.

        Args:
            scan_sha256: of the stored scan.
            model: identity of the bundle.
            idempotency_key: the same key with the same scan and model returns the same job.

        Raises:
            IdempotencyKeyReused: the key belongs to another scan or model.
        """
        identifier = _identifier(idempotency_key)
        with SetWorkflowID(identifier):
            DBOS.enqueue_workflow(QUEUE, self._segment, scan_sha256, model)
        status = DBOS.get_workflow_status(identifier)
        if status is None or status.input is None or list(status.input["args"]) != [scan_sha256, model]:
            msg = "The Idempotency-Key was used before for another scan or model. Send a new key for a new request."
            raise IdempotencyKeyReused(msg)
        return self.find(identifier)

    def find(self, identifier: str) -> Job:
        """Return a job.

        Raises:
            JobNotFound: there is none of this id.
        """
        status = DBOS.get_workflow_status(identifier)
        if status is None:
            msg = "No segmentation has this id. It may have been deleted."
            raise JobNotFound(msg)
        return describe_job(status, self._live.get(identifier, Live()), self.state.result(identifier))

    def wait(self, identifier: str, seconds: float) -> Job:
        """Return the job once it has finished, or as it stands after so many seconds."""
        deadline = time.monotonic() + seconds
        while (job := self.find(identifier)).state in ("queued", "running") and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return job

    def _run_once(self, identifier: str, scan_sha256: str, model: str) -> dict[str, str] | None:
        """Publish the result and return None, or return the failure; safe to repeat after a crash at any point."""
        if self.state.result(identifier) is not None:
            return None
        try:
            self._attempt(identifier, scan_sha256, model)
        except CalibrantError as failure:
            return {"code": failure.code, "detail": failure.detail}
        except OSError as failure:
            return {
                "code": StorageFull.code,
                "detail": f"The state directory could not be written ({failure.strerror}).",
            }
        finally:
            self.state.clear_attempts(identifier)
            self._live.pop(identifier, None)
        return None

    def _attempt(self, identifier: str, scan_sha256: str, model: str) -> None:
        bundle = self.registry.find(model)

        def report(stage: Stage, progress: float) -> None:
            self._live[identifier] = Live(stage, progress)

        for attempt in range(1, MAX_ATTEMPTS + 1):
            folder = self.state.begin_attempt(identifier)
            try:
                self.executor.run(self.state.scan(scan_sha256), bundle.root, folder, report)
            except (InferenceCrashed, InferenceDeadline):
                if attempt == MAX_ATTEMPTS:
                    raise
            else:
                self.state.publish(identifier, folder)
                return


def _identifier(idempotency_key: str | None) -> str:
    if idempotency_key is None:
        return uuid.uuid4().hex
    return hashlib.sha256(f"{_OWNER}\0{idempotency_key}".encode()).hexdigest()[:32]


def _use_write_ahead_log(state: StateDirectory) -> None:
    # Kept by the file. With the default rollback journal readers block the writer. Each commit is still flushed:
    # SQLite's synchronous=FULL is the default of every connection.
    with closing(sqlite3.connect(state.database)) as database:
        database.execute("PRAGMA journal_mode=WAL")
