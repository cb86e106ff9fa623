"""The body that NRRD and MetaImage share: voxels of one type behind their header, the first index fastest.

Each format reads its own header into a `Layout`; from there on they are the same.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from service.errors import UnsupportedDimensions
from service.intake.formats.geometry import nifti_header
from service.intake.formats.payload import Readable, damage_refused, read_voxels
from service.intake.formats.textheader import Fields
from service.volume import Volume

MAX_RANK: Final = 7
"""Most axes of a header, as in NIfTI; beyond three, all have one voxel."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """What a header says about the voxels that follow it.

    Args:
        shape: voxels along i, j and k.
        dtype: of a stored voxel, with its byte order.
        affine: (4, 4) voxel index (i, j, k, 1) to RAS millimetres.
        payload: yields the voxels uncompressed.
    """

    shape: list[int]
    dtype: np.dtype[np.generic]
    affine: npt.NDArray[np.float64]
    payload: Readable


def read_volume(layout: Layout) -> Volume:
    """Return the volume, its voxels as stored but in native byte order.

    Raises:
        PayloadTruncated: fewer bytes than the header announces, or damaged compression.
        PayloadTooLong: more bytes than that.
    """
    voxels = np.frombuffer(_voxels(layout, keep=True), layout.dtype).reshape(layout.shape, order="F")
    array = voxels.astype(layout.dtype.newbyteorder("="), copy=False)
    return Volume(array[np.newaxis], layout.affine, nifti_header(layout.shape, layout.affine, array.dtype))


def check_volume(layout: Layout) -> None:
    """Raise what `read_volume` would raise, without keeping the voxels."""
    _voxels(layout, keep=False)


def read_sizes(fields: Fields, name: str, rank: int) -> list[int]:
    """Return the positive sizes of a field, one for each axis.

    Raises:
        InvalidHeader: not so many integers.
        UnsupportedDimensions: a rank that no 3-D volume has, or a size below 1.
    """
    if not 3 <= rank <= MAX_RANK:  # noqa: PLR2004 - three axes in space
        msg = f"{rank} axes were found; a 3-D volume is expected. Extract one volume and send that."
        raise UnsupportedDimensions(msg)
    sizes = fields.integers(name, rank)
    if min(sizes) < 1:
        msg = "The header's sizes are not valid: an axis of length 0 or less. Convert the scan again."
        raise UnsupportedDimensions(msg)
    return sizes


def _voxels(layout: Layout, *, keep: bool) -> bytes:
    expected = int(np.prod(layout.shape, dtype=np.int64)) * layout.dtype.itemsize
    with damage_refused():
        return read_voxels(layout.payload, expected, keep=keep)
