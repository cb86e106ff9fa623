"""A circuit breaker: a PACS that keeps failing is not contacted for a while, then by one job only."""

import threading
import time
from collections.abc import Callable
from typing import Final, Literal

FAILURES: Final = 5
"""Number of failures in a row that opens the circuit."""

PAUSE_S: Final = 30.0
"""Seconds without requests after the circuit has opened."""


class Breaker:
    """The circuit of one PACS, shared by all jobs."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._turn = threading.Lock()
        self._failures = 0
        self._open_until = 0.0

    @property
    def state(self) -> Literal["closed", "open"]:
        """closed: requests are allowed; open: they must wait."""
        return "open" if self._failures >= FAILURES else "closed"

    def seconds_to_wait(self) -> float:
        """Return how long a job must wait before its next request.

        With an open circuit, the first caller after the pause gets 0 and may try; the others wait for another pause.
        """
        with self._turn:
            if self._failures < FAILURES:
                return 0.0
            now = self._now()
            if now < self._open_until:
                return self._open_until - now
            self._open_until = now + PAUSE_S  # if this job vanishes, another may try after the pause
            return 0.0

    def succeeded(self) -> None:
        """Close the circuit."""
        with self._turn:
            self._failures = 0

    def failed(self) -> None:
        """Count a failure; the fifth in a row opens the circuit, and each further one prolongs the pause."""
        with self._turn:
            self._failures += 1
            if self._failures >= FAILURES:
                self._open_until = self._now() + PAUSE_S
