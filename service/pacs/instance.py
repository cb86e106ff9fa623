"""A DICOM file -> its UIDs, and a digest of its content that does not change on the way through a PACS."""

import hashlib
import io
import warnings
from dataclasses import dataclass
from typing import Final

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import EncapsulatedPDFStorage, SecondaryCaptureImageStorage

from service.errors import PacsBadResponse
from service.pacs.selection import OURS, Series

# The content of a result. A PACS may rewrite the rest: patient name and ID, private elements, group 0002.
_CONTENT: Final = (
    "SOPClassUID",
    "SOPInstanceUID",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "PixelData",
    "FloatPixelData",
    "DoubleFloatPixelData",
    "EncapsulatedDocument",
    "ContentSequence",
    "SegmentSequence",
    "PerFrameFunctionalGroupsSequence",
)

# Pages print the time of their creation: drawn again, the same result has other pixels under the same UID.
_PAGES: Final = (SecondaryCaptureImageStorage, EncapsulatedPDFStorage)
_PRINTED: Final = ("PixelData", "EncapsulatedDocument")

_UIDS: Final = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_DAMAGED: Final = "The PACS sent something that is not a DICOM file, or is a damaged one."
_DEFLATED: Final = b"1.2.840.10008.1.2.1.99"
_META_BYTES: Final = 2048
"""Number of bytes within which group 0002 ends."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One object.

    Args:
        study: Study Instance UID.
        series: Series Instance UID.
        uid: SOP Instance UID.
        ours: whether this service made it or contributed to it (Manufacturer, Contributing Equipment Sequence).
    """

    study: str
    series: str
    uid: str
    ours: bool


def read_instance(content: bytes) -> Instance:
    """Return the UIDs and the origin of a file (PS3.10).

    Raises:
        PacsBadResponse: it cannot be read.
    """
    dataset = _read(content, [*_UIDS, "Manufacturer", "ContributingEquipmentSequence"])
    makers = [dataset, *(dataset.get("ContributingEquipmentSequence") or [])]
    return Instance(
        study=str(dataset.StudyInstanceUID),
        series=str(dataset.SeriesInstanceUID),
        uid=str(dataset.SOPInstanceUID),
        ours=any(str(maker.get("Manufacturer", "")).strip().lower() == OURS.lower() for maker in makers),
    )


def read_series(content: bytes, count: int) -> Series:
    """Return the series that a file describes.

    Args:
        content: of the file.
        count: number of images of the series.

    Raises:
        PacsBadResponse: it cannot be read.
    """
    names = ["Modality", "SeriesDescription", "BodyPartExamined", "Manufacturer"]
    dataset = _read(content, [*_UIDS, *names])
    modality, description, body_part, manufacturer = (str(dataset.get(name) or "") for name in names)
    study, series = str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID)
    return Series(study, series, modality, description, body_part, manufacturer, count)


def content_digest(content: bytes) -> str:
    """Return the SHA-256 of a file's content: voxels or text with their meaning, or for a page its identifiers alone.

    Raises:
        PacsBadResponse: it cannot be read.
    """
    dataset = _read(content, None)
    hashed = Dataset()
    left_out = _PRINTED if dataset.get("SOPClassUID") in _PAGES else ()
    kept = (element for element in dataset if element.keyword in _CONTENT and element.keyword not in left_out)
    hashed.update({element.tag: element for element in kept})
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    with warnings.catch_warnings(action="ignore"):
        write_dataset(buffer, hashed)
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def _read(content: bytes, tags: list[str] | None) -> Dataset:
    if _DEFLATED in content[:_META_BYTES]:
        msg = "The PACS sent a deflated file, whose unpacked size nothing limits. Let it send another transfer syntax."
        raise PacsBadResponse(msg)
    try:
        with warnings.catch_warnings(action="ignore"):  # they would repeat the file's content
            dataset = dcmread(io.BytesIO(content), stop_before_pixels=tags is not None, specific_tags=tags)
            named = all(dataset.get(name) for name in _UIDS)
    except Exception as error:  # pydicom raises a dozen types, depending on where the damage is
        raise PacsBadResponse(_DAMAGED) from error
    if not named:
        raise PacsBadResponse(_DAMAGED)
    return dataset
