"""Who did what to which job: a file that is only ever appended to, and that shows if a line was changed or taken out.

    audit.jsonl     one JSON object per line: number, time, who, which key, what, to which job, status, hash
    audit.key       secret of this directory

A line holds no patient data. It names a job by a pseudonym, which only the secret leads to: after an erasure, the log still
tells that a job was erased, and nothing leads from it to the scan. Each hash covers its line and the hash before it, so that
a change breaks the chain from there on. Lines taken from the end are found by comparing with a number and hash noted before.
"""

import datetime as dt
import errno
import hashlib
import hmac
import json
import os
import secrets
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Final

import structlog

from service.errors import AuditBroken
from service.storage.durable import write_durably

log = structlog.get_logger(__name__)

FILE: Final = "audit.jsonl"
_KEY: Final = "audit.key"
_BEGINNING: Final = "0" * 64
_MOST_WAITING: Final = 10_000
"""Lines that are kept in memory while the disk is full; more are only counted."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that somebody did.

    Args:
        did: name of the operation.
        who: owner of the request; empty if it named none.
        key: id of the key; empty without one.
        job: id of the job; empty if it is about none.
        status: HTTP status of the answer.
        left_out: similar events since the one before that were only counted.
    """

    did: str
    who: str = ""
    key: str = ""
    job: str = ""
    status: int = 0
    left_out: int = 0


class AuditLog:
    """The log of one state directory; one process writes it."""

    def __init__(self, root: Path) -> None:
        """Go on with the log of a directory, or begin one.

        Args:
            root: of the state directory.
        """
        self._path = root / FILE
        self._turn = threading.Lock()
        self._waiting: deque[Event] = deque()
        self._dropped = 0
        self._secret = _secret_of(root)
        self._last = 0, _BEGINNING
        if self._path.exists():
            _cut_half_line(self._path)
            self._last = _end_of(self._path)

    def record(self, event: Event) -> None:
        """Append an event; on a full disk it waits in memory, because erasing must not fail for want of a log."""
        with self._turn:
            if len(self._waiting) < _MOST_WAITING:
                self._waiting.append(event)
            else:
                self._dropped += 1
            try:
                while self._waiting:
                    self._append(self._waiting[0])
                    self._waiting.popleft()
            except OSError as error:
                log.warning("the audit log cannot be written", error=type(error).__name__)

    def _append(self, event: Event) -> None:
        number, before = self._last
        line: dict[str, Any] = {
            "n": number + 1,
            "at": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
            "who": event.who,
            "key": event.key,
            "did": event.did,
            "job": pseudonym(self._secret, event.job) if event.job else "",
            "status": event.status,
        }
        if left_out := event.left_out + self._dropped:
            line["left_out"] = left_out
        digest = _hash(before, line)
        content = json.dumps(line | {"hash": digest}).encode() + b"\n"
        with self._path.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                _write_durably(file, content)
            except OSError:
                with suppress(OSError):
                    file.truncate(size)
                raise
        self._last, self._dropped = (number + 1, digest), 0


def _write_durably(file: FileIO, content: bytes) -> None:
    if file.write(content) < len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fdatasync(file.fileno())


def pseudonym(secret: bytes, job: str) -> str:
    """Return what the log calls a job."""
    return hmac.new(secret, job.encode(), hashlib.sha256).hexdigest()[:32]


def entries(root: Path, job: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the lines of a directory's log as they are, the oldest first.

    Args:
        root: of the state directory.
        job: only those about this job, by its id.
    """
    wanted = pseudonym(_secret_of(root), job) if job is not None else None
    with (root / FILE).open() as file:
        for text in file:
            line = json.loads(text)
            if wanted in {None, line["job"]}:
                yield line


def verify(root: Path, noted: tuple[int, str] | None = None) -> tuple[int, str]:
    """Return number and hash of the last line, after checking every line.

    Args:
        root: of the state directory.
        noted: number and hash of a line, as they were noted earlier.

    Raises:
        AuditBroken: a line was changed, taken out or put in; or the noted one is missing.
    """
    number, digest = 0, _BEGINNING
    found = noted is None or noted == (0, _BEGINNING)
    with (root / FILE).open() as file:
        for text in file:
            try:
                line = json.loads(text)
                told = line.pop("hash")
            except (ValueError, KeyError, TypeError, AttributeError):
                line, told = {}, ""
            if line.get("n") != number + 1 or told != _hash(digest, line):
                msg = f"Line {number + 1} of the audit log was changed, or one before it was taken out or put in."
                raise AuditBroken(msg)
            number, digest = number + 1, told
            found = found or noted == (number, digest)
    if not found:
        msg = f"The audit log ends with line {number}, and the line that was noted is not in it."
        raise AuditBroken(msg)
    return number, digest


def _hash(before: str, line: dict[str, Any]) -> str:
    return hashlib.sha256(f"{before}\n{json.dumps(line, sort_keys=True)}".encode()).hexdigest()


def _secret_of(root: Path) -> bytes:
    path = root / _KEY
    if not path.exists():
        write_durably(path, secrets.token_hex(32).encode())
    return bytes.fromhex(path.read_text())


def _cut_half_line(path: Path) -> None:
    """Cut off a line that a crash left unfinished."""
    with path.open("rb+") as file:
        content_end = file.seek(0, os.SEEK_END)
        file.seek(max(content_end - 4096, 0))
        tail = file.read()
        if tail and not tail.endswith(b"\n"):
            file.truncate(content_end - len(tail) + tail.rfind(b"\n") + 1)


def _end_of(path: Path) -> tuple[int, str]:
    """Return number and hash of the last line."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 4096, 0))
        lines = file.read().splitlines()
    if not lines:
        return 0, _BEGINNING
    last = json.loads(lines[-1])
    return last["n"], last["hash"]
