import asyncio
import datetime as dt
import threading
from collections import deque
from collections.abc import Collection
from typing import Any

import pytest
from anyio.to_thread import current_default_thread_limiter

from service.errors import JobNotFound
from service.jobs.segmentation.ends import Ends
from service.jobs.segmentation.watch import Watch
from service.schemas import Job, Links, State


def job(identifier: str, state: State = "queued", **changes: Any) -> Job:  # noqa: ANN401 - fields of several types
    """Return a job in a state."""
    return Job(
        id=identifier,
        state=state,
        model="tiny@1",
        scan="0" * 64,
        priority="normal",
        outputs=[],
        created=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        finished=None,
        attempts=0,
        progress=0,
        seconds={},
        links=Links(self=f"/v1/segmentations/{identifier}"),
        **{"queue_position": None, "eta_s": None, "device": None, "stage": None, "problem": None} | changes,
    )


class Jobs:
    """Jobs in memory, and how often they were looked at."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs = {one.id: one for one in jobs}
        self.looks: list[int] = []
        self.ends, self.ended = Ends(), deque[str]()
        self.watch = Watch(self.look, self.ends, self.ended)

    def look(self, identifiers: Collection[str]) -> dict[str, Job]:
        """Return the jobs with these ids, and note how many were asked for."""
        assert threading.current_thread() is not threading.main_thread()
        self.looks.append(len(identifiers))
        return {identifier: self.jobs[identifier] for identifier in identifiers if identifier in self.jobs}

    def finish(self, identifier: str) -> None:
        """End a job as the worker does."""
        self.jobs[identifier] = job(identifier, "succeeded")
        self.ended.append(identifier)
        self.ends.tell()


def test_f3_waiting_holds_no_thread_and_costs_one_look_for_all() -> None:
    """Two hundred clients wait for ten jobs: no thread of the pool is taken, and each look serves all of them."""
    jobs = Jobs(*(job(f"{n}") for n in range(10)))

    async def wait() -> list[Job]:
        waiting = [asyncio.create_task(jobs.watch.until_finished(jobs.jobs[f"{n % 10}"], 30)) for n in range(200)]
        await asyncio.sleep(0.5)
        assert current_default_thread_limiter().borrowed_tokens == 0
        for n in range(10):
            jobs.finish(f"{n}")
        return await asyncio.gather(*waiting)

    assert {one.state for one in asyncio.run(wait())} == {"succeeded"}
    assert len(jobs.looks) < 20
    assert max(jobs.looks) == 10


def test_a_change_of_the_estimate_alone_is_no_news() -> None:
    """Those who follow a job see each state once, however often it was looked at."""
    jobs = Jobs(job("a", eta_s=9.0))

    async def follow() -> list[str]:
        seen: list[str] = []
        async for one in jobs.watch.changes(jobs.jobs["a"]):
            seen.append(one.state)
            if one.state == "queued":
                jobs.jobs["a"] = job("a", eta_s=8.0)
                await asyncio.sleep(0.5)
                jobs.jobs["a"] = job("a", "running", eta_s=7.0)
            else:
                jobs.finish("a")
        return seen

    assert asyncio.run(follow()) == ["queued", "running", "succeeded"]


def test_a_wait_ends_after_its_seconds() -> None:
    """A job that does not finish is returned as it stands, and is then no longer looked at."""
    jobs = Jobs(job("a"))

    async def wait() -> Job:
        one = await jobs.watch.until_finished(jobs.jobs["a"], 0.05)
        await asyncio.sleep(0.5)
        return one

    assert asyncio.run(wait()).state == "queued"
    assert len(jobs.looks) <= 2


def test_a_finished_job_is_returned_without_a_look() -> None:
    """There is nothing to wait for."""
    jobs = Jobs()

    assert asyncio.run(jobs.watch.until_finished(job("a", "failed"), 9)).state == "failed"
    assert jobs.looks == []


@pytest.mark.parametrize("fault", [JobNotFound, OSError])
def test_whoever_waits_is_told_that_there_is_no_news(fault: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """An erased job, or a database that fails, ends every wait with that error."""
    jobs = Jobs()

    def fail(_: Collection[str]) -> dict[str, Job]:
        raise OSError

    if fault is OSError:
        monkeypatch.setattr(jobs.watch, "_look", fail)

    async def wait() -> list[Any]:
        waits = [jobs.watch.until_finished(job("a"), 9) for _ in range(3)]
        return await asyncio.gather(*waits, return_exceptions=True)

    assert [type(one) for one in asyncio.run(wait())] == [fault] * 3
