"""Compares a mask with the reference that a manifest names: DSC by structure."""

import gzip
from pathlib import Path
from typing import Final

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from service.errors import SourceError
from service.schemas import Summary

_UNREADABLE: Final = (ImageFileError, HeaderDataError, WrapStructError)


def dsc_of(mask: bytes, reference: Path, summary: Summary) -> dict[str, float | None]:
    """Return the Dice coefficient 2 |A and B| / (|A| + |B|) by structure; None if neither mask nor reference has it.

    Args:
        mask: NIfTI file (.nii.gz).
        reference: NIfTI file with the same label values on the same grid.
        summary: summary that names the structures.

    Raises:
        SourceError: the reference cannot be read, or lies on another grid.
    """
    mask_image = nib.Nifti1Image.from_bytes(gzip.decompress(mask))
    try:
        reference_image = nib.Nifti1Image.from_filename(reference)
        labels = np.asarray(reference_image.dataobj)
    except (OSError, ValueError, EOFError, *_UNREADABLE) as error:
        msg = f"The reference cannot be read ({type(error).__name__}). Expected a NIfTI file."
        raise SourceError(msg) from error
    same_place = np.allclose(reference_image.affine, mask_image.affine, atol=1e-3)
    if labels.shape != mask_image.shape or not same_place:
        msg = f"The reference is {' x '.join(map(str, labels.shape))} voxels, the scan {' x '.join(map(str, mask_image.shape))}, or they lie elsewhere. Expected one grid."
        raise SourceError(msg)
    voxels = np.asarray(mask_image.dataobj)
    return {
        structure.name: _dsc(voxels == structure.label, labels == structure.label) for structure in summary.structures
    }


def _dsc(one: np.ndarray, other: np.ndarray) -> float | None:
    total = int(one.sum() + other.sum())
    return 2 * int((one & other).sum()) / total if total else None
