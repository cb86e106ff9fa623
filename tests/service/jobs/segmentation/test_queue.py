import asyncio
import datetime as dt
import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import closing

import pytest
from dbos import DBOS

from service.errors import (
    CalibrantError,
    DatabaseBusy,
    IdempotencyKeyReused,
    JobFinished,
    JobNotFound,
    NonFiniteVoxels,
    ScanNotFound,
    TooManyJobs,
)
from service.jobs.segmentation import queue as segment
from service.jobs.segmentation.bounds import Bounds
from service.jobs.segmentation.queue import SegmentationJobs
from service.jobs.segmentation.status import WorkflowInput
from service.result.files import RESULT
from service.schemas import FINISHED, Job
from service.storage.local import StateDirectory
from tests.service.jobs.conftest import FakeExecutor, Service, Submit


def test_jobs_end_as_their_cases_do(finish: Submit, executor: FakeExecutor, state: StateDirectory, model: str) -> None:
    """A success publishes one result; an error of the scan becomes the job's problem and is not retried.

    One queue for all cases, because launching DBOS takes a second.
    """
    good = finish("good")
    assert (good.state, good.progress, good.stage, good.problem) == ("succeeded", 1.0, None, None)
    assert (good.model, good.seconds) == (model, {"decode": 0.5})
    assert good.links.mask == f"/v1/segmentations/{good.id}/mask"
    result = state.result(good.id)
    assert result is not None
    assert (result / "mask").read_text() == "good"

    for error in (NonFiniteVoxels("3 of 9 voxels."), CalibrantError("It failed.")):
        executor.errors["bad"] = [error]
        executor.calls.clear()
        bad = finish("bad")
        assert (bad.state, bad.progress, bad.links.mask) == ("failed", 0.0, None)
        assert bad.problem is not None
        problem = (bad.problem.type, bad.problem.title, bad.problem.status, bad.problem.detail)
        assert problem == (f"/problems/{error.code}", error.title, error.status, error.detail)
        assert executor.calls == ["bad"]
        assert state.result(bad.id) is None

    assert [*state.work.iterdir()] == []


def test_an_idempotency_key_names_one_job(queue: SegmentationJobs, executor: FakeExecutor, submit: Submit) -> None:
    """The same key and scan is the same job while it runs and afterwards; with another scan or model it is refused."""
    first = submit("slow", "one key")
    assert executor.entered.wait(10)
    assert submit("slow", "one key").id == first.id
    running = queue.find("local", first.id)
    assert (running.state, running.stage, running.progress) == ("running", "infer", 0.25)
    waiting = submit("other")
    assert (waiting.state, waiting.stage, waiting.progress) == ("queued", None, 0.0)
    assert queue.wait("local", first.id, 0.2).state == "running"
    executor.released.set()
    assert queue.wait("local", first.id, 10).state == "succeeded"

    again = submit("slow", "one key")
    assert (again.id, again.state) == (first.id, "succeeded")
    assert executor.calls.count("slow") == 1
    for scan, other in (("other", {}), ("slow", {"model": "other@0"})):
        with pytest.raises(IdempotencyKeyReused, match="Send a new key"):
            submit(scan, "one key", **other)
    assert submit("slow", "another key").id != first.id
    assert submit("slow").id != submit("slow").id


def test_f2_every_end_of_a_job_makes_room(
    queue: SegmentationJobs, executor: FakeExecutor, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that succeed, are cancelled or erased leave the count; a key that came before is answered even when all is full."""
    running, waiting = submit("slow", "mine"), submit("waits")
    assert executor.entered.wait(10)
    assert len(queue.bounds) == 2
    monkeypatch.setattr(queue, "bounds", bounds := Bounds(2, 2))
    bounds.begin_with({running.id: "local", waiting.id: "local"})
    monkeypatch.setattr(queue.worker, "leave", bounds.leave)

    with pytest.raises(TooManyJobs) as caught:
        submit("third")
    assert caught.value.retry_after_s is not None
    assert submit("slow", "mine").id == running.id
    queue.cancel("local", waiting.id)
    last = submit("third")
    queue.erase("local", last.id)
    executor.released.set()
    queue.wait("local", running.id, 10)
    submit("slow", "mine")

    assert len(bounds) == 0


def test_an_unknown_job_is_said(queue: SegmentationJobs) -> None:
    """An unknown id is JobNotFound for finding and for waiting."""
    with pytest.raises(JobNotFound):
        queue.find("local", uuid.uuid4().hex)
    with pytest.raises(JobNotFound):
        queue.wait("local", "", 5)


def test_the_next_launch_finishes_what_was_left(
    service: Service, executor: FakeExecutor, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The running and the waiting job at the end of a service are finished by the next one."""
    monkeypatch.setattr(segment, "DRAIN_S", 0.2)
    identifiers = [submit(scan).id for scan in ("slow", "waits")]
    assert executor.entered.wait(10)
    service.close()
    assert executor.calls == ["slow"]
    assert all(service.state.result(identifier) is None for identifier in identifiers)

    again = service.launch()
    service.executor.released.set()

    assert [again.wait("local", identifier, 20).state for identifier in identifiers] == ["succeeded", "succeeded"]
    assert sorted(service.executor.calls) == ["slow", "waits"]
    assert all(service.state.result(identifier) is not None for identifier in identifiers)


def test_results_outlive_a_restart(service: Service, finish: Submit, executor: FakeExecutor, submit: Submit) -> None:
    """After a restart, a finished job, its key and a failure are unchanged, and nothing is computed again."""
    executor.errors["bad"] = [NonFiniteVoxels("3 of 9 voxels.")]
    before = [finish(scan, f"{scan} key") for scan in ("good", "bad")]
    assert [job.state for job in before] == ["succeeded", "failed"]
    service.close()

    again = service.launch()

    assert [again.find("local", job.id) for job in before] == before
    assert [submit(scan, f"{scan} key") for scan in ("good", "bad")] == before
    with pytest.raises(IdempotencyKeyReused):
        submit("another", "good key")
    assert service.executor.calls == []


def test_closing_lets_a_job_finish(service: Service, executor: FakeExecutor, submit: Submit) -> None:
    """A job that needs only a moment is finished before the executor is stopped."""
    job = submit("slow")
    assert executor.entered.wait(10)
    threading.Timer(0.3, executor.released.set).start()
    service.close()

    assert service.state.result(job.id) is not None
    assert not executor.ready


def test_the_database_is_kept_as_it_was_decided(queue: SegmentationJobs, finish: Submit) -> None:
    """The database has a write-ahead log, and JSON instead of pickles."""
    job = finish("good")
    with closing(sqlite3.connect(queue.state.database)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        (inputs,) = database.execute("SELECT inputs FROM workflow_input WHERE workflow_uuid = ?", (job.id,)).fetchone()

    assert json.loads(inputs)["positionalArgs"][:3] == ["local", job.scan, job.model]


def test_who_waits_is_woken_by_the_end(
    queue: SegmentationJobs, executor: FakeExecutor, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait looks at the database once while the job runs, also if others end, and a few times around its own end."""
    monkeypatch.setattr(segment, "LOOK_S", 60)
    looks: list[float] = []
    find = SegmentationJobs.find

    def count(self: SegmentationJobs, owner: str, identifier: str) -> Job:
        looks.append(time.monotonic())
        return find(self, owner, identifier)

    monkeypatch.setattr(SegmentationJobs, "find", count)
    job = submit("slow and waited for")
    assert executor.entered.wait(20)
    released: list[float] = []

    def release() -> None:
        released.append(time.monotonic())
        executor.released.set()

    for seconds in (0.1, 0.2, 0.3):
        threading.Timer(seconds, queue.ends.tell).start()
    threading.Timer(0.5, release).start()
    ended = queue.wait("local", job.id, 30)

    assert ended.state == "succeeded"
    assert time.monotonic() - released[0] < 10
    assert sum(look < released[0] for look in looks) == 1


def test_a_coroutine_waits_for_a_job_as_a_thread_does(
    queue: SegmentationJobs, executor: FakeExecutor, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets the running job after its time limit, and the finished one as soon as it has ended."""
    monkeypatch.setattr(segment, "LOOK_S", 60)
    job = submit("slow and awaited")
    assert executor.entered.wait(20)

    assert asyncio.run(queue.wait_async("local", job.id, 0.1)).state == "running"
    threading.Timer(0.3, executor.released.set).start()
    started = time.monotonic()
    assert asyncio.run(queue.wait_async("local", job.id, 30)).state == "succeeded"
    assert time.monotonic() - started < 10


def test_a_check_ends_a_wait(queue: SegmentationJobs, executor: FakeExecutor, submit: Submit) -> None:
    """The check is called before each look at the job, and whenever an end is announced."""
    job = submit("slow and given up")
    assert executor.entered.wait(20)
    closing = threading.Event()

    def check() -> None:
        if closing.is_set():
            raise InterruptedError

    def close() -> None:
        closing.set()
        queue.ends.tell()

    threading.Timer(0.2, close).start()
    with pytest.raises(InterruptedError):
        queue.wait("local", job.id, 30, check)


@pytest.mark.parametrize(
    ("look_s", "end"),
    [
        (60, lambda queue, job: queue.cancel("local", job)),
        (0.1, lambda _queue, job: DBOS.cancel_workflow(job)),
    ],
    ids=["told", "without a word, as DBOS may give one up"],
)
def test_who_waits_for_a_job_that_never_runs_does_not_wait_for_ever(
    look_s: float,
    end: Callable[[SegmentationJobs, str], object],
    queue: SegmentationJobs,
    executor: FakeExecutor,
    submit: Submit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cancellation ends a wait at once; an end without announcement is seen at the next look."""
    monkeypatch.setattr(segment, "LOOK_S", look_s)
    submit("slow before it")
    assert executor.entered.wait(20)
    job = submit("never run")
    threading.Timer(0.3, end, (queue, job.id)).start()

    started = time.monotonic()
    assert queue.wait("local", job.id, 30).state == "cancelled"
    assert time.monotonic() - started < 10


def test_urgent_jobs_overtake_those_that_wait(queue: SegmentationJobs, executor: FakeExecutor, submit: Submit) -> None:
    """Order, position and estimate follow priority, then age; the running job is not interrupted."""
    running = submit("slow")
    assert executor.entered.wait(10)
    waiting = {
        text: submit(text, priority=priority).id
        for text, priority in (("b", "background"), ("n1", "normal"), ("n2", "normal"), ("u", "urgent"))
    }
    queue.worker.seconds.clear()
    queue.worker.seconds.extend([2.0, 4.0])

    jobs = {text: queue.find("local", identifier) for text, identifier in waiting.items()}

    assert {text: job.queue_position for text, job in jobs.items()} == {"u": 1, "n1": 2, "n2": 3, "b": 4}
    assert {text: job.eta_s for text, job in jobs.items()} == {"u": 6.0, "n1": 9.0, "n2": 12.0, "b": 15.0}
    assert {text: job.priority for text, job in jobs.items()} == {
        "u": "urgent",
        "n1": "normal",
        "n2": "normal",
        "b": "background",
    }
    now = queue.find("local", running.id)
    assert (now.queue_position, now.eta_s, now.priority) == (None, 3.0, "normal")
    executor.released.set()
    assert queue.wait("local", waiting["b"], 20).state == "succeeded"
    assert executor.calls == ["slow", "u", "n1", "n2", "b"]


def test_the_first_job_has_no_estimate(queue: SegmentationJobs, executor: FakeExecutor, submit: Submit) -> None:
    """There is no estimate before a job was timed."""
    queue.worker.seconds.clear()
    running = submit("slow")
    assert executor.entered.wait(10)

    jobs = queue.find("local", running.id), submit("next")

    assert [job.eta_s for job in jobs] == [None, None]


def test_jobs_are_listed_by_state_and_owner(queue: SegmentationJobs, executor: FakeExecutor, submit: Submit) -> None:
    """A filter shows exactly the owner's jobs in that state."""
    owner = f"states-{uuid.uuid4().hex}"
    executor.errors["bad"] = [NonFiniteVoxels("3 of 9 voxels.")]
    jobs = {
        "succeeded": queue.wait(owner, submit("good", owner=owner).id, 20),
        "failed": queue.wait(owner, submit("bad", owner=owner).id, 20),
        "running": submit("slow", owner=owner),
    }
    assert executor.entered.wait(10)
    jobs["cancelled"] = queue.cancel(owner, submit("dropped", owner=owner).id)
    jobs["queued"] = submit("waits", owner=owner)

    for state, job in jobs.items():
        assert [(listed.id, listed.state) for listed in queue.page(owner, state, None, 9)] == [(job.id, state)]  # type: ignore[arg-type]
    assert len(queue.page(owner, None, None, 9)) == 5
    assert queue.page("somebody-else", None, None, 9) == []


def test_another_owners_job_is_unknown(queue: SegmentationJobs, submit: Submit) -> None:
    """Another owner's job answers like an unknown id, and is unchanged."""
    job = submit("good", "their key", owner="they")
    messages = set()
    for identifier in (job.id, uuid.uuid4().hex):
        for act in (
            lambda i: queue.find("we", i),
            lambda i: queue.wait("we", i, 1),
            lambda i: queue.cancel("we", i),
            lambda i: queue.erase("we", i),
        ):
            with pytest.raises(JobNotFound) as caught:
                act(identifier)
            messages.add(caught.value.detail)

    assert len(messages) == 1
    assert queue.wait("they", job.id, 20).state == "succeeded"
    assert submit("good", "their key", owner="we").id != job.id


def test_a_queued_job_is_cancelled(queue: SegmentationJobs, executor: FakeExecutor, submit: Submit) -> None:
    """A cancelled waiting job never begins; cancelling it again changes nothing."""
    submit("slow")
    assert executor.entered.wait(10)
    waiting = submit("waits")

    cancelled = queue.cancel("local", waiting.id)

    assert (cancelled.state, cancelled.progress, cancelled.queue_position) == ("cancelled", 0.0, None)
    assert cancelled.problem is not None
    assert cancelled.problem.type == "/problems/job-cancelled"
    assert cancelled.finished is not None
    assert queue.cancel("local", waiting.id).model_dump(exclude={"finished"}) == cancelled.model_dump(
        exclude={"finished"}
    )
    executor.released.set()
    assert queue.wait("local", submit("next").id, 20).state == "succeeded"
    assert executor.calls == ["slow", "next"]


@pytest.mark.parametrize("text", ["slow", "deaf"])
def test_a_running_job_is_cancelled(
    queue: SegmentationJobs, executor: FakeExecutor, submit: Submit, state: StateDirectory, text: str
) -> None:
    """A cancelled running job leaves nothing behind, even if its computation ignores it; the next job is computed."""
    job = submit(text)
    following = submit("next")
    assert executor.entered.wait(10)

    assert queue.cancel("local", job.id).state == "cancelled"
    if text == "deaf":
        executor.released.set()

    assert queue.wait("local", following.id, 20).state == "succeeded"
    assert queue.cancel("local", job.id).state == "cancelled"
    assert state.result(job.id) is None
    assert not (state.work / job.id).exists()
    assert queue.worker.cancelled == set()


def test_a_finished_job_cannot_be_cancelled(
    queue: SegmentationJobs, executor: FakeExecutor, finish: Submit, state: StateDirectory
) -> None:
    """A success keeps its result, a failure its problem."""
    executor.errors["bad"] = [NonFiniteVoxels("3 of 9 voxels.")]
    for text, word in (("good", "succeeded"), ("bad", "failed")):
        job = finish(text)
        with pytest.raises(JobFinished, match=f"The job has {word}"):
            queue.cancel("local", job.id)
        assert queue.find("local", job.id) == job
    assert state.result(finish("good").id) is not None


def test_a_job_that_is_cancelled_while_it_ends_ends_once(
    queue: SegmentationJobs, submit: Submit, state: StateDirectory
) -> None:
    """Answer, state and result agree, whenever the cancellation comes."""
    outcomes = set()
    for wait_ms in (*range(0, 60, 4), *range(60, 180, 20)):
        job = submit("good")
        time.sleep(wait_ms / 1000)
        try:
            answer = queue.cancel("local", job.id).state
        except JobFinished:
            answer = "succeeded"
        final = queue.wait("local", job.id, 20).state
        assert final == answer
        outcomes.add(final)
        while job.id in queue.worker.live:
            time.sleep(0.001)
        assert (state.result(job.id) is not None) == (final == "succeeded")
        assert queue.find("local", job.id).state == final

    assert outcomes == {"cancelled", "succeeded"}


def rows_of(state: StateDirectory, job: str) -> int:
    """Return how many rows of the job database mention a job."""
    with closing(sqlite3.connect(state.database)) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        with_job = [
            name
            for name in names
            if "workflow_uuid" in {column[1] for column in database.execute(f"PRAGMA table_info({name})")}
        ]
        count = "SELECT count(*) FROM {} WHERE workflow_uuid = ?"
        return sum(database.execute(count.format(name), (job,)).fetchone()[0] for name in with_job)


@pytest.mark.parametrize("when", ["queued", "running", "deaf", "succeeded", "failed", "cancelled"])
def test_an_erased_job_is_gone(
    queue: SegmentationJobs, executor: FakeExecutor, submit: Submit, state: StateDirectory, when: str
) -> None:
    """In whatever state it was, no row, file or scan remains, and its key can be used anew."""
    text, key = {"running": f"slow {when}", "deaf": f"deaf {when}"}.get(when, f"text {when}"), f"key {when}"
    executor.errors[f"text {when}"] = [NonFiniteVoxels("3 of 9 voxels.")] if when == "failed" else []
    if when in ("queued", "cancelled"):
        submit("slow")
    job = submit(text, key)
    if when in ("succeeded", "failed"):
        assert queue.wait("local", job.id, 20).state == when
    else:
        assert executor.entered.wait(10)
    if when == "cancelled":
        queue.cancel("local", job.id)
    assert rows_of(state, job.id) > 0

    queue.erase("local", job.id)

    assert not state.scan("local", job.scan).exists()
    with pytest.raises(JobNotFound):
        queue.find("local", job.id)
    with pytest.raises(JobNotFound):
        queue.erase("local", job.id)
    again = submit("another text", key)
    assert again.id == job.id
    executor.released.set()
    assert queue.wait("local", again.id, 20).state == "succeeded"
    result = state.result(again.id)
    assert result is not None
    assert (result / "mask").read_text() == "another text"
    queue.erase("local", again.id)
    assert queue.wait("local", submit("last").id, 20).state == "succeeded"
    assert rows_of(state, job.id) == 0
    assert not (state.results / job.id).exists()
    assert not (state.work / job.id).exists()


def test_a_scan_outlives_its_job_while_another_needs_it(
    queue: SegmentationJobs, finish: Submit, submit: Submit, state: StateDirectory
) -> None:
    """The owner's last job of a scan erases it; another owner's copy is another file."""
    first, second = finish("shared"), finish("shared")
    theirs = submit("shared", owner="they")

    queue.erase("local", first.id)
    assert state.scan("local", first.scan).exists()
    queue.erase("local", second.id)

    assert not state.scan("local", first.scan).exists()
    assert state.scan("they", theirs.scan).exists()
    assert queue.wait("they", theirs.id, 20).state == "succeeded"


def test_a_job_of_a_scan_that_was_erased_meanwhile_is_refused(
    queue: SegmentationJobs, finish: Submit, model: str
) -> None:
    """A job of an erased scan is ScanNotFound."""
    job = finish("fleeting")
    queue.erase("local", job.id)

    with pytest.raises(ScanNotFound, match="upload it again"):
        queue.submit(WorkflowInput("local", job.scan, model, ("mask",)))


def test_results_of_no_job_are_swept_at_launch(service: Service, finish: Submit, state: StateDirectory) -> None:
    """A launch erases results without a job and keeps those of jobs."""
    kept = finish("kept")
    orphan = state.results / uuid.uuid4().hex
    orphan.mkdir()
    (orphan / RESULT).write_text("{}")
    service.close()

    service.launch()

    assert not orphan.exists()
    assert state.result(kept.id) is not None


def test_old_jobs_are_erased_whoever_owns_them(
    queue: SegmentationJobs,
    executor: FakeExecutor,
    submit: Submit,
    state: StateDirectory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Finished jobs of all owners before a time are erased; a running job is kept."""
    theirs = queue.wait("they", submit("old", owner="they").id, 20)
    gone = queue.wait("they", submit("old", owner="they").id, 20)
    assert theirs.state in FINISHED
    running = submit("slow")
    assert executor.entered.wait(10)

    erase = SegmentationJobs.erase

    def erase_first(self: SegmentationJobs, owner: str, identifier: str) -> None:
        if identifier == gone.id:  # its owner is faster
            erase(self, owner, identifier)
        erase(self, owner, identifier)

    monkeypatch.setattr(SegmentationJobs, "erase", erase_first)
    assert queue.erase_finished(dt.datetime.now(dt.UTC) + dt.timedelta(minutes=1)) >= 2

    assert state.result(theirs.id) is None
    assert queue.find("local", running.id).state == "running"
    assert queue.count() == {"queued": 0, "running": 1}


def test_f13_an_interrupted_erasure_can_be_repeated(
    queue: SegmentationJobs, finish: Submit, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the record cannot be deleted, scan and result are gone already, and the next attempt finds the job."""
    job = finish("erased twice")

    def fail(_: str) -> None:
        raise DatabaseBusy("busy")  # noqa: EM101 - as said

    with monkeypatch.context() as patch:
        patch.setattr(DBOS, "delete_workflow", fail)
        with pytest.raises(DatabaseBusy):
            queue.erase("local", job.id)
    assert state.result(job.id) is None
    assert not state.scan("local", job.scan).exists()

    queue.erase("local", job.id)

    with pytest.raises(JobNotFound):
        queue.find("local", job.id)
