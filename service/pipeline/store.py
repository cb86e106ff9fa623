"""Files of a result -> a folder, durably: every byte is on the disk before the result says that it exists."""

import hashlib
import os
from pathlib import Path

RESULT = "result.json"
"""The file that is written last: a folder without it holds no result."""


def write_files(folder: Path, files: dict[str, bytes]) -> dict[str, str]:
    """Write and fsync each file and return its SHA-256 by name."""
    for name, content in files.items():
        write_durably(folder / name, content)
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def write_durably(path: Path, content: bytes) -> None:
    """Write a file, flush it to the disk, then flush the entry in its folder."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
