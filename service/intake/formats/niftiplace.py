"""Where a NIfTI file lies in the patient: its unit, its two orientations, and its two voxel sizes.

Two matrices may lead to the patient (nifti1.h, METHOD 2 and 3): the qform, a rotation written as a quaternion with the
voxel sizes of pixdim, and the sform, whose columns have sizes of their own. The sform goes first, as in nibabel; one
that holds nothing gives way to the other, with a warning. A sheared sform is refused: it may be a tilted gantry's, whose
qform is wrong on purpose.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import nibabel as nib
import numpy as np
import numpy.typing as npt

from service.errors import InvalidAffine, InvalidSpacing, MissingOrientation
from service.intake.formats.geometry import AGREEMENT, reject_affine, reject_spacing, reject_unphysical
from service.volume import VOXEL_SIZE

SIZES_AGREE: Final = 0.01
"""Largest relative difference of two voxel sizes that counts as rounding; volumes then differ by 3 % at most."""

LONGEST_QUATERNION: Final = 1.001
"""Quaternions up to this length are normalised, as the reference implementation does with any (nifti1_io.c)."""

_ROUNDING = 3 * float(np.finfo(np.float32).eps)
_UNITS: Final = {1: ("metres", 1000.0), 3: ("microns", 0.001)}
_VECTOR = ("quatern_b", "quatern_c", "quatern_d")

Affine = npt.NDArray[np.float64]


class NiftiPlace(NamedTuple):
    """Where the voxels lie, and what the header says of it.

    Args:
        affine: (4, 4) voxel index to RAS millimetres.
        header: the file's, without an orientation that cannot be read.
        warnings: for the user.
        doubts: as of `service.volume.Volume`.
    """

    affine: Affine
    header: nib.Nifti1Header
    warnings: tuple[str, ...]
    doubts: tuple[str, ...]


def place_of(header: nib.Nifti1Header) -> NiftiPlace:
    """Return where the voxels of a file lie.

    Raises:
        MissingOrientation: neither qform nor sform is set.
        InvalidAffine: none that is set can be used, or the one that is used is sheared.
        InvalidSpacing: a voxel size is none, or no body has it.
    """
    kept = header.copy()
    warnings: list[str] = []
    usable, unusable = _orientations(kept, warnings)
    used = next(iter(usable))
    affine = usable[used]
    reject_affine(affine)
    for name, why in unusable.items():
        warnings.append(f"{why}; the {used} was used.")
        kept[f"{name}_code"] = 0
    unit, scale = _UNITS.get(int(header["xyzt_units"]) & 7, ("", 1.0))
    affine[:3] *= scale
    reject_unphysical(header.get_data_shape()[:3], affine)
    if unit:
        warnings.append(f"The header's lengths are in {unit}; they were converted to millimetres.")
    two_sizes = _two_sizes(kept, affine, scale, warnings)
    if not two_sizes and len(usable) > 1:
        tolerance = AGREEMENT * float(np.linalg.norm(affine[:3, :3], axis=0).max())
        if not np.allclose(affine, usable["qform"] * [[scale], [scale], [scale], [1]], atol=tolerance):
            warnings.append("The file holds two orientations (qform and sform) that differ; the sform was used.")
    return NiftiPlace(affine, kept, tuple(warnings), (VOXEL_SIZE,) if two_sizes else ())


def _orientations(header: nib.Nifti1Header, warnings: list[str]) -> tuple[dict[str, Affine], dict[str, str]]:
    """Return the matrices that are set and can be used, by name, and for the others why they cannot."""
    readers: dict[str, Callable[[], Affine]] = {
        "sform": lambda: _sform(header),
        "qform": lambda: _qform(header, warnings),
    }
    usable: dict[str, Affine] = {}
    faults: dict[str, InvalidAffine | InvalidSpacing] = {}
    for name, read in readers.items():
        if int(header[f"{name}_code"]) <= 0:
            continue
        try:
            usable[name] = read()
        except (InvalidAffine, InvalidSpacing) as fault:
            faults[name] = fault
    if not usable and faults:
        raise next(iter(faults.values()))
    if not usable:
        msg = "Both orientations of the header (qform and sform) are unset, so left and right are unknown. Convert the scan again from its source."
        raise MissingOrientation(msg)
    return usable, {name: fault.detail.partition(". ")[0] for name, fault in faults.items()}


def _sform(header: nib.Nifti1Header) -> Affine:
    sform: Affine = header.get_sform()
    if not np.isfinite(sform).all() or not np.linalg.norm(sform[:3, :3], axis=0).all():
        reject_affine(sform)
    return sform


def _qform(header: nib.Nifti1Header, warnings: list[str]) -> Affine:
    """Return the qform; a quaternion that is a little too long is normalised in the header, with a warning."""
    reject_spacing(header["pixdim"][1:4].astype(np.float64))
    vector = np.array([float(header[name]) for name in _VECTOR])
    offset = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
    length = float(np.linalg.norm(vector))
    if (
        not np.isfinite([*vector, *offset]).all()
        or length > LONGEST_QUATERNION
        or header["pixdim"][0] not in (-1, 0, 1)
    ):
        msg = "The header's quaternion is not a rotation. Convert the scan again from its source."
        raise InvalidAffine(msg)
    if length**2 > 1 + _ROUNDING:
        warnings.append(f"The quaternion of the header's qform has a length of {length:.7g}; it was normalised.")
        for name, component in zip(_VECTOR, vector / length, strict=True):
            header[name] = component
    # NIfTI-1 standard, method 2: a qfac (pixdim[0]) of 0 means 1.
    readable = header.copy()
    readable["pixdim"][0] = header["pixdim"][0] or 1
    return np.asarray(readable.get_qform(), dtype=np.float64)


def _two_sizes(header: nib.Nifti1Header, affine: Affine, scale: float, warnings: list[str]) -> bool:
    """Return whether pixdim has other voxel sizes than the affine; write those of the affine over sizes that are none."""
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    written = header["pixdim"][1:4].astype(np.float64) * scale
    if not (np.isfinite(written) & (written > 0)).all():
        if not any("voxel size" in warning for warning in warnings):
            warnings.append("The header's voxel size (pixdim) is zero, negative or not a number; the sform's was used.")
        header["pixdim"][1:4] = sizes / scale
        return False
    if (np.abs(written / sizes - 1) <= SIZES_AGREE).all():
        return False
    warnings.append(
        f"The header holds two voxel sizes: {_spelt(sizes)} by its sform, which was used, and {_spelt(written)} by its "
        "pixdim, which other programs use. No volume can be stated."
    )
    return True


def _spelt(sizes_mm: Affine) -> str:
    return " x ".join(f"{mm:.4g}" for mm in sizes_mm) + " mm"
