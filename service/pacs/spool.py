"""Series that were sent to this service (C-STORE), on the disk until a job has taken them: a source like a PACS.

    received/<series>/<instance>.dcm     the name of each is a hash: a UID of a stranger is no name of a file

The process that receives writes, the service reads; neither waits for the other.
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

KEEP_S: Final = 3600.0
"""Seconds without a new image after which a series is erased: a slice that comes later cannot be joined to it."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A series in the spool.

    Args:
        study: Study Instance UID.
        series: Series Instance UID.
        count: of its files.
        idle_s: seconds since the last one came.
    """

    study: str
    series: str
    count: int
    idle_s: float


class Spool:
    """The folder; a context manager, as every source is."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""

    def keep(self, study: str, series: str, instance: str, content: bytes) -> None:
        """Write a file; it is on the disk, with its place, when this returns. The same instance again replaces it.

        Raises:
            OSError: the disk refuses.
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
        """Return what lies here; what has lain for `KEEP_S` is erased.

        Args:
            now: seconds since the epoch, the clock of the files.
        """
        found = []
        for folder in list(self._root.iterdir()):
            files = list(folder.glob("*.dcm"))
            idle_s = now - max([folder.stat().st_mtime, *(path.stat().st_mtime for path in files)])
            if idle_s > KEEP_S:
                shutil.rmtree(folder, ignore_errors=True)
            elif files:
                with suppress(PacsBadResponse):  # no DICOM: it is erased in time
                    one = read_instance(files[0].read_bytes())
                    found.append(Arrival(one.study, one.series, len(files), idle_s))
        return found

    def is_whole(self, study: str, series: str) -> bool:
        """Say whether a series has the number of images that it tells (0020,1002), and no gap between its slices.

        A series that cannot be used for another reason is whole: its job will say why.
        """
        files = self._files(study, series)
        if len(files) < max(_images_told(path) for path in files):
            return False
        with tempfile.NamedTemporaryFile(suffix=".zip") as packed:
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
        """Return the series of these UIDs."""
        found = []
        for folder in self._root.iterdir():
            files = sorted(folder.glob("*.dcm"))
            if files:
                one = read_series(files[0].read_bytes(), len(files))
                if study in (None, one.study) and series in (None, one.uid):
                    found.append(one)
        return found

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
            msg = "The series that was received is not here any more. Send it again."
            raise SeriesNotFound(msg)
        return files

    def _folder(self, study: str, series: str) -> Path:
        return self._root / _hash(f"{study}\0{series}")


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _images_told(path: Path) -> int:
    """Return Images in Acquisition (0020,1002); 0 where it is not told."""
    with suppress(Exception):  # a hint that cannot be read is none
        header = dcmread(io.BytesIO(path.read_bytes()), stop_before_pixels=True, specific_tags=["ImagesInAcquisition"])
        return int(header.get("ImagesInAcquisition") or 0)
    return 0
