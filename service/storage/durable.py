"""Bytes that are on the disk, not only in its cache, before anybody says that they exist."""

import os
from pathlib import Path


def write_durably(path: Path, content: bytes) -> None:
    """Write a file, flush it to the disk, then flush the entry in its folder."""
    path.write_bytes(content)
    sync_file(path)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Flush a file's bytes to the disk, without the entry in its folder."""
    _sync(path, os.O_RDONLY)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
