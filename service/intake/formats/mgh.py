"""FreeSurfer's MGH, .mgh or .mgz (gzipped), -> Volume, after every claim of the header has been checked.

nibabel reads the header, which is big-endian and 284 bytes long. The format:
https://surfer.nmr.mgh.harvard.edu/fswiki/FsTutorial/MghFormat
"""

from typing import BinaryIO, Final, NamedTuple

import nibabel as nib
import numpy as np
import numpy.typing as npt

from service.errors import (
    InvalidHeader,
    MissingOrientation,
    PayloadTooLong,
    PayloadTruncated,
    UnsupportedDimensions,
    UnsupportedVoxelType,
)
from service.intake.formats.geometry import (
    bytes_of,
    checked_affine,
    nifti_header,
    reject_bomb,
    reject_shape,
    reject_spacing,
)
from service.intake.formats.payload import Readable, damage_refused, inflating, read_exactly
from service.volume import Volume

MAX_TAGS_BYTES: Final = 1 << 24
"""Most bytes behind the voxels: scan parameters, transforms and the commands that made the file; none is read."""

MAGIC: Final = b"\x00\x00\x00\x01"
"""The format's version, with which every file begins."""

_HEADER_BYTES, _GOOD_RAS = 284, slice(28, 30)
_DTYPES: Final = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}
_PIECE = 1 << 20


class _Header(NamedTuple):
    """What a header says about the voxels that follow it."""

    shape: list[int]
    dtype: np.dtype[np.generic]
    affine: npt.NDArray[np.float64]


def recognise(start: bytes) -> bool:
    """Return whether the first bytes of a file, or of what it inflates to, are the format's version."""
    return start.startswith(MAGIC)


def decode(file: BinaryIO) -> Volume:
    """Return the volume of an .mgh or .mgz file, its voxels as stored.

    Raises:
        ScanError: its class says what is wrong; the message holds nothing of the file's content.
    """
    (shape, dtype, affine), voxels = _read(file, keep=True)
    array = np.frombuffer(voxels, dtype).reshape(shape, order="F").astype(dtype.newbyteorder("="), copy=False)
    return Volume(array[np.newaxis], affine, nifti_header(shape, affine, array.dtype))


def check(file: BinaryIO) -> None:
    """Raise what `decode` would raise."""
    _read(file, keep=False)


def _read(plain: BinaryIO, *, keep: bool) -> tuple[_Header, bytes]:
    file = inflating(plain)
    with damage_refused():
        header = _read_header(file)
        if file is not plain:
            reject_bomb(header.shape, bytes_of(plain))
        expected = int(np.prod(header.shape, dtype=np.int64)) * header.dtype.itemsize
        voxels = read_exactly(file, expected, keep=keep)
        _skip_tags(file)
    return header, voxels


def _read_header(file: Readable) -> _Header:
    block = file.read(_HEADER_BYTES)
    if len(block) < _HEADER_BYTES:
        msg = f"The file ends inside its header: {len(block)} of {_HEADER_BYTES} bytes. Send the whole file again."
        raise PayloadTruncated(msg)
    fields = nib.freesurfer.mghformat.MGHHeader(block, check=False)
    sizes = [int(n) for n in fields["dims"]]
    if min(sizes) < 1:
        msg = "The header's sizes are not valid: an axis of length 0 or less. Convert the scan again."
        raise UnsupportedDimensions(msg)
    reject_shape(sizes)
    code = _DTYPES.get(int(fields["type"]))
    if code is None:
        msg = f"The voxel type code {int(fields['type'])} is not known. Convert the scan with mri_convert --out_data_type float."
        raise UnsupportedVoxelType(msg)
    # Asked of the bytes: nibabel puts a guessed orientation into the header of a file without one.
    if int.from_bytes(block[_GOOD_RAS]) != 1:
        msg = "The header does not say how its axes lie in the patient (goodRASFlag is not 1). Convert the scan again from its source."
        raise MissingOrientation(msg)
    return _Header(sizes[:3], np.dtype(code), _affine(fields, sizes[:3]))


def _affine(fields: nib.freesurfer.mghformat.MGHHeader, shape: list[int]) -> npt.NDArray[np.float64]:
    """Return the affine: the header places the voxel at index n / 2, which is not the middle between 0 and n - 1."""
    sizes = fields["delta"].astype(np.float64)
    directions = fields["Mdc"].astype(np.float64).T
    centre = fields["Pxyz_c"].astype(np.float64)
    reject_spacing(sizes)
    if not (np.isfinite(directions).all() and np.isfinite(centre).all()):
        msg = "The header's matrix holds values that are not finite. Convert the scan again from its source."
        raise InvalidHeader(msg)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
        axes = directions * sizes
        origin = centre - axes @ (np.array(shape) / 2)
    return checked_affine(axes, origin, shape)


def _skip_tags(file: Readable) -> None:
    """Read to the end of the file: only there does gzip tell whether it is whole."""
    left = MAX_TAGS_BYTES
    while piece := file.read(_PIECE):
        left -= len(piece)
        if left < 0:
            msg = f"More than {MAX_TAGS_BYTES} bytes were found behind the voxels. Convert the scan again."
            raise PayloadTooLong(msg)
