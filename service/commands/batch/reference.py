"""Compares a mask with the reference that a manifest names: DSC by structure."""

import tempfile
from pathlib import Path

import numpy as np

from service.derived.reference import reject_other_grid
from service.errors import GeometryMismatch, ScanError, SourceError
from service.intake.decode import decode_scan
from service.schemas import Summary


def dsc_of(mask: bytes, reference: Path, summary: Summary) -> dict[str, float | None]:
    """Return the Dice coefficient 2 |A and B| / (|A| + |B|) by structure; None if neither mask nor reference has it.

    Both files are read as scans are, so a damaged or truncated reference is refused instead of compared.

    Args:
        mask: NIfTI file (.nii.gz).
        reference: file in any format of scans, with the same label values on the same grid.
        summary: summary that names the structures.

    Raises:
        SourceError: the reference cannot be read, or lies on another grid.
    """
    with tempfile.NamedTemporaryFile(suffix=".nii.gz") as file:
        file.write(mask)
        file.flush()
        predicted = decode_scan(Path(file.name))
    try:
        # Not in a sandbox: the file is the caller's own, and the batch blocks the signals that end a waiting one.
        volume = decode_scan(reference)
        reject_other_grid(volume, predicted.shape, predicted.affine)
    except OSError as error:
        msg = f"The reference cannot be read ({type(error).__name__}). Check its path and permissions."
        raise SourceError(msg) from error
    except (ScanError, GeometryMismatch) as error:
        msg = f"The reference cannot be compared. {error.detail}"
        raise SourceError(msg) from error
    voxels, labels = predicted.array_CDHW[0], volume.array_CDHW[0]
    return {
        structure.name: _dsc(voxels == structure.label, labels == structure.label) for structure in summary.structures
    }


def _dsc(one: np.ndarray, other: np.ndarray) -> float | None:
    total = int(one.sum() + other.sum())
    return 2 * int((one & other).sum()) / total if total else None
