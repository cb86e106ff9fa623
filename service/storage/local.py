"""The state directory on a local disk: scans by content, attempts in progress, published results, the job database.

    scans/<owner>/<sha256>  uploaded scans, complete and flushed to the disk
    work/<job>/<attempt>/   files of one attempt in progress; worthless after a crash
    results/<job>/          the one published result of a job
    incoming/               uploads in progress; worthless after a crash
    dicom/<job>/            objects on their way to a PACS, and the ledger of those that have arrived
    changes/<pacs>          position in the change log of an Orthanc
    changes/<pacs>.hints/   series announced by its scripts and not yet looked up
    received/               series that `calibrant receive` has accepted and no job has taken yet
    jobs.sqlite             owned by DBOS, unless its database is on a PostgreSQL server
    identity                the name of this directory in such a database
    unloaded.json           names of the models that are out of service
    audit.jsonl, audit.key  who did what (service.storage.audit)
    swept                   when a service with a default retention first used this directory
    reserve                 space that is given up for erasing on a full disk (service.storage.room)

Only the user of the service may read any of it, whatever the umask was.

A result is published by renaming the folder of a whole attempt, so it is never incomplete. A second attempt that
finishes later finds the name taken.
"""

import datetime as dt
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

import structlog

from service.errors import ScanNotFound, SettingsError, StorageFull
from service.schemas import Scan
from service.storage.durable import sync_folder, write_durably
from service.storage.faults import told
from service.storage.private import keep_private

log = structlog.get_logger(__name__)

RESULT: Final = "result.json"
"""The file of a result that is written last: a folder without it is not a result."""

_UNLOADED: Final = "unloaded.json"
_IDENTITY: Final = "identity"
_SWEPT: Final = "swept"


@dataclass(frozen=True, slots=True)
class StateDirectory:
    """The folders of one running service."""

    root: Path
    reserve_bytes: int = 0
    """Bytes that uploads leave free, at most a fiftieth of the disk."""

    @classmethod
    def open(cls, root: Path, reserve_bytes: int = 0) -> "StateDirectory":
        """Create missing folders, lock the directory for this process and remove the leftovers of a crash.

        From here on, nobody else may read what this process and its children write, there or elsewhere.

        Raises:
            SettingsError: another service holds the directory, or it cannot be written.
        """
        state = cls(root, reserve_bytes)
        try:
            open_to_others = keep_private(root)
            state._prepare()
        except OSError as error:
            if isinstance(error, BlockingIOError):
                msg = "Another calibrant serve uses this state directory. Stop it, or set CALIBRANT_STATE_DIR to another one."
            else:
                msg = (
                    f"The state directory {root} cannot be used ({error.strerror}). Let the user of the service own it and "
                    "write to it, or set CALIBRANT_STATE_DIR to another one."
                )
            raise SettingsError(msg) from error
        if open_to_others:
            log.warning("others may read parts of the state directory, which belong to another user")
        return state

    def _prepare(self) -> None:
        folders = (self.scans, self.work, self.results, self.incoming, self.dicom, self.changes, self.received)
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise
        for leftover in (*self.incoming.iterdir(), *self.work.iterdir()):
            shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink()

    @property
    def least_free_bytes(self) -> int:
        """Bytes that uploads leave free."""
        return min(self.reserve_bytes, shutil.disk_usage(self.root).total // 50)

    def reject_full(self) -> None:
        """Refuse an upload to a disk that is almost full: the rest of the space is for the results of accepted jobs.

        Raises:
            StorageFull: less is free than must be.
        """
        if shutil.disk_usage(self.root).free < self.least_free_bytes:
            msg = "The state directory has no space left for this scan. Try again later, or tell the operator."
            raise StorageFull(msg)

    @property
    def lock(self) -> Path:
        """File whose lock this process holds."""
        return self.root / "lock"

    @property
    def scans(self) -> Path:
        """Folder of the uploaded scans."""
        return self.root / "scans"

    @property
    def work(self) -> Path:
        """Folder of the attempts in progress."""
        return self.root / "work"

    @property
    def results(self) -> Path:
        """Folder of the published results."""
        return self.root / "results"

    @property
    def incoming(self) -> Path:
        """Folder of the uploads in progress."""
        return self.root / "incoming"

    @property
    def dicom(self) -> Path:
        """Folder of the DICOM objects on their way to a PACS."""
        return self.root / "dicom"

    @property
    def changes(self) -> Path:
        """Folder of the positions in each Orthanc's change log."""
        return self.root / "changes"

    @property
    def received(self) -> Path:
        """Folder of the received series that no job has taken yet."""
        return self.root / "received"

    @property
    def database(self) -> Path:
        """The SQLite file of the job database."""
        return self.root / "jobs.sqlite"

    @property
    def identity(self) -> str:
        """A unique name of this state directory, created at first use; a copy of the directory keeps it."""
        if not self.is_named:
            draft = self.incoming / _IDENTITY
            write_durably(draft, uuid.uuid4().hex.encode())
            draft.rename(self.root / _IDENTITY)
            sync_folder(self.root)
        return (self.root / _IDENTITY).read_text()

    @property
    def is_named(self) -> bool:
        """Whether the directory has a name yet."""
        return (self.root / _IDENTITY).exists()

    def forget_name(self) -> None:
        """Drop the name; the next use of `identity` creates another."""
        (self.root / _IDENTITY).unlink(missing_ok=True)
        sync_folder(self.root)

    def first_swept(self, now: dt.datetime) -> dt.datetime:
        """Return when this was called first; the time is kept."""
        path = self.root / _SWEPT
        if not path.exists():
            draft = self.incoming / _SWEPT
            write_durably(draft, now.isoformat().encode())
            draft.rename(path)
            sync_folder(self.root)
        return dt.datetime.fromisoformat(path.read_text())

    @property
    def holds_cases(self) -> bool:
        """Whether there is any scan or result."""
        return any(self.scans.glob("*/*")) or any(self.results.iterdir())

    @property
    def unloaded(self) -> frozenset[str]:
        """Names of the models that an administrator has taken out of service; restarts keep them."""
        path = self.root / _UNLOADED
        return frozenset(json.loads(path.read_bytes())) if path.exists() else frozenset()

    def remember_unloaded(self, names: Collection[str]) -> None:
        """Store the names of the models that are out of service."""
        draft = self.incoming / _UNLOADED
        write_durably(draft, json.dumps(sorted(names)).encode())
        draft.rename(self.root / _UNLOADED)
        sync_folder(self.root)

    def scan(self, owner: str, sha256: str) -> Path:
        """Return the path of an owner's scan with this hash."""
        return self.scans / owner / sha256

    def find_scan(self, owner: str, sha256: str) -> Scan:
        """Return an owner's scan.

        Raises:
            ScanNotFound: the owner has no scan with this id.
        """
        if re.fullmatch(r"[0-9a-f]{64}", sha256) and self.scan(owner, sha256).is_file():
            return Scan(id=sha256, bytes=self.scan(owner, sha256).stat().st_size)
        msg = "No scan has this id. It may have been deleted: upload it again."
        raise ScanNotFound(msg)

    def forget_scan(self, owner: str, sha256: str) -> None:
        """Erase a scan."""
        self.scan(owner, sha256).unlink(missing_ok=True)

    def forget_job(self, job: str) -> None:
        """Erase a job's result and the leftovers of its attempts."""
        self.clear_attempts(job)
        shutil.rmtree(self.results / job, ignore_errors=True)

    def begin_attempt(self, job: str) -> Path:
        """Create and return a new folder for one attempt at a job; no other attempt writes there."""
        folder = self.work / job / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder

    def publish(self, job: str, attempt: Path) -> None:
        """Publish a complete attempt as the job's result, unless another attempt has been published before."""
        try:
            attempt.rename(self.results / job)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        else:
            sync_folder(self.results)
        self.clear_attempts(job)

    def clear_attempts(self, job: str) -> None:
        """Remove the folders of all attempts at a job."""
        shutil.rmtree(self.work / job, ignore_errors=True)

    def result(self, job: str) -> Path | None:
        """Return the folder of a job's published result, None if it has none."""
        folder = self.results / job
        return folder if (folder / RESULT).is_file() else None


_PIECE: Final = 1 << 20


class Upload:
    """An upload on its way to `scans/`; a context manager that removes the file unless `keep` was called."""

    def __init__(self, state: StateDirectory, owner: str) -> None:
        self._state = state
        self._owner = owner
        self.path = state.incoming / uuid.uuid4().hex
        self._digest = hashlib.sha256()
        with told():
            state.reject_full()
            self._file: IO[bytes] = self.path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # on a full disk, closing fails again
            self._file.close()
        with suppress(OSError):  # the next start removes it
            self.path.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> int:
        """Append a chunk of the body and return its length, as files do.

        Raises:
            StorageFull: no space is left.
            StorageFault: the disk fails.
        """
        self._digest.update(chunk)
        with told():
            return self._file.write(chunk)

    def beside(self) -> IO[bytes]:
        """Return a file without a name on the same disk, for what this one will be replaced by."""
        return tempfile.TemporaryFile(dir=self._state.incoming)

    def replace(self, content: IO[bytes]) -> int:
        """Write a file over what was received, e.g. one series of several, flush it to the disk and return its bytes.

        Raises:
            StorageFull: no space is left.
        """
        content.seek(0)
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256()
        size = 0
        while piece := content.read(_PIECE):
            size += self.write(piece)
        self.flush()
        return size

    def flush(self) -> None:
        """Flush all bytes to the disk, so that the file can be checked and kept.

        Raises:
            StorageFull: no space is left.
            StorageFault: the disk fails; the file is not kept, and flushing is not tried again.
        """
        with told():
            self._file.flush()
            os.fsync(self._file.fileno())

    def keep(self) -> str:
        """Move the flushed file to its place in `scans/` and return its SHA-256.

        Raises:
            StorageFull: no space is left.
            StorageFault: the disk fails; a scan whose entry may not be on the disk is not kept.
        """
        sha256 = self._digest.hexdigest()
        scan = self._state.scan(self._owner, sha256)
        with told():
            if not scan.parent.exists():
                scan.parent.mkdir(exist_ok=True)
                sync_folder(self._state.scans)
            self.path.rename(scan)
            sync_folder(scan.parent)
        return sha256
