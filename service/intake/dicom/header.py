"""A DICOM file on a disk -> which series it belongs to, without its voxels."""

import warnings
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError


@dataclass(frozen=True, slots=True)
class SeriesHeader:
    """What a file says about its series; empty where it says nothing.

    Args:
        uid: SeriesInstanceUID (0020,000E).
        modality: Modality (0008,0060).
    """

    uid: str
    modality: str


def read_series_header(path: Path) -> SeriesHeader | None:
    """Return the series of a file; None if its header cannot be read.

    Args:
        path: of a DICOM file (PS3.10).
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # they would repeat what stands in the file
            header = dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID", "Modality"])
        return SeriesHeader(str(header.get("SeriesInstanceUID", "")), str(header.get("Modality", "")))
    except (InvalidDicomError, OSError, ValueError, AttributeError, EOFError):
        return None
