"""Knows whether a job could be accepted, run and published now: looks at disk and database every few seconds.

What fails is noted at once; whoever can wait, waits here until it works again, and an acknowledged job always can.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

from service.errors import CalibrantError
from service.jobs.database import JobDatabase
from service.storage.room import Room

log = structlog.get_logger(__name__)

EVERY_S: Final = 2.0
"""Seconds between two looks."""

AGAIN_S: Final = 0.5
"""The same, while something fails."""


class Guard:
    """Looks at the disk and the database in a thread of its own."""

    def __init__(self, room: Room, database: JobDatabase) -> None:
        self.room: Final = room
        self._database = database
        self._trouble: CalibrantError | None = None
        self._look = threading.Event()
        self._changed = threading.Condition()
        self._ended = False
        self._looks = 0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Look now, and then periodically."""
        self._ended = False
        self.room.restore_reserve()
        self._thread = threading.Thread(target=self._run, name="calibrant-guard", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the looks and every wait."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._look.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def trouble(self) -> CalibrantError | None:
        """What failed at the last look; None if nothing did."""
        return self._trouble

    def reject(self) -> None:
        """Refuse what would need disk and database, while one of them fails.

        Raises:
            CalibrantError: what the last look found.
        """
        if (trouble := self._trouble) is not None:
            raise type(trouble)(trouble.detail)

    def note(self, trouble: CalibrantError) -> None:
        """Take note of something that has just failed, and look whether it still does."""
        with self._changed:
            self._trouble = trouble
        self._look.set()

    def await_repair(self, give_up: Callable[[], None] = lambda: None) -> bool:
        """Wait until a look from now on finds nothing wrong; return whether it did, rather than that the service ends.

        Args:
            give_up: called twice a second; it ends the wait by raising.
        """
        first = self._looks + 1
        self._look.set()
        while True:
            give_up()
            with self._changed:
                if self._ended:
                    return False
                if self._looks > first and self._trouble is None:
                    return True
                self._changed.wait(AGAIN_S)
            self._look.set()

    def pause(self, seconds: float, give_up: Callable[[], None]) -> bool:
        """Wait so many seconds; return whether the service goes on.

        Args:
            seconds: to wait.
            give_up: called twice a second; it ends the wait by raising.
        """
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0 and not self._ended:
            give_up()
            with self._changed:
                self._changed.wait(min(left, AGAIN_S))
        return not self._ended

    def _run(self) -> None:
        while not self._ended:
            self._look.clear()
            trouble = self._found()
            with self._changed:
                if (trouble is None) != (self._trouble is None) or self._looks == 0:
                    _say(trouble)
                self._trouble = trouble
                self._looks += 1
                self._changed.notify_all()
            if trouble is None:
                self.room.restore_reserve()
                self._database.tidy()
            self._look.wait(EVERY_S if trouble is None else AGAIN_S)
            if self._look.is_set() and not self._ended:
                time.sleep(AGAIN_S / 5)  # many may ask at once

    def _found(self) -> CalibrantError | None:
        return self.room.trouble() or self._database.trouble()


def _say(trouble: CalibrantError | None) -> None:
    if trouble is None:
        log.info("jobs can be accepted")
    else:
        log.error("no job can be accepted", problem=trouble.code)
