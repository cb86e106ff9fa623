"""How many unfinished jobs there may be, of an owner and in all, and when there will be room for another."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from service.errors import ServiceBusy, TooManyJobs

GUESSED_S: Final = 10.0
"""Seconds that a job is taken to need before any was timed."""

LONGEST_S: Final = 3600.0
"""Most seconds after which a refused caller is told to come back."""


class Bounds:
    """The unfinished jobs by owner, in the order of their creation; whoever calls it holds a lock."""

    def __init__(self, per_owner: int, in_all: int) -> None:
        """Prepare.

        Args:
            per_owner: most unfinished jobs of one owner.
            in_all: most unfinished jobs of all owners.
        """
        self._per_owner = per_owner
        self._in_all = in_all
        self._owners: dict[str, str] = {}
        self._numbers: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._owners)

    def join(self, identifier: str, owner: str) -> None:
        """Count a job; one that is counted already makes no difference."""
        if identifier not in self._owners:
            self._owners[identifier] = owner
            self._numbers[owner] += 1

    def leave(self, identifier: str) -> None:
        """Count a job no longer: it has finished or was erased."""
        owner = self._owners.pop(identifier, None)
        if owner is not None:
            self._numbers[owner] -= 1

    def begin_with(self, owners: Mapping[str, str]) -> None:
        """Count the jobs of an earlier process, by their ids."""
        for identifier, owner in owners.items():
            self.join(identifier, owner)

    def reject_full(self, owner: str, seconds_per_job: Callable[[], float | None]) -> None:
        """Refuse another job if there is no room for it.

        Args:
            owner: whose job it is.
            seconds_per_job: returns the seconds between the ends of two jobs, as they were measured; None before any was.

        Raises:
            TooManyJobs: the owner has as many as are allowed.
            ServiceBusy: all owners together have.
        """
        if self._numbers[owner] >= self._per_owner:
            ahead = next((n for n, other in enumerate(self._owners.values(), 1) if other == owner), 1)
            msg = f"{self._numbers[owner]} of your jobs have not finished, as many as one owner may have. Send the scan again after the seconds of Retry-After, when the next one has."
            raise TooManyJobs(msg, self._seconds(ahead, seconds_per_job))
        if len(self._owners) >= self._in_all:
            msg = f"The service holds {len(self._owners)} unfinished jobs, as many as it may. Send the scan again after the seconds of Retry-After."
            raise ServiceBusy(msg, self._seconds(1, seconds_per_job))

    @staticmethod
    def _seconds(jobs: int, seconds_per_job: Callable[[], float | None]) -> int:
        """Return the whole seconds until so many jobs have ended."""
        return math.ceil(min(jobs * (seconds_per_job() or GUESSED_S), LONGEST_S)) or 1
