"""How many uploads, and how many bytes of them, may be on their way at a time, of an owner and in all.

An upload takes its place by the length that it announces, before a byte of it is read; one that announces none takes more
as it arrives.
"""

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Self

from service.errors import ServiceBusy, TooManyUploads
from service.settings import Settings

GUESSED_S: Final = 1.0
"""Seconds that an upload is taken to need before any was timed."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """Bounds of what is on its way: a number of uploads, and bytes. A single upload always has room."""

    uploads: int
    bytes: int


@dataclass(slots=True)
class _Load:
    """What is on its way, of one owner or of all."""

    uploads: int = 0
    bytes: int = 0

    def exceeds(self, room: Allowance, number: int) -> bool:
        """Return whether so many more bytes, of one more upload or of one that counts already, are too many."""
        return self.uploads > room.uploads or (self.uploads > 1 and self.bytes + number > room.bytes)


@dataclass(slots=True)
class Admitted:
    """The place of one upload."""

    flight: "UploadsInFlight"
    owner: str
    taken: int
    """Bytes that count as on their way."""

    def grow(self, received: int) -> None:
        """Count the bytes that have arrived beyond what was announced.

        Raises:
            TooManyUploads, ServiceBusy: there is no room for them.
        """
        if received > self.taken:
            self.flight.take(self.owner, received - self.taken)
            self.taken = received


@dataclass(slots=True)
class UploadsInFlight:
    """The uploads of one application; used on its event loop only.

    Args:
        per_owner: bounds of one owner.
        in_all: bounds of all owners.
    """

    per_owner: Allowance
    in_all: Allowance
    _owners: dict[str, _Load] = field(default_factory=dict)
    _all: _Load = field(default_factory=_Load)
    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=20))

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return an application's bounds."""
        return cls(
            Allowance(settings.max_uploads_per_owner, settings.max_upload_bytes_per_owner),
            Allowance(settings.max_uploads, settings.max_upload_bytes_in_all),
        )

    @contextmanager
    def admit(self, owner: str, announced: int) -> Iterator[Admitted]:
        """Give an upload its place as long as the context lasts.

        Args:
            owner: whose it is.
            announced: bytes of its Content-Length; 0 if there is none.

        Raises:
            TooManyUploads: the owner has as many on their way as are allowed.
            ServiceBusy: all owners together have.
        """
        load = self._owners.setdefault(owner, _Load())
        started = time.monotonic()
        place = Admitted(self, owner, 0)
        for one in (load, self._all):
            one.uploads += 1
        try:
            self.take(owner, announced)
            place.taken = announced
            yield place
            self._seconds.append(time.monotonic() - started)
        finally:
            for one in (load, self._all):
                one.uploads -= 1
                one.bytes -= place.taken
            if not load.uploads:
                self._owners.pop(owner, None)

    def take(self, owner: str, number: int) -> None:
        """Count more bytes of an owner as on their way.

        Raises:
            TooManyUploads, ServiceBusy: there is no room for them.
        """
        load = self._owners[owner]
        if load.exceeds(self.per_owner, number):
            msg = f"{load.uploads - 1} of your uploads are on their way, with as many uploads or bytes as one owner may have. Send the scan again after the seconds of Retry-After."
            raise TooManyUploads(msg, self._retry_after_s(load))
        if self._all.exceeds(self.in_all, number):
            msg = (
                "The service receives as many uploads as it may. Send the scan again after the seconds of Retry-After."
            )
            raise ServiceBusy(msg, self._retry_after_s(self._all))
        for one in (load, self._all):
            one.bytes += number

    def _retry_after_s(self, load: _Load) -> int:
        """Return the whole seconds after which one of the uploads is likely to have ended."""
        mean_s = sum(self._seconds) / len(self._seconds) if self._seconds else GUESSED_S
        return math.ceil(mean_s / max(load.uploads - 1, 1)) or 1
