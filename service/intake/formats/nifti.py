"""NIfTI-1 and NIfTI-2, .nii or .nii.gz -> Volume, after every claim of the header has been checked.

nibabel reads the header: it is pure Python, guesses no orientation and returns no voxels that the file does not hold
(docs/decisions/0003).
"""

from typing import BinaryIO

import nibabel as nib
import numpy as np
import numpy.typing as npt

from service.errors import (
    PayloadTruncated,
    UnrecognisedFormat,
    UnsupportedDimensions,
    UnsupportedVoxelType,
)
from service.intake.formats.geometry import bytes_of, reject_bomb, reject_shape
from service.intake.formats.niftiplace import NiftiPlace, place_of
from service.intake.formats.payload import GZIP_MAGIC, Readable, damage_refused, inflating, read_exactly, read_voxels
from service.volume import Volume

_HEADERS: dict[int, tuple[type[nib.Nifti1Header], bytes]] = {
    348: (nib.Nifti1Header, b"n+1\0"),
    540: (nib.Nifti2Header, b"n+2\0"),
}
_MAX_OFFSET_BYTES = 1 << 24
_EXPECTED = "a NIfTI file, .nii or .nii.gz with header and voxels in one file"


def recognise(start: bytes) -> bool:
    """Return whether the first bytes of a file are those of gzip or of a NIfTI header."""
    return start.startswith(GZIP_MAGIC) or bool(_header_sizes(start))


def decode(file: BinaryIO) -> Volume:
    """Return the volume of a NIfTI-1 or NIfTI-2 file, its voxels as stored or, if it declares a scale, as float32.

    Raises:
        ScanError: its class says what is wrong; the message holds nothing of the file's content.
    """
    place, voxels = _read(file, with_voxels=True)
    array = _scaled(voxels, place.header)[np.newaxis]
    return Volume(array, place.affine, place.header.binaryblock, place.warnings, doubts=place.doubts)


def check(file: BinaryIO) -> None:
    """Raise what `decode` would raise."""
    _read(file, with_voxels=False)


def _read(plain: BinaryIO, *, with_voxels: bool) -> tuple[NiftiPlace, bytes]:
    """Return what the header says, and the voxels; all of the header is checked before a voxel is read."""
    file = inflating(plain)
    with damage_refused():
        header = _read_header(file)
        place = place_of(header)
        if file is not plain:
            reject_bomb(header.get_data_shape(), bytes_of(plain))
        return place, _read_voxels(file, header, with_voxels=with_voxels)


def _header_sizes(start: bytes) -> set[int]:
    return {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")} & _HEADERS.keys()


def _read_header(file: Readable) -> nib.Nifti1Header:
    start = file.read(4)
    sizes = _header_sizes(start)
    if not sizes:
        msg = f"The content is not NIfTI (its first bytes are not a NIfTI header). Send {_EXPECTED}."
        raise UnrecognisedFormat(msg)
    size = sizes.pop()
    header_type, magic = _HEADERS[size]
    block = start + file.read(size - 4)
    if len(block) < size:
        msg = f"The file ends inside its header: {len(block)} of {size} bytes. Send the whole file again."
        raise PayloadTruncated(msg)
    header = header_type(block, check=False)
    if header["magic"].tobytes()[:4].ljust(4, b"\0") != magic:
        msg = f"The header does not say that its voxels follow in the same file. Send {_EXPECTED}."
        raise UnrecognisedFormat(msg)
    _reject_dimensions(header)
    _reject_voxel_type(header)
    return header


def _reject_dimensions(header: nib.Nifti1Header) -> None:
    rank = int(header["dim"][0])
    shape = [int(n) for n in header["dim"][1 : rank + 1]] if 0 < rank < len(header["dim"]) else []
    if not shape or min(shape) < 1:
        msg = "The header's dimensions are not valid (a rank outside 1 to 7, or an axis of length 0 or less). Convert the scan again."
        raise UnsupportedDimensions(msg)
    reject_shape(shape)


def _reject_voxel_type(header: nib.Nifti1Header) -> None:
    try:
        dtype = header.get_data_dtype()
    except (KeyError, nib.spatialimages.HeaderDataError) as error:
        msg = f"The voxel type code {int(header['datatype'])} is not known. Convert the scan to int16 or float32."
        raise UnsupportedVoxelType(msg) from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:  # noqa: PLR2004 - bytes of float64
        msg = f"Voxels of the type code {int(header['datatype'])} (RGB, complex or extended precision) were found. Convert the scan to int16 or float32."
        raise UnsupportedVoxelType(msg)


def _read_voxels(file: Readable, header: nib.Nifti1Header, *, with_voxels: bool) -> bytes:
    """Return the payload after proving that the file holds exactly what its header announces."""
    size = int(header["sizeof_hdr"])
    offset = float(header["vox_offset"])
    if not size <= offset <= _MAX_OFFSET_BYTES:
        msg = "The header says that the voxels begin inside the header or far beyond it. Convert the scan again."
        raise UnrecognisedFormat(msg)
    read_exactly(file, int(offset) - size, keep=False)
    expected = int(np.prod(header.get_data_shape(), dtype=np.int64)) * header.get_data_dtype().itemsize
    return read_voxels(file, expected, keep=with_voxels)


def _scaled(payload: bytes, header: nib.Nifti1Header) -> npt.NDArray[np.generic]:
    stored = np.frombuffer(payload, header.get_data_dtype())
    shape = header.get_data_shape()[:3]
    array = stored.reshape(shape, order="F").astype(stored.dtype.newbyteorder("="), copy=False)
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    # NIfTI-1 standard, scl_slope: 0 (and by convention NaN) means that the stored values are the intensities.
    if slope == 0 or not np.isfinite(slope) or (slope, intercept) == (1, 0):
        return array
    scaled = np.empty(shape, np.float32, order="F")
    with np.errstate(over="ignore"):  # infinite intensities are refused later
        for k in range(shape[2]):  # slice by slice: no float64 copy of the whole volume
            scaled[..., k] = array[..., k] * np.float64(slope) + (intercept if np.isfinite(intercept) else 0)
    return scaled
