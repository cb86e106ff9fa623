import os
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from service.bundle.registry import Registry
from service.errors import CalibrantError, DatabaseBusy, StorageFault, StorageFull
from service.jobs import database as job_database
from service.jobs.database import HURRIED
from service.jobs.segmentation.queue import SegmentationJobs
from service.jobs.segmentation.status import WorkflowInput
from tests.service.jobs.conftest import FakeExecutor, Service, Submit


def wait_until(holds: Callable[[], object]) -> None:
    """Return as soon as something holds."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def hurried() -> Iterator[None]:
    """Behave as a request does."""
    token = HURRIED.set(True)
    try:
        yield
    finally:
        HURRIED.reset(token)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a real disk of 16 MiB in memory; only the superuser may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only the superuser may mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> Path:
    """Write until nothing more fits, and return the file."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return path


def test_f7_a_full_disk_costs_no_job(small_disk: Path, registry: Registry, model: str) -> None:
    """On a disk that is really full, submissions are 507, erasing works, and accepted jobs end when there is room again."""
    service = Service(small_disk / "state", registry, reserve_bytes=1 << 20)
    try:
        queue = service.launch()

        def order(text: str) -> WorkflowInput:
            return WorkflowInput("local", service.store(text), model, ("mask", "summary"))

        done = queue.wait("local", queue.submit(order("done")).id, 20)
        jobs = [queue.submit(order(text)).id for text in ("slow", "waits")]
        more = order("more")
        assert service.executor.entered.wait(10)
        filler = fill(small_disk)
        service.executor.released.set()
        wait_until(lambda: queue.find("local", jobs[0]).state == "queued")
        wait_until(lambda: queue.why_not)
        with hurried(), pytest.raises(StorageFull) as caught:
            queue.submit(more)
        assert (caught.value.status, caught.value.retry_after_s) == (507, 60)

        with hurried():
            queue.erase("local", done.id)
        assert not (service.state.results / done.id).exists()
        assert [queue.find("local", job).state for job in jobs] == ["queued", "queued"]

        filler.unlink()
        assert [queue.wait("local", job, 30).state for job in jobs] == ["succeeded", "succeeded"]
        wait_until(lambda: not queue.why_not)
        wait_until((small_disk / "state" / "reserve").exists)
        assert queue.wait("local", queue.submit(more).id, 20).state == "succeeded"
    finally:
        service.close()


def test_f11_a_locked_database_is_told_within_seconds(
    queue: SegmentationJobs, executor: FakeExecutor, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another program locks it, a submission is refused; the job that ends meanwhile is recorded afterwards."""
    monkeypatch.setattr(job_database, "TRIAL_S", 0.1)
    job = submit("slow and locked out")
    assert executor.entered.wait(10)
    with closing(sqlite3.connect(queue.state.database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        with hurried(), pytest.raises(DatabaseBusy) as caught:
            submit("refused")
        assert time.monotonic() - started < 10
        assert (caught.value.status, caught.value.retry_after_s) == (503, 5)
        assert "locks the database" in queue.why_not
        started = time.monotonic()
        with hurried(), pytest.raises(DatabaseBusy):
            submit("refused at once")
        assert time.monotonic() - started < 1
        executor.released.set()
        wait_until(lambda: queue.state.result(job.id))
        assert queue.find("local", job.id).state == "running"
        other.execute("ROLLBACK")

    assert queue.wait("local", job.id, 20).state == "succeeded"
    wait_until(lambda: not queue.why_not)


def test_f12_a_vanished_directory_is_not_ready(queue: SegmentationJobs, submit: Submit) -> None:
    """It is ready again once the folder is back."""
    away = queue.state.root / "away"
    queue.state.incoming.rename(away)
    wait_until(lambda: queue.why_not)
    with pytest.raises(StorageFault):
        submit("refused")
    away.rename(queue.state.incoming)
    wait_until(lambda: not queue.why_not)


def test_a_job_that_always_meets_a_fault_of_the_disk_fails(
    queue: SegmentationJobs, executor: FakeExecutor, submit: Submit
) -> None:
    """If disk and database work, the third fault is the job's; one that lacks space waits and is tried again."""
    faults: list[CalibrantError] = [StorageFault("Input/output error.") for _ in range(3)]
    executor.errors["unreadable"] = faults
    job = queue.wait("local", submit("unreadable").id, 30)
    assert (job.state, job.problem and job.problem.type) == ("failed", "/problems/storage-error")

    executor.errors["large"] = [StorageFull("No space.")]
    assert queue.wait("local", submit("large").id, 30).state == "succeeded"


def test_a_waiting_job_can_be_cancelled(queue: SegmentationJobs, executor: FakeExecutor, submit: Submit) -> None:
    """One that waits for space is no exception."""
    executor.errors["larger"] = [StorageFull("No space.") for _ in range(9)]
    job = submit("larger")
    wait_until(lambda: executor.calls.count("larger") >= 2)

    assert queue.cancel("local", job.id).state == "cancelled"
    wait_until(lambda: job.id not in queue.worker.live)
