import errno
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from dbos import DBOS

from service.bundle.registry import Registry
from service.errors import (
    DeviceUnavailable,
    InferenceCrashed,
    InferenceDeadline,
)
from service.executors.pool import MAX_ATTEMPTS, ExecutorPool
from service.jobs.segmentation import queue as segment
from service.jobs.segmentation import worker
from service.jobs.segmentation.queue import POLL_S, SegmentationJobs
from service.jobs.segmentation.records import QUEUE, WORKFLOW, reject_cancelled
from service.jobs.segmentation.worker import AHEAD_S
from service.observability.metrics import Metrics
from service.result.files import RESULT, SUMMARY
from service.storage.local import StateDirectory
from tests.service.jobs.conftest import FakeExecutor, Submit


def test_f7_a_state_directory_that_cannot_be_written_delays_the_job(
    submit: Submit, queue: SegmentationJobs, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that finds no room waits, and ends well once there is some."""
    refusals: list[str] = []

    def full(_: StateDirectory, job: str) -> Path:
        refusals.append(job)
        raise OSError(errno.ENOSPC, "No space left on device", str(state.work / job))

    with monkeypatch.context() as broken:
        broken.setattr(StateDirectory, "begin_attempt", full)
        job = submit("good")
        while len(refusals) < 2:
            assert queue.find("local", job.id).state == "queued"
            time.sleep(0.01)

    assert queue.wait("local", job.id, 20).state == "succeeded"
    assert set(refusals) == {job.id}


def test_f15_attempts_after_crashes_are_spread(
    finish: Submit, executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A moment in which every process dies uses up no attempts: a job pauses after each crash, the longer the later."""
    monkeypatch.setattr(worker, "BACK_OFF_S", (0.3, 0.6))
    executor.errors["unlucky"] = [InferenceCrashed("died"), InferenceCrashed("died")]
    started = time.monotonic()

    assert finish("unlucky").state == "succeeded"
    assert time.monotonic() - started > 0.9


def test_a_case_that_kills_the_child_is_tried_again(
    finish: Submit, executor: FakeExecutor, state: StateDirectory
) -> None:
    """A case may succeed after two crashes, each attempt in its own folder; three crashes fail the job."""
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


def test_a_model_that_was_removed_fails_the_job(
    finish: Submit, queue: SegmentationJobs, executor: FakeExecutor
) -> None:
    """A job whose bundle was removed while it waited fails with model-not-found."""
    known = dict(queue.registry.ready)
    queue.registry.ready.clear()
    try:
        job = finish("good")
    finally:
        queue.registry.ready.update(known)

    assert job.problem is not None
    assert job.problem.type == "/problems/model-not-found"
    assert executor.calls == []


def test_a_published_result_is_not_computed_again(
    queue: SegmentationJobs, executor: FakeExecutor, submit: Submit
) -> None:
    """A job that was interrupted between publishing and recording finds its result."""
    result = queue.state.result(queue.wait("local", submit("another").id, 20).id)
    assert result is not None
    identifier = segment.identifier_of("local", "published")
    attempt = queue.state.begin_attempt(identifier)
    for name in (RESULT, SUMMARY):
        (attempt / name).write_bytes((result / name).read_bytes())
    queue.state.publish(identifier, attempt)
    executor.calls.clear()

    job = submit("good", "published")

    assert queue.wait("local", job.id, 20).state == "succeeded"
    assert executor.calls == []


def test_the_next_job_leaves_the_queue_shortly_before_a_case_ends(
    queue: SegmentationJobs, executor: FakeExecutor, submit: Submit
) -> None:
    """It counts as queued until its turn, and can be cancelled: the next one takes its place; no third leaves the queue."""
    running = submit("slow")
    assert executor.entered.wait(10)
    first, second, third = (submit(text).id for text in ("first", "second", "third"))
    time.sleep(AHEAD_S)
    assert _out_of_the_queue() == [running.id]

    executor.progress = 0.999
    while len(_out_of_the_queue()) < 2:
        time.sleep(0.01)

    job = queue.find("local", first)
    assert (job.state, job.stage, job.queue_position) == ("queued", None, 1)
    assert [job.id for job in queue.page("local", "queued", None, 3)] == [third, second, first]
    assert [job.id for job in queue.page("local", "running", None, 3)] == [running.id]
    assert queue.count() == {"queued": 3, "running": 1}
    assert queue.cancel("local", first).state == "cancelled"
    while second not in _out_of_the_queue():
        time.sleep(0.01)
    time.sleep(3 * POLL_S)
    assert set(_out_of_the_queue()) == {running.id, second}

    executor.released.set()
    assert [queue.wait("local", identifier, 10).state for identifier in (second, third)] == ["succeeded"] * 2
    assert sorted(executor.calls) == ["second", "slow", "third"]
    registered = DBOS.retrieve_queue(QUEUE)
    assert registered is not None
    assert registered.worker_concurrency == 1


def _out_of_the_queue() -> list[str]:
    return [status.workflow_id for status in DBOS.list_workflows(status="PENDING", name=WORKFLOW)]


def test_a_cancellation_while_the_result_is_published_takes_it_away(
    queue: SegmentationJobs, submit: Submit, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job cancelled between its last window and its record has no result on the disk."""
    publish, cancelled = StateDirectory.publish, threading.Event()

    def publish_late(self: StateDirectory, job: str, attempt: Path) -> None:
        DBOS.cancel_workflow(job)
        publish(self, job, attempt)
        cancelled.set()

    with monkeypatch.context() as late:
        late.setattr(StateDirectory, "publish", publish_late)
        job = submit("good")
        assert cancelled.wait(20)

    assert queue.cancel("local", job.id).state == "cancelled"
    while job.id in queue.worker.live:
        time.sleep(0.001)
    assert queue.cancel("local", job.id).state == "cancelled"
    assert state.result(job.id) is None


def test_a_job_that_is_cancelled_as_it_leaves_the_queue_is_not_computed(
    queue: SegmentationJobs, executor: FakeExecutor, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancellation between the queue and the first report is noticed before any computation."""
    reject, seen = reject_cancelled, threading.Event()

    def cancel_first(identifier: str) -> None:
        DBOS.cancel_workflow(identifier)
        seen.set()
        reject(identifier)

    with monkeypatch.context() as race:
        race.setattr(worker, "reject_cancelled", cancel_first)
        job = submit("good")
        assert seen.wait(20)
    assert queue.wait("local", submit("next").id, 20).state == "succeeded"

    assert queue.find("local", job.id).state == "cancelled"
    assert executor.calls == ["next"]


def test_a_job_waits_until_a_device_computes(queue: SegmentationJobs, executor: FakeExecutor, submit: Submit) -> None:
    """It is queued meanwhile, and no attempt is counted; it can be cancelled while it waits."""
    executor.errors["good"] = [DeviceUnavailable("cuda:0 is gone.")]
    executor.works = False
    job, other = submit("good"), submit("other")
    time.sleep(0.3)
    assert [queue.find("local", one.id).state for one in (job, other)] == ["queued", "queued"]
    assert executor.calls == []
    assert queue.cancel("local", other.id).state == "cancelled"

    executor.works = True
    done = queue.wait("local", job.id, 20)
    assert (done.state, done.attempts) == ("succeeded", 1)
    assert executor.calls == ["good", "good"]


@pytest.mark.parametrize(("devices", "places"), [(1, 1), (2, 3), (4, 5)])
def test_with_several_devices_one_job_more_is_at_hand(
    state: StateDirectory, registry: Registry, devices: int, places: int
) -> None:
    """With one device none waits outside the queue, where no urgent job overtakes it, until shortly before its turn."""
    pool = ExecutorPool([FakeExecutor() for _ in range(devices)])
    nothing: Any = None

    assert worker.Worker(state, registry, pool, Metrics(), nothing, nothing, nothing).places == places
