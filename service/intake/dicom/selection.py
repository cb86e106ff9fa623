"""A zip of several series -> a zip of one of them."""

import io
import zipfile
from collections import Counter
from typing import BinaryIO, Final

import pydicom
from pydicom.errors import InvalidDicomError

from service.errors import InvalidRequest
from service.intake.dicom.deflated import inflated
from service.intake.dicom.instance import faults
from service.intake.dicom.mixture import SeriesInArchive, named
from service.intake.dicom.part10 import START_BYTES, completed, recognise
from service.intake.formats import archive
from service.intake.formats.geometry import bytes_of

_TAGS: Final = ["SeriesInstanceUID", "Modality", "SeriesNumber"]
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


def select(file: BinaryIO, series: str, out: BinaryIO) -> None:
    """Write a zip of the files of one series; the same files give the same bytes.

    Args:
        file: a zip, or a DICOM file.
        series: Series Instance UID.
        out: the zip is written here, one file after another.

    Raises:
        InvalidRequest: the file holds no DICOM, or not this series; the message names those that it holds.
        ScanError: the zip cannot be read.
    """
    start = file.read(START_BYTES)
    file.seek(0)
    if not archive.recognise(start) and not recognise(start):
        msg = "A series can be chosen in a zip of DICOM files only. Leave `series` out, or send such a zip."
        raise InvalidRequest(msg)
    unpacked = archive.Unpacked.of(bytes_of(file))
    members = archive.read_members(file, unpacked) if archive.recognise(start) else iter([file.read()])
    found: Counter[tuple[str, str, str]] = Counter()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as chosen:
        for content in members:
            identity = _identity(content, unpacked)
            if identity is None:
                continue
            found[identity] += 1
            if identity[0] == series:
                chosen.writestr(zipfile.ZipInfo(f"{found[identity]:06}.dcm", _EPOCH), content)
    if not any(uid == series for uid, _modality, _number in found):
        held = named([SeriesInArchive(*identity, images) for identity, images in found.most_common()])
        msg = f"The series that was asked for is not in the file. It holds {held or 'no DICOM'}."
        raise InvalidRequest(msg)


def _identity(content: bytes, unpacked: archive.Unpacked) -> tuple[str, str, str] | None:
    """Return UID, modality and number of a file's series; None if it is no DICOM file or cannot be read."""
    if not recognise(content[:START_BYTES]):
        return None
    try:
        with faults(InvalidRequest, "unreadable"):
            whole = io.BytesIO(inflated(completed(content), unpacked))
            header = pydicom.dcmread(whole, stop_before_pixels=True, specific_tags=_TAGS)
            uid, modality, number = (str(header.get(name) or "") for name in _TAGS)
    except (InvalidRequest, InvalidDicomError):
        return None
    return (uid, modality, number) if uid else None
