"""How much memory the check of a file may take, and a bound for all checks that run at once.

A check whose claim does not fit waits for others, in order; one that waits too long is refused, so that its client comes
again. Each process is held to its claim by the kernel (`Limits.data_bytes` of `service.intake.sandbox`): a file can lie
about its size, but not take more.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, Final

from service.errors import CalibrantError, ServiceBusy
from service.intake.dicom import part10
from service.intake.formats import archive

LEAST_BYTES: Final = 192 << 20
"""Claim of any file; formats other than DICOM are read piece by piece and need no more."""

COPIES: Final = 8
"""Times that a DICOM file may be in memory: as it came, unpacked, inflated, and its voxels."""

MOST_BYTES: Final = 8 << 30
"""Largest claim."""

DEFAULT_BYTES: Final = 4 << 30
"""Claims of all checks at once, unless a setting says otherwise."""

PATIENCE_S: Final = 20.0
"""Seconds for which a check waits for its turn."""

RETRY_AFTER_S: Final = 5.0


def claim_of(path: Path) -> int:
    """Return the bytes of memory that the check of a file may take, from its size and its first and last bytes.

    Args:
        path: a file of any content.
    """
    try:
        with path.open("rb") as file:
            largest = _largest_read_whole(file)
    except (CalibrantError, OSError):  # the check will say what is wrong
        largest = 0
    return min(LEAST_BYTES + COPIES * largest, MOST_BYTES)


def _largest_read_whole(file: BinaryIO) -> int:
    start = file.read(part10.START_BYTES)
    if part10.recognise(start):
        return file.seek(0, 2)
    return archive.largest_member(file) if archive.recognise(start) else 0


class Budget:
    """A bound for the claims of all checks at once; used on one event loop, where waiting holds no thread."""

    def __init__(self, limit: int = DEFAULT_BYTES, patience_s: float = PATIENCE_S) -> None:
        """Start with nothing claimed.

        Args:
            limit: bytes. A claim beyond it is granted when there is no other.
            patience_s: seconds that a claim waits.
        """
        self._limit = limit
        self._patience_s = patience_s
        self._claimed = 0
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def claim(self, size: int) -> AsyncIterator[None]:
        """Hold `size` bytes for as long as the block runs, after those that came before.

        Raises:
            ServiceBusy: others held too much for too long.
        """
        size = min(size, self._limit)
        await self._granted(size)
        try:
            yield
        finally:
            self._give_back(size)

    async def _granted(self, size: int) -> None:
        if not self._line and self._claimed + size <= self._limit:
            self._claimed += size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (size, turn)
        self._line.append(place)
        try:
            await asyncio.wait_for(asyncio.shield(turn), self._patience_s)
        except BaseException as error:
            if turn.done():  # granted at the very moment in which the wait ended
                self._give_back(size)
            else:
                self._line.remove(place)
                self._grant()
            if isinstance(error, TimeoutError):
                msg = "Too many scans are being checked at the moment. Send this one again in a few seconds."
                raise ServiceBusy(msg, RETRY_AFTER_S) from error
            raise

    def _give_back(self, size: int) -> None:
        self._claimed -= size
        self._grant()

    def _grant(self) -> None:
        while self._line and self._claimed + self._line[0][0] <= self._limit:
            size, turn = self._line.popleft()
            self._claimed += size
            turn.set_result(None)
