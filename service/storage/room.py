"""The room on the disk of the state directory: what must stay free, a reserve that erasing may use up, and a trial of writing.

    reserve     a file of bytes that mean nothing; it is given up so that erasing works on a full disk

While less is free than the reserve is large, uploads are refused: the rest is for the results of jobs that were accepted.
"""

import os
import shutil
from contextlib import suppress
from typing import Final

from service.errors import CalibrantError, StorageFault, StorageFull
from service.storage.durable import sync_folder, write_durably
from service.storage.faults import storage_error_of
from service.storage.local import StateDirectory

RESERVE: Final = "reserve"
_TRIAL: Final = "trial"


class Room:
    """Looks after the disk under one state directory."""

    def __init__(self, state: StateDirectory) -> None:
        self._state = state
        self._reserve = state.root / RESERVE
        self._identity = self._inodes()

    def trouble(self) -> CalibrantError | None:
        """Return why nothing could be accepted and published now, None if it could; a trial writes a small file durably."""
        try:
            if self._inodes() != self._identity:
                return StorageFault("The state directory was emptied or replaced under the service. Restart it.")
            trial = self._state.incoming / _TRIAL
            write_durably(trial, b"calibrant")
            trial.unlink()
            self._state.reject_full()
        except StorageFull as error:
            return error
        except OSError as error:
            return storage_error_of(error) or StorageFault(f"The state directory cannot be used ({error.strerror}).")
        return None

    def give_up_reserve(self) -> None:
        """Free the reserve if the disk is almost full, for something that makes room."""
        with suppress(OSError):
            if shutil.disk_usage(self._state.root).free < self._state.least_free_bytes:
                self._reserve.unlink(missing_ok=True)
                sync_folder(self._state.root)

    def restore_reserve(self) -> None:
        """Allocate the reserve if it is missing and the disk has room for it."""
        size = self._state.least_free_bytes
        with suppress(OSError):
            if size and not self._reserve.exists() and shutil.disk_usage(self._state.root).free > 3 * size:
                descriptor = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.posix_fallocate(descriptor, 0, size)
                finally:
                    os.close(descriptor)

    def _inodes(self) -> list[tuple[int, int]]:
        """Return what identifies the directory and what must stay in it; a missing part is an OSError."""
        state = self._state
        parts = (state.root, state.lock, state.scans, state.work, state.results, state.incoming)
        found = [path.stat() for path in (*parts, *([state.database] if state.database.exists() else []))]
        return [(one.st_dev, one.st_ino) for one in found]
