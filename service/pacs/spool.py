"""The spool: series received by C-STORE, on disk until a job takes them. It is a source of series like a PACS.

    received/<series>/<instance>.dcm     names are hashes of the UIDs, which are not trusted as file names

The receiving process writes and the service reads; neither waits for the other.
"""

import hashlib
import io
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pydicom import dcmread

from service.errors import CalibrantError, IrregularSpacing, MissingSlices, PacsBadResponse, SeriesNotFound
from service.intake.sandbox import check_sandboxed
from service.pacs.instance import read_instance, read_series
from service.pacs.selection import Series
from service.pacs.web import write_zip
from service.storage.durable import sync_folder, write_durably
from service.storage.scratch import scratch

KEEP_S: Final = 3600.0
"""Seconds without a new image after which a series is erased; slices that arrive later start a new one."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A series in the spool.

    Args:
        study: Study Instance UID.
        series: Series Instance UID.
        count: number of its files.
        idle_s: seconds since the last file arrived.
    """

    study: str
    series: str
    count: int
    idle_s: float


class Spool:
    """The folder of the spool; a context manager like every source."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: no file stays open."""

    def keep(self, study: str, series: str, instance: str, content: bytes) -> None:
        """Write a file durably; a file of the same instance is replaced.

        Raises:
            OSError: the file cannot be written.
        """
        folder = self._folder(study, series)
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self._root)
        draft = folder / f".{uuid.uuid4().hex}"
        try:
            write_durably(draft, content)
            draft.rename(folder / f"{_hash(instance)}.dcm")
        finally:
            draft.unlink(missing_ok=True)
        sync_folder(folder)

    def arrivals(self, now: float) -> list[Arrival]:
        """Return the series in the spool, after erasing those without a new image for `KEEP_S`.

        Args:
            now: seconds since the epoch, by the clock of the file system.
        """
        arrivals = []
        for folder in list(self._root.iterdir()):
            files = list(folder.glob("*.dcm"))
            idle_s = now - max([folder.stat().st_mtime, *(path.stat().st_mtime for path in files)])
            if idle_s > KEEP_S:
                shutil.rmtree(folder, ignore_errors=True)
            elif files:
                with suppress(PacsBadResponse):  # not DICOM: erased after KEEP_S
                    instance = read_instance(files[0].read_bytes())
                    arrivals.append(Arrival(instance.study, instance.series, len(files), idle_s))
        return arrivals

    def is_whole(self, study: str, series: str) -> bool:
        """Return whether a series has as many images as it announces (0020,1002) and no gap between its slices.

        A series that cannot be used for another reason counts as whole: its job reports the reason.
        """
        files = self._files(study, series)
        if len(files) < max(_announced_images(path) for path in files):
            return False
        with tempfile.NamedTemporaryFile(suffix=".zip", dir=scratch()) as packed:
            write_zip((path.read_bytes() for path in files), packed)
            packed.flush()
            try:
                check_sandboxed(Path(packed.name))
            except (MissingSlices, IrregularSpacing):
                return False
            except CalibrantError:
                return True
        return True

    def find_series(self, *, study: str | None = None, series: str | None = None) -> list[Series]:
        """Return the series with these UIDs, or all series."""
        matches = []
        for folder in self._root.iterdir():
            files = sorted(folder.glob("*.dcm"))
            if files:
                candidate = read_series(files[0].read_bytes(), len(files))
                if study in (None, candidate.study) and series in (None, candidate.uid):
                    matches.append(candidate)
        return matches

    def find_instances(self, study: str, series: str) -> list[str]:
        """Return the sorted SOP Instance UIDs of a series."""
        return sorted(read_instance(path.read_bytes()).uid for path in self._files(study, series))

    def fetch_series(self, study: str, series: str) -> Iterator[bytes]:
        """Yield the files of a series."""
        for path in self._files(study, series):
            yield path.read_bytes()

    def _files(self, study: str, series: str) -> list[Path]:
        files = sorted(self._folder(study, series).glob("*.dcm"))
        if not files:
            msg = "The received series has been erased. Send it again."
            raise SeriesNotFound(msg)
        return files

    def _folder(self, study: str, series: str) -> Path:
        return self._root / _hash(f"{study}\0{series}")


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _announced_images(path: Path) -> int:
    """Return Images in Acquisition (0020,1002), 0 if absent."""
    with suppress(Exception):  # it is only a hint: an unreadable header counts as absent
        header = dcmread(io.BytesIO(path.read_bytes()), stop_before_pixels=True, specific_tags=["ImagesInAcquisition"])
        return int(header.get("ImagesInAcquisition") or 0)
    return 0
