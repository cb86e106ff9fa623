"""A DICOM file on disk -> the series it belongs to, without reading its voxels."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from service.intake.dicom import part10

_TAGS: Final = ("SeriesInstanceUID", "Modality", "SeriesNumber")


@dataclass(frozen=True, slots=True)
class SeriesHeader:
    """Series attributes of a file; empty where the file lacks them.

    Args:
        uid: SeriesInstanceUID (0020,000E).
        modality: Modality (0008,0060).
        number: SeriesNumber (0020,0011).
    """

    uid: str
    modality: str
    number: str


def read_series_header(path: Path) -> SeriesHeader | None:
    """Return the series of a file, None if its header cannot be read.

    Args:
        path: a DICOM file (PS3.10), with or without its preamble.
    """
    try:
        with path.open("rb") as file:
            start = file.read(part10.START_BYTES)
        if not part10.recognise(start):
            return None
        with warnings.catch_warnings(action="ignore"):  # they would repeat the file's content
            # Forced, because pydicom refuses a file without preamble.
            header = dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS), force=True)
        uid, modality, number = (str(header.get(name) or "") for name in _TAGS)
        return SeriesHeader(uid, modality, number)
    except (InvalidDicomError, OSError, ValueError, AttributeError, EOFError):
        return None
