"""Wakes those who wait for a job when one ends, so that nobody has to look at the database over and over."""

import threading


class Ends:
    """Counts what has ended in this process; several threads may wait, any may tell."""

    def __init__(self) -> None:
        """Begin with none."""
        self._changed = threading.Condition()
        self._count = 0

    @property
    def count(self) -> int:
        """How many ends were told so far."""
        return self._count

    def tell(self) -> None:
        """Wake everybody who waits: some job has ended."""
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def wait(self, seen: int, seconds: float) -> None:
        """Return once more ends were told than were seen, or after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._count != seen, seconds)
