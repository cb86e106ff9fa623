"""Wakes whoever waits for a job when one ends, so that waiting needs no polling of the database."""

import threading
from concurrent.futures import Future


class Ends:
    """Announces each end of a job to every thread and coroutine that waits."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._next = _uncancellable()

    @property
    def next(self) -> "Future[None]":
        """Future that is done once the next job has ended; take it before looking at the job, to miss no end."""
        with self._turn:
            return self._next

    def tell(self) -> None:
        """Wake everyone who waits: some job has ended."""
        with self._turn:
            ended, self._next = self._next, _uncancellable()
        ended.set_result(None)


def _uncancellable() -> "Future[None]":
    # A coroutine that gives up waiting cancels its future; this one is shared with others, and running ones stay.
    future: Future[None] = Future()
    future.set_running_or_notify_cancel()
    return future
