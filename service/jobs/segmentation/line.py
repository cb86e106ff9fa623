"""The jobs that wait or run, in their order: read from the database at most once a second, and shared by everyone who asks.

A short line is read again whenever it has changed. What joins or leaves a long one is counted until its next reading.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from service.jobs.table import STARTED, WAITING, JobTable

FRESH_S: Final = 1.0
"""Seconds for which a reading is used."""

SHORT: Final = 200
"""Jobs up to which a line is read again as soon as it has changed, which takes a millisecond."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The line at a moment.

    Args:
        at: `time.monotonic()` of its beginning.
        changes: how many changes had been noted by then.
        started: jobs that have left the queue and not ended.
        waiting: place of each job that waits, from 0 on.
        ahead: for each priority, how many wait with this one or a more urgent one.
    """

    at: float = float("-inf")
    changes: int = 0
    started: tuple[str, ...] = ()
    waiting: dict[str, int] = field(default_factory=dict)
    ahead: dict[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.started) + len(self.waiting)


class Line:
    """The unfinished jobs of one queue."""

    def __init__(self, table: JobTable, queue: str, priorities: Sequence[int]) -> None:
        """Take the table, and the priorities of the queue, the most urgent first."""
        self._table = table
        self._queue = queue
        self._priorities = priorities
        self._reading = Reading()
        self._turn = threading.Lock()
        self._noting = threading.Lock()
        self._changes = 0
        self._joined: dict[str, tuple[int, int]] = {}
        self._left: dict[str, int] = {}

    def join(self, identifier: str, priority: int) -> None:
        """Note that a job was put into the queue."""
        with self._noting:
            self._changes += 1
            self._joined[identifier] = self._changes, priority

    def leave(self, identifier: str) -> None:
        """Note that a job has ended, was cancelled or erased, or that its status has changed."""
        with self._noting:
            self._changes += 1
            self._left[identifier] = self._changes
            self._joined.pop(identifier, None)

    @property
    def reading(self) -> Reading:
        """The line as it is, or as it was at most a second ago."""
        if not self.is_fresh:
            with self._turn:
                if not self.is_fresh:
                    self._read()
        return self._reading

    @property
    def is_fresh(self) -> bool:
        """Whether `reading` needs no look at the database."""
        reading = self._reading
        if time.monotonic() - reading.at > FRESH_S:
            return False
        return len(reading) > SHORT or reading.changes == self._changes

    def status_of(self, identifier: str) -> str | None:
        """Return the status that a job had at the last reading; None if only the database knows."""
        reading = self.reading
        if identifier in self._left:
            return None
        if identifier in reading.waiting:
            return WAITING
        return STARTED if identifier in reading.started else None

    def ahead_of(self, identifier: str, priority: int, runs: Callable[[str], bool]) -> int:
        """Return how many jobs are computed or wait before one that waits.

        Args:
            identifier: of the job.
            priority: of the job.
            runs: whether a job that has left the queue is computed; such a one may still wait.
        """
        reading = self.reading
        started = sorted(reading.started, key=lambda other: not runs(other))
        if identifier in started:
            return started.index(identifier)
        place = reading.waiting.get(identifier)
        if place is None:
            joined = list(self._joined.items())
            number = self._joined.get(identifier, (self._changes, priority))[0]
            place = reading.ahead.get(priority, 0)
            place += sum(other != identifier and n < number and p <= priority for other, (n, p) in joined)
        return len(started) + place

    def _read(self) -> None:
        at, changes = time.monotonic(), self._changes
        # A job that leaves the queue between the two is in both rather than in neither.
        waiting = self._table.in_queue(self._queue, WAITING)
        started = [identifier for identifier, _ in self._table.in_queue(self._queue, STARTED)]
        left = set(started)
        waiting = [row for row in waiting if row[0] not in left]
        ahead = {p: sum(priority <= p for _, priority in waiting) for p in self._priorities}
        places = {identifier: n for n, (identifier, _) in enumerate(waiting)}
        with self._noting:
            self._joined = {k: v for k, v in self._joined.items() if v[0] > changes}
            self._left = {k: n for k, n in self._left.items() if n > changes}
            self._reading = Reading(at, changes, tuple(started), places, ahead)
