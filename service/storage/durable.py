"""Durable writes: bytes are on the disk, not just in a cache, before the function returns."""

import os
from pathlib import Path


def write_durably(path: Path, content: bytes) -> None:
    """Write a file, flush it to the disk, then flush its entry in the folder."""
    path.write_bytes(content)
    sync_file(path)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Flush a file's bytes to the disk, but not its entry in the folder."""
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
