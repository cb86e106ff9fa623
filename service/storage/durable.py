"""Bytes that are on the disk, not only in its cache, before anybody says that they exist."""

import os
from collections.abc import Iterable
from pathlib import Path


def write_durably(path: Path, content: bytes) -> None:
    """Write a file, flush it to the disk, then flush the entry in its folder."""
    write_flushed(path, [content])
    sync_folder(path.parent)


def write_flushed(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file and flush it to the disk, without the entry in its folder: of several files `sync_folder` does it once."""
    with path.open("wb") as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
