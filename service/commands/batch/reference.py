"""How far a mask agrees with a reference: DSC per structure, where a manifest names one."""

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
    """Return 2 |A and B| / (|A| + |B|) by structure, None for one that neither mask nor reference has.

    Args:
        mask: NIfTI file (.nii.gz).
        reference: NIfTI file with the same label values on the same grid.
        summary: names the structures.

    Raises:
        SourceError: the reference cannot be read, or lies on another grid.
    """
    ours = nib.Nifti1Image.from_bytes(gzip.decompress(mask))
    try:
        theirs = nib.Nifti1Image.from_filename(reference)
        labels = np.asarray(theirs.dataobj)
    except (OSError, ValueError, EOFError, *_UNREADABLE) as error:
        msg = f"The reference cannot be read ({type(error).__name__}). Expected a NIfTI file."
        raise SourceError(msg) from error
    if labels.shape != ours.shape or not np.allclose(theirs.affine, ours.affine, atol=1e-3):
        msg = f"The reference is {' x '.join(map(str, labels.shape))} voxels, the scan {' x '.join(map(str, ours.shape))}, or they lie elsewhere. Expected one grid."
        raise SourceError(msg)
    voxels = np.asarray(ours.dataobj)
    return {each.name: _dsc(voxels == each.label, labels == each.label) for each in summary.structures}


def _dsc(one: np.ndarray, other: np.ndarray) -> float | None:
    total = int(one.sum() + other.sum())
    return 2 * int((one & other).sum()) / total if total else None
