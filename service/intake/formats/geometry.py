"""Checks of shape, voxel size and axes that every format passes, and the NIfTI header of results on its grid.

An affine maps voxel indices (i, j, k, 1) to millimetres; it is RAS unless its name says LPS.
"""

from collections.abc import Sequence
from typing import BinaryIO, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt

from service.errors import InvalidAffine, InvalidSpacing, UnsupportedDimensions, VolumeTooLarge

MAX_VOXELS: Final = 1 << 29
"""Maximum number of voxels of a volume, 512 x 512 x 2048."""

FEW_VOXELS: Final = 1 << 24
"""A volume of so many voxels, 256 x 256 x 256, may come from a file of any size."""

MAX_VOXELS_PER_BYTE: Final = 128
"""Voxels of a larger volume for each byte of its file. Scans with noise in them have 0.3 to 4, with most of the noise
masked away 30: what compresses better is a drawing, or made to cost work."""

AGREEMENT: Final = 1e-3
"""Largest cosine between two axes, and largest fraction of a voxel by which two orientations may differ."""

EXTREMES_MM: Final = (1e-6, 1e6)
"""Smallest voxel size and largest coordinate accepted from formats other than NIfTI, well within float32's range."""

LONGEST_MM: Final = 5000.0
"""Longest edge of a volume: more than twice the table of any scanner. A longer one has a wrong voxel size or unit."""

_NIFTI1_AXIS = 32767
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def reject_shape(shape: Sequence[int]) -> None:
    """Refuse shapes that are not one 3-D volume of at least 2 voxels along each axis; trailing axes of length 1 are ignored.

    Raises:
        UnsupportedDimensions: fewer or more axes, or an axis of one voxel.
        VolumeTooLarge: more than `MAX_VOXELS` voxels.
    """
    extents = " x ".join(map(str, shape))
    if len(shape) > 3 and max(shape[3:]) > 1:  # noqa: PLR2004 - three axes in space
        msg = f"A {len(shape)}-D image of {extents} was found; a 3-D volume is expected. Extract one volume and send that."
        raise UnsupportedDimensions(msg)
    if len(shape) < 3 or min(shape[:3]) < 2:  # noqa: PLR2004 - a single slice is not a volume
        msg = f"An image of {extents} was found; a 3-D volume with at least 2 voxels along each axis is expected. Send the whole volume, not a slice."
        raise UnsupportedDimensions(msg)
    if int(np.prod(shape, dtype=object)) > MAX_VOXELS:
        msg = (
            f"A volume of {extents} voxels was found; at most {MAX_VOXELS} voxels are accepted. Crop or downsample it."
        )
        raise VolumeTooLarge(msg)


def reject_bomb(shape: Sequence[int], file_bytes: int) -> None:
    """Refuse a large volume in a file that is far too small for a scan: the work of a case grows with its voxels.

    Called for every compressed file before a voxel is read; one that is not compressed holds a byte for each voxel.

    Args:
        shape: voxels along i, j, k.
        file_bytes: of the compressed file.

    Raises:
        VolumeTooLarge: more than `FEW_VOXELS` voxels, and more than `MAX_VOXELS_PER_BYTE` for each byte.
    """
    voxels = int(np.prod(shape[:3], dtype=object))
    if voxels > max(FEW_VOXELS, MAX_VOXELS_PER_BYTE * file_bytes):
        msg = (
            f"A volume of {voxels} voxels was found in a file of {file_bytes} bytes; with more than {FEW_VOXELS} voxels, at most "
            f"{MAX_VOXELS_PER_BYTE} voxels are accepted for each byte, since no scan compresses so well. Send the scan as it was acquired, or "
            "crop it to what it shows."
        )
        raise VolumeTooLarge(msg)


def bytes_of(file: BinaryIO) -> int:
    """Return the size of a file, which stays where it is positioned."""
    at = file.tell()
    size = file.seek(0, 2)
    file.seek(at)
    return size


def reject_spacing(spacing_mm: npt.NDArray[np.float64]) -> None:
    """Refuse voxel sizes that are not finite and positive.

    Raises:
        InvalidSpacing: such a size.
    """
    if not np.all(np.isfinite(spacing_mm) & (spacing_mm > 0)):
        msg = "The header's voxel size is zero, negative or not a number. Convert the scan again from its source."
        raise InvalidSpacing(msg)


def reject_affine(affine: npt.NDArray[np.float64]) -> None:
    """Refuse an affine that is not finite, is singular, or has axes that are not at right angles.

    Raises:
        InvalidAffine: such an affine.
    """
    if not np.isfinite(affine).all():
        msg = "The header's matrix holds values that are not finite. Convert the scan again from its source."
        raise InvalidAffine(msg)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not lengths.all():
        msg = "The header's matrix is singular: an axis has length 0. Convert the scan again from its source."
        raise InvalidAffine(msg)
    axes = affine[:3, :3] / lengths
    shear = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if shear > AGREEMENT:
        msg = (
            f"The header's axes are not at right angles (cosine {shear:.3f}). Resample the scan to a rectangular grid."
        )
        raise InvalidAffine(msg)


def reject_unphysical(shape: Sequence[int], affine: npt.NDArray[np.float64]) -> None:
    """Refuse a volume that is no body's: a voxel size, an edge or a place beyond what any scanner has.

    Called for every format before a voxel is read: the memory and the time of a case grow with its edges in millimetres.

    Args:
        shape: voxels along i, j, k.
        affine: (4, 4) voxel index to millimetres, finite.

    Raises:
        InvalidSpacing: a voxel size below a nanometre, or an edge longer than `LONGEST_MM`.
        InvalidAffine: a place more than a kilometre off.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    edges = spacing * np.array(shape[:3], np.float64)
    if spacing.min() < EXTREMES_MM[0] or edges.max() > LONGEST_MM:
        sizes, mm = " x ".join(f"{size:.3g}" for size in spacing), " x ".join(f"{edge:.3g}" for edge in edges)
        msg = (
            f"Voxels of {sizes} mm, so a volume of {mm} mm, were found; an edge of at most {LONGEST_MM:.0f} mm is expected. "
            "Check the header's voxel size and its unit."
        )
        raise InvalidSpacing(msg)
    if np.abs(affine[:3, 3]).max() > EXTREMES_MM[1]:
        msg = f"The first voxel lies more than {EXTREMES_MM[1]:.0f} mm from the origin. Convert the scan again from its source."
        raise InvalidAffine(msg)


def checked_affine(axes_mm: npt.ArrayLike, origin_mm: npt.ArrayLike, shape: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return the (4, 4) affine of a grid, in the coordinate system of the arguments, after the checks above.

    Args:
        axes_mm: (3, 3) one column for each of i, j, k: the step from a voxel to the next along that axis.
        origin_mm: (3,) centre of the first voxel.
        shape: voxels along i, j, k.

    Raises:
        InvalidSpacing: a voxel size of zero or below a nanometre, or an edge longer than `LONGEST_MM`.
        InvalidAffine: not finite, a component above a kilometre, or axes not at right angles.
    """
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes_mm, origin_mm
    if not (np.abs(affine) <= EXTREMES_MM[1]).all():  # false for NaN, too
        msg = f"The header's matrix holds values that are not finite or beyond {EXTREMES_MM[1]:.0f} mm. Convert the scan again from its source."
        raise InvalidAffine(msg)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    reject_spacing(np.where(spacing < EXTREMES_MM[0], 0, spacing))
    reject_affine(affine)
    reject_unphysical(shape, affine)
    return affine


def lps_to_ras(affine_lps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Convert an affine from LPS, the coordinates of DICOM and ITK, to RAS; the same function converts back."""
    return _LPS_TO_RAS @ affine_lps


def nifti_header(shape: Sequence[int], affine: npt.NDArray[np.float64], dtype: npt.DTypeLike) -> bytes:
    """Return the NIfTI header for results on the grid of a scan that came in another format.

    The sform is the affine rounded to float32: less than 0.0001 mm for coordinates below one metre. The qform is set
    where a quaternion reproduces the affine within a thousandth of a voxel, and unset otherwise. The header is
    NIfTI-1, or NIfTI-2 if an axis has more than 32767 voxels.

    Args:
        shape: voxels along i, j, k.
        affine: (4, 4) to RAS, checked.
        dtype: type of the scan's voxels.
    """
    header_type: type[nib.Nifti1Header] = nib.Nifti1Header if max(shape) <= _NIFTI1_AXIS else nib.Nifti2Header
    header = header_type(endianness="<")
    header.set_data_dtype(np.dtype(dtype).newbyteorder("<"))
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1, strip_shears=True)
    corners = np.array(np.meshgrid(*((0, n - 1) for n in shape), [1], indexing="ij")).reshape(4, -1)
    distance = np.abs((header.get_qform() - affine) @ corners).max()
    if distance > AGREEMENT * np.linalg.norm(affine[:3, :3], axis=0).min():
        header["qform_code"] = 0
    return header.binaryblock
