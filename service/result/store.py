"""Write the files of a result durably into a folder; `result.json`, which describes them, comes last."""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from service.result.files import RESULT
from service.schemas import CaseResult
from service.storage.durable import sync_file, sync_folder, write_durably


class Store:
    """Writes files into a folder; a large file can be started early and is written while computation goes on."""

    def __init__(self, folder: Path) -> None:
        """Start without files.

        Args:
            folder: for the files; it exists.
        """
        self._folder = folder
        self._writer = ThreadPoolExecutor(1, "calibrant-store")
        self._started: dict[str, Future[str]] = {}

    def __enter__(self) -> Self:
        """Return this."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Wait for files that were started: afterwards nothing writes into the folder."""
        self._writer.shutdown(cancel_futures=True)

    def begin(self, name: str, pieces: Iterable[bytes]) -> None:
        """Start writing a file in a thread, which also iterates over its pieces."""
        self._started[name] = self._writer.submit(self._write_through, name, pieces)

    def finish(self, files: Mapping[str, Iterable[bytes]]) -> dict[str, str]:
        """Write the other files, flush all files and their folder, and return the SHA-256 of each file by name.

        Args:
            files: pieces of each file, by name.

        Raises:
            OSError: a file could not be written, whether here or started before.
        """
        hashes = {name: self._write(name, pieces) for name, pieces in files.items()}
        hashes |= {name: started.result() for name, started in self._started.items()}
        # All are written before the first is flushed: one flush usually takes the other files along.
        for name in files:
            sync_file(self._folder / name)
        sync_folder(self._folder)
        return hashes

    def _write_through(self, name: str, pieces: Iterable[bytes]) -> str:
        digest = self._write(name, pieces)
        sync_file(self._folder / name)
        return digest

    def _write(self, name: str, pieces: Iterable[bytes]) -> str:
        digest = hashlib.sha256()
        with (self._folder / name).open("wb") as file:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
        return digest.hexdigest()


def complete(folder: Path, result: CaseResult) -> CaseResult:
    """Write `result.json`, which makes the folder a complete result, and return the result."""
    write_durably(folder / RESULT, result.model_dump_json(indent=2).encode())
    return result
