"""The log of a batch: one JSON line in `OUT/logs/` for every finished case, never changed afterwards.

A line is written and flushed to the disk after the files that it names, so that a case with a line is done; a line that a
kill left incomplete is ignored. Each shard of a batch writes its own log; all logs are read together.
"""

import datetime as dt
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from service import __version__
from service.commands.batch.case import sha256_of
from service.errors import DecoderCrashed, DecoderDeadline, ScanError, SettingsError, from_code
from service.schemas import Problem, StatementStatus
from service.storage.durable import sync_folder

FOLDER: Final = "logs"


class Line(BaseModel):
    """A finished case."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    case: str
    """Id of the case."""
    key: str
    """SHA-256 over input, model and options: the same key is the same work."""
    input_sha256: str
    model: str
    """name@sha256 of the bundle."""
    state: Literal["succeeded", "failed"]
    attempt: int
    """1, or more after failures."""
    finished: dt.datetime
    seconds: float
    """From reading the scan to writing the last result."""
    version: str = __version__
    """Version of this software."""
    files: dict[str, str] = {}
    """SHA-256 by path below the batch's folder."""
    sidecar: str = ""
    """Path, among `files`, of the one that holds the summary."""
    statement: StatementStatus | None = None
    """Verdict on the answer; null for a case that failed."""
    dsc: dict[str, float | None] | None = None
    """Dice coefficient by structure, if there is a reference; null for a structure that neither of the two has."""
    note: str = ""
    """Why there is no `dsc` although there is a reference."""
    problem: Problem | None = None

    @property
    def is_final(self) -> bool:
        """Whether repeating the case would end the same way: it succeeded, or the scan itself is at fault."""
        if self.problem is None:
            return True
        error = from_code(self.problem.type, self.problem.detail)
        depends_on_machine = isinstance(error, DecoderCrashed | DecoderDeadline)
        return isinstance(error, ScanError) and not depends_on_machine and self.version == __version__


@dataclass(frozen=True, slots=True)
class Shard:
    """One of n parts of a batch."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Return the shard of a text `i/n` with i from 1 to n.

        Raises:
            ValueError: the text is not of this form.

        >>> Shard.parse("2/8")
        Shard(index=2, count=8)
        """
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            msg = f"{text} was found; expected i/n with i from 1 to n, e.g. 1/8."
            raise ValueError(msg)
        return cls(int(index), int(count))

    @property
    def log(self) -> str:
        """File name of the shard's log."""
        return "batch.jsonl" if self.count == 1 else f"batch-{self.index}-of-{self.count}.jsonl"


class Journal:
    """The log of one shard, open for appending; threads may share it."""

    def __init__(self, out: Path, file: IO[bytes]) -> None:
        self._out = out
        self._file = file
        self._turn = threading.Lock()
        self._lines: dict[tuple[str, str], list[Line]] = {}
        for line in read_lines(out):
            self._lines.setdefault((line.case, line.key), []).append(line)

    @classmethod
    @contextmanager
    def open(cls, out: Path, shard: Shard) -> Iterator["Journal"]:
        """Yield the journal of a shard, locked for this process.

        Raises:
            SettingsError: another batch is writing it.
        """
        folder = out / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / shard.log).open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                msg = f"Another calibrant batch writes {folder / shard.log}. Wait for it, or take another folder."
                raise SettingsError(msg) from error
            _end_last_line(file)
            sync_folder(folder)
            yield cls(out, file)

    def lines_of(self, case: str, key: str) -> list[Line]:
        """Return the lines of a case and key, the oldest first."""
        return self._lines.get((case, key), [])

    def finished(self, case: str, key: str, *, retry_failed: bool) -> Line | None:
        """Return the line that shows that a case is done; None if it must be done.

        A success counts as long as all of its files are unchanged, a failure if it would happen again.
        """
        lines = self.lines_of(case, key)
        last = lines[-1] if lines else None
        if last is None or (last.problem is not None and retry_failed) or not last.is_final:
            return None
        return last if all(_is_there(self._out / name, digest) for name, digest in last.files.items()) else None

    def append(self, line: Line) -> None:
        """Record a finished case; once this returns, the line survives any crash."""
        with self._turn:
            self._file.write(line.model_dump_json().encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            self._lines.setdefault((line.case, line.key), []).append(line)


def read_lines(out: Path) -> list[Line]:
    """Return every line of every log of a folder, the oldest first."""
    lines = []
    for log in sorted((out / FOLDER).glob("batch*.jsonl")):
        for content in log.read_bytes().splitlines():
            try:
                lines.append(Line.model_validate_json(content))
            except ValidationError:  # a line that a kill left incomplete
                continue
    return sorted(lines, key=lambda line: line.finished)


def key_of(input_sha256: str, model: str, options: dict[str, object]) -> str:
    """Return the SHA-256 that identifies a piece of work.

    Args:
        input_sha256: SHA-256 of the scan.
        model: name@sha256.
        options: everything else that changes the result.
    """
    text = json.dumps([input_sha256, model, options], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_there(path: Path, digest: str) -> bool:
    return path.is_file() and sha256_of(path) == digest


def _end_last_line(file: IO[bytes]) -> None:
    """End a line that a kill left incomplete, so that the next line begins anew."""
    if file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
            file.flush()
