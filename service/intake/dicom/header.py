"""A DICOM file on disk -> the series it belongs to, without reading its voxels."""

import warnings
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError


@dataclass(frozen=True, slots=True)
class SeriesHeader:
    """Series attributes of a file; empty where the file lacks them.

    Args:
        uid: SeriesInstanceUID (0020,000E).
        modality: Modality (0008,0060).
    """

    uid: str
    modality: str


def read_series_header(path: Path) -> SeriesHeader | None:
    """Return the series of a file, None if its header cannot be read.

    Args:
        path: a DICOM file (PS3.10).
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # they would repeat the file's content
            header = dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID", "Modality"])
        return SeriesHeader(str(header.get("SeriesInstanceUID", "")), str(header.get("Modality", "")))
    except (InvalidDicomError, OSError, ValueError, AttributeError, EOFError):
        return None
