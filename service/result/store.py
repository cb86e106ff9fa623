"""Files of a result -> a folder, durably; the result's own description comes last."""

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
    """Writes files into a folder; a large one may begin early, beside what is computed meanwhile."""

    def __init__(self, folder: Path) -> None:
        """Begin without a file.

        Args:
            folder: that is to hold them.
        """
        self._folder = folder
        self._beside = ThreadPoolExecutor(1, "calibrant-store")
        self._begun: dict[str, Future[str]] = {}

    def __enter__(self) -> Self:
        """Return this."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Wait for what was begun: nobody writes into the folder afterwards."""
        self._beside.shutdown(cancel_futures=True)

    def begin(self, name: str, pieces: Iterable[bytes]) -> None:
        """Write a file in a thread, whose pieces are made there, too."""
        self._begun[name] = self._beside.submit(self._write_through, name, pieces)

    def finish(self, files: Mapping[str, Iterable[bytes]]) -> dict[str, str]:
        """Write the other files, flush all of them and then their folder, and return each one's SHA-256 by name.

        Args:
            files: pieces of each, by name.

        Raises:
            OSError: one could not be written, those that were begun among them.
        """
        hashes = {name: self._write(name, pieces) for name, pieces in files.items()}
        hashes |= {name: begun.result() for name, begun in self._begun.items()}
        # One after the other would make the disk wait for itself: what is flushed first mostly takes the rest along.
        for name in files:
            sync_file(self._folder / name)
        sync_folder(self._folder)
        return hashes

    def _write_through(self, name: str, pieces: Iterable[bytes]) -> str:
        found = self._write(name, pieces)
        sync_file(self._folder / name)
        return found

    def _write(self, name: str, pieces: Iterable[bytes]) -> str:
        digest = hashlib.sha256()
        with (self._folder / name).open("wb") as file:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
        return digest.hexdigest()


def complete(folder: Path, result: CaseResult) -> None:
    """Write `result.json`: from here on the folder holds a result."""
    write_durably(folder / RESULT, result.model_dump_json(indent=2).encode())
