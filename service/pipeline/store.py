"""Files of a result -> a folder, durably; the result's own description comes last."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from service.schemas import CaseResult
from service.storage.durable import sync_folder, write_durably, write_flushed
from service.storage.local import RESULT


def write_files(folder: Path, files: Mapping[str, Iterable[bytes]]) -> dict[str, str]:
    """Write each file, flush the folder once they are all there, and return each one's SHA-256 by name.

    Args:
        folder: that holds them.
        files: pieces of each, by name.
    """
    hashes = {}
    for name, pieces in files.items():
        digest = hashlib.sha256()
        write_flushed(folder / name, _counted(pieces, digest))
        hashes[name] = digest.hexdigest()
    sync_folder(folder)
    return hashes


def complete(folder: Path, result: CaseResult) -> None:
    """Write `result.json`: from here on the folder holds a result."""
    write_durably(folder / RESULT, result.model_dump_json(indent=2).encode())


def _counted(pieces: Iterable[bytes], digest: "hashlib._Hash") -> Iterator[bytes]:
    for piece in pieces:
        digest.update(piece)
        yield piece
