"""Looks at every job that somebody waits for or follows, once for all of them, so that a client costs next to nothing.

One look at all watched jobs is one query. Its pause grows with its duration: however many jobs are watched, looking at them
takes a small part of the time.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from anyio import CapacityLimiter, to_thread

from service.errors import JobNotFound
from service.jobs.segmentation.ends import Ends
from service.schemas import FINISHED, Job

LOOK_S: Final = 0.2
"""Least seconds between two looks at all watched jobs."""

REST: Final = 9
"""Seconds of rest for each second that a look took, up to `LONGEST_REST_S`: mostly a tenth of the time is spent on looking."""

LONGEST_REST_S: Final = 2.0
"""Most seconds between two looks, however long they take."""

RECORDING_S: Final = 0.005
"""Seconds between two looks at a job that has ended and is not yet recorded as finished."""

Look = Callable[[Collection[str]], Mapping[str, Job]]
"""Returns the jobs with these ids that exist."""


@dataclass(slots=True)
class _Watched:
    """A job and those who watch it."""

    job: Job
    watchers: int = 0
    fault: BaseException | None = None
    """Why there will be no further news."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at the next change, and then replaced."""

    def become(self, job: Job) -> None:
        """Take the job's present state, and wake the watchers if more than the estimated time has changed."""
        if job.model_copy(update={"eta_s": self.job.eta_s}) != self.job:
            self.job = job
            self._wake()

    def fail(self, fault: BaseException) -> None:
        """Let every watcher raise this."""
        self.fault = fault
        self._wake()

    def _wake(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class Watch:
    """The jobs that are watched; belongs to one event loop."""

    def __init__(self, look: Look, ends: Ends, ended: Collection[str]) -> None:
        """Prepare.

        Args:
            look: reads jobs; called in a thread of its own.
            ends: announces that some job has ended.
            ended: ids of the jobs that ended last, of which some may not be recorded as finished.
        """
        self._look = look
        self._ends = ends
        self._ended = ended
        self._watched: dict[str, _Watched] = {}
        self._task: asyncio.Task[None] | None = None
        self._came = asyncio.Event()
        self._thread = CapacityLimiter(1)  # not one of those that serve requests: these may all be busy

    async def changes(self, job: Job) -> AsyncGenerator[Job]:
        """Yield the job as it is and after each change, until it has finished.

        Raises:
            JobNotFound: it was erased meanwhile.
        """
        with self._entry(job) as entry:
            while True:
                changed = entry.changed
                if entry.fault is not None:
                    raise entry.fault
                yield entry.job
                if entry.job.state in FINISHED:
                    return
                await changed.wait()

    async def until_finished(self, job: Job, seconds: float) -> Job:
        """Return the job once it has finished, or as it stands after this many seconds.

        Raises:
            JobNotFound: it was erased meanwhile.
        """
        with self._entry(job) as entry, suppress(TimeoutError):
            async with asyncio.timeout(None if math.isinf(seconds) else seconds):
                while entry.fault is None and entry.job.state not in FINISHED:
                    await entry.changed.wait()
        if entry.fault is not None:
            raise entry.fault
        return entry.job

    @contextmanager
    def _entry(self, job: Job) -> Iterator[_Watched]:
        """Watch a job as long as the context lasts."""
        entry = self._watched.get(job.id) if job.state not in FINISHED else None
        if entry is None:
            entry = _Watched(job)
            if job.state not in FINISHED:
                self._watched[job.id] = entry
                self._begin()
        entry.watchers += 1
        try:
            yield entry
        finally:
            entry.watchers -= 1
            if not entry.watchers and self._watched.get(job.id) is entry:
                del self._watched[job.id]

    def _begin(self) -> None:
        if self._task is None or self._task.done():
            # A task that ended with its event loop leaves an event that belongs to that loop.
            self._came = asyncio.Event()
            self._task = asyncio.create_task(self._run(), name="watch of the jobs")
        self._came.set()

    async def _run(self) -> None:
        """Look at the watched jobs until none is left."""
        due = 0.0
        while self._watched:
            ended: asyncio.Future[Any] = asyncio.wrap_future(self._ends.next)
            self._came.clear()
            now = time.monotonic()
            recording = [identifier for identifier in self._ended if identifier in self._watched]
            if identifiers := list(self._watched) if now >= due else recording:
                await self._look_at(identifiers)
                took = time.monotonic() - now
                if now >= due:
                    due = now + took + min(max(LOOK_S, REST * took), LONGEST_REST_S)
            pause = RECORDING_S if recording else due - time.monotonic()
            came: asyncio.Future[Any] = asyncio.create_task(self._came.wait())
            await asyncio.wait([ended, came], timeout=max(pause, 0), return_when=asyncio.FIRST_COMPLETED)
            came.cancel()
            ended.cancel()

    async def _look_at(self, identifiers: Collection[str]) -> None:
        watched = {identifier: self._watched[identifier] for identifier in identifiers}
        try:
            jobs = await to_thread.run_sync(self._look, identifiers, limiter=self._thread)
        except Exception as fault:  # noqa: BLE001 - it belongs to those who wait, as if each had looked alone
            for identifier, entry in watched.items():
                self._drop(identifier, entry)
                entry.fail(fault)
            return
        for identifier, entry in watched.items():
            job = jobs.get(identifier)
            if job is None:
                self._drop(identifier, entry)
                entry.fail(JobNotFound("No segmentation has this id. It may have been deleted."))
                continue
            if job.state in FINISHED:
                self._drop(identifier, entry)
            entry.become(job)

    def _drop(self, identifier: str, entry: _Watched) -> None:
        if self._watched.get(identifier) is entry:
            del self._watched[identifier]
