"""One job queue for all tests of the folder; the text in a scan decides what its case does."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.bundle.description import BundleDescription
from service.bundle.registry import DEFAULT_MODEL, SHIPPED, Registry
from service.errors import CalibrantError, JobCancelled
from service.executors.embedded import EmbeddedExecutor, ExecutorStopped
from service.executors.pool import ExecutorPool
from service.jobs.database import open_database
from service.jobs.segmentation import worker
from service.jobs.segmentation.queue import SegmentationJobs
from service.jobs.segmentation.status import WorkflowInput
from service.observability.metrics import Metrics
from service.result.files import RESULT, SUMMARY
from service.schemas import CaseResult, Job, Priority, Report, Statement, Summary
from service.storage.local import StateDirectory

RESULT_JSON = CaseResult(
    model="m@0", device="cpu", engine="torch", precision="fp32", seconds={"decode": 0.5}, files={}
).model_dump_json()

SUMMARY_JSON = Summary(
    model="m@0",
    structures=[],
    foreground_confidence=None,
    statement=Statement(
        status="holds",
        text="Text.",
        reasons=[],
        dataset="d",
        split="s",
        protocol="held-out",
        n_persons=2,
        n_cases=2,
        date="2026-01-31",
        engine="torch",
        precision="fp32",
        figures=None,
    ),
    warnings=[],
).model_dump_json()


def write_result(folder: Path, mask: str) -> None:
    """Write the files of a case."""
    (folder / "mask").write_text(mask)
    (folder / SUMMARY).write_text(SUMMARY_JSON)
    (folder / RESULT).write_text(RESULT_JSON)


class FakeExecutor(EmbeddedExecutor):
    """Computes nothing: the text in a scan decides what happens to its case.

    `slow...` computes until it is released or cancelled, `deaf...` ignores cancellation. Both report `progress`.
    """

    def __init__(self) -> None:
        super().__init__(deadline_s=1.0)
        self.errors: dict[str, list[CalibrantError]] = {}
        self.calls: list[str] = []
        self.folders: list[Path] = []
        self.released = threading.Event()
        self.entered = threading.Event()
        self.works = True
        self.progress = 0.25
        self.before_end: Callable[[], None] = lambda: None

    @property
    def ready(self) -> bool:
        """Whether it works and was not stopped."""
        return self.works and not self._stopped.is_set()

    def stop(self) -> None:
        """Interrupt the waiting case."""
        self._stopped.set()
        self.released.set()

    def run(
        self,
        scan: Path,
        bundle: BundleDescription,
        out: Path,
        report: Report,
        cancelled: Callable[[], bool] = lambda: False,
        *_: object,
    ) -> CaseResult:
        """Write a small result, raise the next error of the scan, or wait to be released."""
        assert bundle.root == SHIPPED / DEFAULT_MODEL
        text = scan.read_text()
        self.calls.append(text)
        self.folders.append(out)
        report("infer", 0.25)
        if text.startswith(("slow", "deaf")):
            self.entered.set()
            while not self.released.wait(0.01):
                report("infer", self.progress)
                if cancelled() and text.startswith("slow"):
                    msg = "The job was cancelled while it ran."
                    raise JobCancelled(msg)
        if self._stopped.is_set():
            raise ExecutorStopped
        if errors := self.errors.get(text):
            raise errors.pop(0)
        if out.exists():  # otherwise the job was erased meanwhile
            write_result(out, text)
        self.before_end()
        return CaseResult.model_validate_json(RESULT_JSON)


class Service:
    """One state directory with one queue at a time, because DBOS is one per process and launching it takes a second."""

    def __init__(
        self, root: Path, registry: Registry, postgresql_url: str | None = None, *, reserve_bytes: int = 0
    ) -> None:
        self.state = StateDirectory.open(root, reserve_bytes)
        self.registry = registry
        self._url = postgresql_url
        self.executor = FakeExecutor()
        self.queue: SegmentationJobs | None = None

    def launch(self) -> SegmentationJobs:
        """Return the running queue; a new one with a new executor if none runs."""
        if self.queue is None:
            self.executor = FakeExecutor()
            self.queue = SegmentationJobs(
                *(self.state, self.registry, ExecutorPool([self.executor]), Metrics()),
                open_database(self.state, self._url),
            )
            self.queue.launch()
        return self.queue

    def close(self) -> None:
        """End the queue as the service does when it is asked to end."""
        if self.queue is not None:
            self.queue.close()
            self.queue = None

    def store(self, text: str, owner: str = "local") -> str:
        """Store a scan that holds a text and return its id."""
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        scan = self.state.scan(owner, sha256)
        scan.parent.mkdir(exist_ok=True)
        scan.write_text(text)
        return sha256


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a case be tried again at once."""
    monkeypatch.setattr(worker, "BACK_OFF_S", (0.01, 0.02))
    monkeypatch.setattr(worker, "PAUSE_S", 0.05)


Submit = Callable[..., Job]


@pytest.fixture(scope="session")
def registry() -> Registry:
    """Return the shipped bundles."""
    return Registry.scan(SHIPPED)


@pytest.fixture
def model(registry: Registry) -> str:
    """Return the identity of the default model."""
    return registry.find(DEFAULT_MODEL).identity


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Iterator[Service]:
    """Yield the service that all tests of a file share, launched or closed."""
    service = Service(tmp_path_factory.mktemp("service") / "state", registry)
    yield service
    service.close()


@pytest.fixture
def queue(service: Service) -> Iterator[SegmentationJobs]:
    """Yield a running, idle queue whose executor has forgotten earlier tests."""
    queue, executor = service.launch(), service.executor
    executor.released.set()
    while any(queue.count().values()) or queue.worker.live:
        time.sleep(0.01)
    executor.calls.clear()
    executor.errors.clear()
    executor.folders.clear()
    executor.entered.clear()
    executor.released.clear()
    executor.progress = 0.25
    executor.works = True
    executor.before_end = lambda: None
    yield queue
    executor.works = True
    executor.released.set()


@pytest.fixture
def executor(service: Service, queue: SegmentationJobs) -> FakeExecutor:
    """Return the executor of the running queue, whose outcomes a test controls."""
    assert service.queue is queue
    return service.executor


@pytest.fixture
def state(service: Service) -> StateDirectory:
    """Return the state directory."""
    return service.state


@pytest.fixture
def submit(service: Service, queue: SegmentationJobs, model: str) -> Submit:
    """Return the function that stores a scan of this text and submits it."""

    def send(
        text: str, key: str | None = None, *, owner: str = "local", priority: Priority = "normal", model: str = model
    ) -> Job:
        order = WorkflowInput(owner, service.store(text, owner), model, ("mask", "summary"))
        return (service.queue or queue).submit(order, priority=priority, idempotency_key=key)

    return send


@pytest.fixture
def finish(queue: SegmentationJobs, submit: Submit) -> Submit:
    """Return the function that submits a scan and waits for the end of its job."""

    def run(text: str, key: str | None = None, *, owner: str = "local") -> Job:
        return queue.wait(owner, submit(text, key, owner=owner).id, 20)

    return run
