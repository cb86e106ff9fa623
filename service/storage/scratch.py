"""A temporary folder for this process and its children that is gone after them, however they end.

    <temporary folder of the system>/calibrant-<random>/    sockets of multiprocessing, series on their way
        lock                                                locked by the process as long as it lives

A process that is killed removes nothing: the next one removes the folders whose locks nobody holds.
"""

import atexit
import fcntl
import multiprocessing
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

PREFIX: Final = "calibrant-scratch-"
_LOCK: Final = "lock"
_KEY: Final = "tempdir"


def scratch() -> Path:
    """Return the folder of this process, or that of its parent if it was made by then."""
    # multiprocessing would make one of its own here, and leave it if the process is killed.
    config: dict[str, object] = multiprocessing.current_process()._config  # type: ignore[attr-defined]  # noqa: SLF001
    if _KEY not in config or not Path(str(config[_KEY])).is_dir():
        _remove_abandoned()
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        config[_KEY] = str(folder)
        atexit.register(remove_scratch)
    return Path(str(config[_KEY]))


def remove_scratch() -> None:
    """Remove the folder of this process; nothing may need it any more. A child leaves its parent's alone."""
    config: dict[str, object] = multiprocessing.current_process()._config  # type: ignore[attr-defined]  # noqa: SLF001
    if _KEY in config and multiprocessing.parent_process() is None:
        shutil.rmtree(str(config.pop(_KEY)), ignore_errors=True)


def _remove_abandoned() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # it belongs to somebody else, or is being made or removed
            if folder.stat().st_uid != os.getuid():
                continue
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
