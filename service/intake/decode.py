"""Bytes of a scan -> Volume: the one module that knows every format.

Untrusted files are decoded in the sandbox (`service.intake.sandbox`). The first bytes choose the format, never the
file name; each format checks every claim of its header before relying on it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from service.errors import EmptyBody, NonFiniteVoxels, UnrecognisedFormat
from service.intake.dicom import part10
from service.intake.formats import archive, metaimage, mgh, nifti, nrrd
from service.intake.formats.geometry import MAX_VOXELS
from service.intake.formats.payload import GZIP_MAGIC, inflated_start
from service.volume import Stated, Volume

__all__ = ["MAX_VOXELS", "check_scan", "decode_scan"]

_START_BYTES = part10.START_BYTES
_EXPECTED = "a NIfTI file (.nii, .nii.gz), NRRD (.nrrd), MetaImage (.mha), FreeSurfer's .mgz or .mgh, a DICOM file of all frames, or a .zip of the DICOM files of one series"


class _Format(Protocol):
    """Interface of a format's module."""

    def decode(self, file: BinaryIO, /) -> Volume:
        """Return the volume of a file."""
        ...

    def check(self, file: BinaryIO, /) -> Stated | None:
        """Raise what `decode` would raise over header, geometry and length; return what the scan states, if it can."""
        ...


def decode_scan(path: Path) -> Volume:
    """Return the volume of a NIfTI, NRRD, MetaImage, MGH or multi-frame DICOM file, or of a zip of one DICOM series.

    Voxels are as stored or, if the file declares a scale, float32; DICOM's are always float32.

    Raises:
        ScanError: its class says what is wrong; the message holds nothing of the file's content.
    """
    with _opened(path) as (file, form):
        volume = form.decode(file)
    _reject_non_finite(volume.array_CDHW)
    return volume


def check_scan(path: Path) -> Stated:
    """Raise what `decode_scan` would raise over the header, the geometry and the length of the file.

    Returns what the scan states about itself: DICOM attributes, nothing for other formats.

    Intensities are not checked: a scan full of NaN passes here and is refused when it is decoded.
    """
    with _opened(path) as (file, form):
        return form.check(file) or {}


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, _Format]]:
    with path.open("rb") as file:
        start = file.read(_START_BYTES)
        file.seek(0)
        if start.startswith(GZIP_MAGIC):
            inside = inflated_start(file)
            file.seek(0)
            yield file, mgh if mgh.recognise(inside) else nifti
        else:
            yield file, _format_of(start)


def _format_of(start: bytes) -> _Format:
    if not start:
        msg = f"The body holds 0 bytes. Send {_EXPECTED}."
        raise EmptyBody(msg)
    # A DICOM file first: its preamble may hold anything, the magic number of another format included.
    if part10.recognise(start) or archive.recognise(start):
        import service.intake.dicom.series as dicom  # half a second of imports, done in advance in the sandbox

        return dicom
    for form in (nifti, nrrd, metaimage, mgh):
        if form.recognise(start):
            return form
    if part10.lacks_header(start):
        raise UnrecognisedFormat(part10.WITHOUT_HEADER)
    msg = f"The content is not NIfTI, NRRD, MetaImage, MGH, DICOM or zip (its first bytes belong to none of them). Send {_EXPECTED}."
    raise UnrecognisedFormat(msg)


def _reject_non_finite(array: npt.NDArray[np.generic]) -> None:
    if array.dtype.kind != "f":
        return
    # False for NaN, too. The network computes in float32, where larger values are infinite.
    usable = np.abs(array) <= np.finfo(np.float32).max
    if not usable.all():
        msg = f"{array.size - int(usable.sum())} of {array.size} voxels are NaN or infinite. Replace them, e.g. by the background's value."
        raise NonFiniteVoxels(msg)
