"""A scan as `calibrant predict` is given it, a file or a folder -> one file of one series."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.commands.batch.case import BatchCase
from service.commands.batch.dicom import find_series, is_dicom
from service.errors import InvalidRequest, NoDicom
from service.intake.dicom.mixture import SeriesInArchive, several_series


@contextmanager
def one_file(scan: Path, series: str | None) -> Iterator[Path]:
    """Yield the file to segment: the scan itself, or a temporary zip of a series, named like the scan.

    Args:
        scan: a file, or a folder of DICOM files.
        series: Series Instance UID of the series to take; None if there is one.

    Raises:
        NoDicom: the folder holds no series.
        MultipleSeries: there are several, and none was chosen; the message names them.
        InvalidRequest: the series that was chosen is not there.
    """
    if scan.is_file() and series is None:
        yield scan
        return
    with tempfile.TemporaryDirectory(prefix="calibrant-") as folder:
        path = Path(folder) / f"{scan.resolve().name}.zip"
        if scan.is_file():
            from service.intake.sandbox import select_sandboxed

            path = path.with_name(scan.name)
            with path.open("w+b") as packed:
                select_sandboxed(scan, str(series), packed)
            yield path
            return
        with _case_of(scan, series).opened() as packed:
            packed.rename(path)
            yield path


def _case_of(folder: Path, series: str | None) -> BatchCase:
    """Return the series of a folder, below which every DICOM file is looked at, whatever its name."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and is_dicom(path)]
    cases = find_series(files).cases
    if not cases:
        msg = "The folder holds no DICOM image of CT, MR or PET. Give the folder of one series, or a file."
        raise NoDicom(msg)
    if series is None and len(cases) == 1:
        return cases[0]
    chosen = [case for case in cases if case.id == series]
    if chosen:
        return chosen[0]
    if series is not None:
        msg = "The series that was asked for is not in the folder. Leave --series out to see which are."
        raise InvalidRequest(msg)
    raise several_series(_named(case) for case in cases)


def _named(case: BatchCase) -> SeriesInArchive:
    from service.intake.dicom.header import read_series_header  # pydicom takes a moment to load

    header = read_series_header(case.files[0])
    modality, number = (header.modality, header.number) if header else ("", "")
    return SeriesInArchive(case.id, modality, number, len(case.files))
