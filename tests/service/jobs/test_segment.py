import errno
import json
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from service.bundle.registry import DEFAULT_MODEL, SHIPPED, Registry
from service.errors import (
    CalibrantError,
    IdempotencyKeyReused,
    InferenceCrashed,
    InferenceDeadline,
    JobNotFound,
    NonFiniteVoxels,
    StorageFull,
)
from service.executors.embedded import EmbeddedExecutor, ExecutorStopped
from service.jobs import segment
from service.jobs.segment import MAX_ATTEMPTS, JobQueue
from service.schemas import CaseResult, Job, Report
from service.storage.local import RESULT, StateDirectory

RESULT_JSON = CaseResult(
    model="m@0", device="cpu", engine="torch", precision="fp32", seconds={"decode": 0.5}, files={}
).model_dump_json()


class FakeExecutor(EmbeddedExecutor):
    """Computes nothing: the name of the scan decides what happens to a case."""

    def __init__(self) -> None:
        super().__init__(device="cpu", deadline_s=1.0)
        self.errors: dict[str, list[CalibrantError]] = {}
        self.calls: list[str] = []
        self.folders: list[Path] = []
        self.released = threading.Event()
        self.entered = threading.Event()

    @property
    def ready(self) -> bool:
        """Whether nobody has stopped it."""
        return not self._stopped

    def stop(self) -> None:
        """Interrupt the case that waits."""
        self._stopped = True
        self.released.set()

    def run(self, scan: Path, bundle: Path, out: Path, report: Report) -> CaseResult:
        """Write a small result, raise the next error of the scan, or wait to be released."""
        assert bundle == SHIPPED / DEFAULT_MODEL
        self.calls.append(scan.name)
        self.folders.append(out)
        report("infer", 0.25)
        if scan.name.startswith("slow"):
            self.entered.set()
            assert self.released.wait(30)
        if self._stopped:
            raise ExecutorStopped
        if errors := self.errors.get(scan.name):
            raise errors.pop(0)
        (out / "mask").write_text(scan.name)
        (out / RESULT).write_text(RESULT_JSON)
        return CaseResult.model_validate_json(RESULT_JSON)


@pytest.fixture(scope="module")
def registry() -> Registry:
    """Return the shipped bundles."""
    return Registry.scan(SHIPPED)


@pytest.fixture
def model(registry: Registry) -> str:
    """Return the identity of the default model."""
    return registry.find(DEFAULT_MODEL).identity


class Service:
    """One state directory with one queue at a time, because DBOS is one per process and launching it takes a second."""

    def __init__(self, root: Path, registry: Registry) -> None:
        self.state = StateDirectory.open(root)
        self.registry = registry
        self.executor = FakeExecutor()
        self.queue: JobQueue | None = None

    def launch(self) -> JobQueue:
        """Return the running queue; a new one with a new executor if none runs."""
        if self.queue is None:
            self.executor = FakeExecutor()
            self.queue = JobQueue(self.state, self.registry, self.executor)
            self.queue.launch()
        return self.queue

    def close(self) -> None:
        """End the queue as the service does when it is asked to end."""
        if self.queue is not None:
            self.queue.close()
            self.queue = None


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Iterator[Service]:
    """Yield the service that all tests of this file share, launched or closed."""
    service = Service(tmp_path_factory.mktemp("service") / "state", registry)
    yield service
    service.close()


@pytest.fixture
def queue(service: Service) -> Iterator[JobQueue]:
    """Yield a running queue with an executor that knows nothing of earlier tests."""
    queue, executor = service.launch(), service.executor
    executor.calls.clear()
    executor.errors.clear()
    executor.folders.clear()
    executor.entered.clear()
    executor.released.clear()
    yield queue
    executor.released.set()


@pytest.fixture
def executor(queue: JobQueue) -> FakeExecutor:
    """Return the executor of the running queue, whose outcomes a test decides."""
    assert isinstance(queue.executor, FakeExecutor)
    return queue.executor


@pytest.fixture
def state(service: Service) -> StateDirectory:
    """Return the state directory."""
    return service.state


Finish = Callable[[str], Job]


@pytest.fixture
def finish(queue: JobQueue, model: str) -> Finish:
    """Return the function that submits a scan and waits for the end of its job."""

    def run(scan: str) -> Job:
        return queue.wait(queue.submit(scan, model, None).id, 20)

    return run


def test_jobs_end_as_their_cases_do(finish: Finish, executor: FakeExecutor, state: StateDirectory, model: str) -> None:
    """Success publishes one result; an error of the scan or of the disk is the job's problem, and is not tried again.

    One queue for all of these, because launching DBOS takes a second.
    """
    good = finish("good")
    assert (good.state, good.progress, good.stage, good.problem) == ("succeeded", 1.0, None, None)
    assert (good.model, good.seconds) == (model, {"decode": 0.5})
    assert good.links.mask == f"/v1/segmentations/{good.id}/mask"
    result = state.result(good.id)
    assert result is not None
    assert (result / "mask").read_text() == "good"

    for error in (NonFiniteVoxels("3 of 9 voxels."), StorageFull("No space."), CalibrantError("It failed.")):
        executor.errors["bad"] = [error]
        executor.calls.clear()
        bad = finish("bad")
        assert (bad.state, bad.progress, bad.links.mask) == ("failed", 0.0, None)
        assert bad.problem is not None
        found = (bad.problem.type, bad.problem.title, bad.problem.status, bad.problem.detail)
        assert found == (f"/problems/{error.code}", error.title, error.status, error.detail)
        assert executor.calls == ["bad"]
        assert state.result(bad.id) is None

    assert [*state.work.iterdir()] == []


def test_a_state_directory_that_cannot_be_written_fails_the_job(
    finish: Finish, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full or read-only disk under a running job is said as such, without a path, and the next job is taken."""

    def full(_: StateDirectory, job: str) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", str(state.work / job))

    with monkeypatch.context() as broken:
        broken.setattr(StateDirectory, "begin_attempt", full)
        failed = finish("good")

    assert failed.problem is not None
    assert failed.problem.type == "/problems/insufficient-storage"
    assert failed.problem.detail == "The state directory could not be written (No space left on device)."
    assert finish("good").state == "succeeded"


def test_a_case_that_kills_the_child_is_tried_again(
    finish: Finish, executor: FakeExecutor, state: StateDirectory
) -> None:
    """Two deaths and then success is a success, each attempt in a folder of its own; three deaths are the failure."""
    executor.errors["unlucky"] = [InferenceCrashed("died"), InferenceDeadline("late")]
    assert finish("unlucky").state == "succeeded"
    assert executor.calls == ["unlucky"] * MAX_ATTEMPTS
    assert len(set(executor.folders)) == MAX_ATTEMPTS

    executor.errors["deadly"] = [InferenceCrashed("died")] * MAX_ATTEMPTS
    deadly = finish("deadly")
    assert deadly.state == "failed"
    assert deadly.problem is not None
    assert deadly.problem.type == "/problems/inference-crashed"
    assert executor.calls.count("deadly") == MAX_ATTEMPTS
    assert state.result(deadly.id) is None
    assert finish("next").state == "succeeded"


def test_an_idempotency_key_names_one_job(queue: JobQueue, executor: FakeExecutor, model: str) -> None:
    """The same key and scan is the same job while it runs and afterwards; with another scan or model it is refused."""
    first = queue.submit("slow", model, "one key")
    assert executor.entered.wait(10)
    assert queue.submit("slow", model, "one key").id == first.id
    running = queue.find(first.id)
    assert (running.state, running.stage, running.progress) == ("running", "infer", 0.25)
    waiting = queue.submit("other", model, None)
    assert (waiting.state, waiting.stage, waiting.progress) == ("queued", None, 0.0)
    assert queue.wait(first.id, 0.2).state == "running"
    executor.released.set()
    assert queue.wait(first.id, 10).state == "succeeded"

    again = queue.submit("slow", model, "one key")
    assert (again.id, again.state) == (first.id, "succeeded")
    assert executor.calls.count("slow") == 1
    for scan, bundle in (("other", model), ("slow", "other@0")):
        with pytest.raises(IdempotencyKeyReused, match="Send a new key"):
            queue.submit(scan, bundle, "one key")
    assert queue.submit("slow", model, "another key").id != first.id
    assert queue.submit("slow", model, None).id != queue.submit("slow", model, None).id


def test_an_unknown_job_is_said(queue: JobQueue) -> None:
    """An id that nobody was given is JobNotFound, for looking and for waiting."""
    with pytest.raises(JobNotFound):
        queue.find(uuid.uuid4().hex)
    with pytest.raises(JobNotFound):
        queue.wait("", 5)


def test_a_model_that_was_removed_fails_the_job(finish: Finish, queue: JobQueue, executor: FakeExecutor) -> None:
    """A job whose bundle is gone when its turn comes ends with model-not-found instead of hanging."""
    known = dict(queue.registry.ready)
    queue.registry.ready.clear()
    try:
        job = finish("good")
    finally:
        queue.registry.ready.update(known)

    assert job.problem is not None
    assert job.problem.type == "/problems/model-not-found"
    assert executor.calls == []


def test_a_published_result_is_not_computed_again(queue: JobQueue, executor: FakeExecutor, model: str) -> None:
    """A job that was interrupted between its rename and its record finds the result and is done."""
    identifier = segment._identifier("published")
    attempt = queue.state.begin_attempt(identifier)
    (attempt / RESULT).write_text(RESULT_JSON)
    queue.state.publish(identifier, attempt)

    job = queue.submit("good", model, "published")

    assert queue.wait(job.id, 20).state == "succeeded"
    assert executor.calls == []


def test_the_next_launch_finishes_what_was_left(
    service: Service, queue: JobQueue, executor: FakeExecutor, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job that ran at the end and the one behind it are both finished by the next service; neither is a failure."""
    monkeypatch.setattr(segment, "DRAIN_S", 0.2)
    identifiers = [queue.submit(scan, model, None).id for scan in ("slow", "waits")]
    assert executor.entered.wait(10)
    service.close()
    assert executor.calls == ["slow"]
    assert all(service.state.result(identifier) is None for identifier in identifiers)

    again = service.launch()
    service.executor.released.set()

    assert [again.wait(identifier, 20).state for identifier in identifiers] == ["succeeded", "succeeded"]
    assert sorted(service.executor.calls) == ["slow", "waits"]
    assert all(service.state.result(identifier) is not None for identifier in identifiers)


def test_results_outlive_a_restart(service: Service, queue: JobQueue, executor: FakeExecutor, model: str) -> None:
    """A finished job, its key and a failure are the same after the next launch, and nothing is computed again."""
    executor.errors["bad"] = [NonFiniteVoxels("3 of 9 voxels.")]
    before = [queue.wait(queue.submit(scan, model, f"{scan} key").id, 20) for scan in ("good", "bad")]
    assert [job.state for job in before] == ["succeeded", "failed"]
    service.close()

    again = service.launch()

    assert [again.find(job.id) for job in before] == before
    assert [again.submit(scan, model, f"{scan} key") for scan in ("good", "bad")] == before
    with pytest.raises(IdempotencyKeyReused):
        again.submit("another", model, "good key")
    assert service.executor.calls == []


def test_closing_lets_a_job_finish(service: Service, queue: JobQueue, executor: FakeExecutor, model: str) -> None:
    """A job that needs a moment more when the service is asked to end is finished, then the executor is stopped."""
    job = queue.submit("slow", model, None)
    assert executor.entered.wait(10)
    threading.Timer(0.3, executor.released.set).start()
    service.close()

    assert service.state.result(job.id) is not None
    assert not executor.ready


def test_the_database_is_kept_as_it_was_decided(queue: JobQueue, finish: Finish) -> None:
    """Write-ahead log, and JSON instead of pickles: what lies in the database can be read by anything."""
    job = finish("good")
    with closing(sqlite3.connect(queue.state.database)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        (inputs,) = database.execute("SELECT inputs FROM workflow_input WHERE workflow_uuid = ?", (job.id,)).fetchone()

    assert "good" in json.dumps(json.loads(inputs))
