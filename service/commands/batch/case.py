"""One case of a batch: the files of its scan, and where its results go."""

import hashlib
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from service.client.files import Files

ID_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
"""Pattern of an id, which is part of file names and stands in tables."""

_ZIP_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class BatchCase:
    """One image to segment.

    Args:
        id: name of the case in the log and the tables; unique in a batch.
        files: one scan, or the DICOM files of one series.
        folder: folder of its results, below the batch's.
        stem: common beginning of their names.
        reference: label file to compare the mask with.
        is_series: whether the files are DICOM.
    """

    id: str
    files: tuple[Path, ...]
    folder: PurePosixPath
    stem: str
    reference: Path | None = None
    is_series: bool = False

    @classmethod
    def of_file(cls, identifier: str, path: Path, reference: Path | None = None) -> "BatchCase":
        """Return the case of a scan whose results go into a folder with its id as name."""
        return cls(identifier, (path,), PurePosixPath(identifier), identifier, reference)

    def results(self, out: Path, model: str) -> Files:
        """Return the paths of a model's results.

        Args:
            out: folder of the batch.
            model: name, or name@sha256.
        """
        # BIDS only allows letters and digits in the value of an entity.
        label = "".join(letter for letter in model.partition("@")[0] if letter.isalnum())
        return Files(out / self.folder, f"{self.stem}_seg-{label}")

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """Yield the file to segment: the scan, or a temporary zip of the series, which is reproducible byte for byte."""
        if not self.is_series:
            yield self.files[0]
            return
        with tempfile.TemporaryDirectory(prefix="calibrant-") as folder:
            path = Path(folder) / "series.zip"
            _zip(self.files, path)
            yield path


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that is left out, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class FoundCases:
    """The cases in a source, and the files that are left out."""

    cases: list[BatchCase] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _zip(files: tuple[Path, ...], path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for number, file in enumerate(files):
            archive.writestr(zipfile.ZipInfo(f"{number:06}.dcm", _ZIP_EPOCH), file.read_bytes())
