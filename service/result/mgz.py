"""Mask -> .mgz, the format of FreeSurfer and FastSurfer."""

from typing import Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip

from service.result.frame import Frame

_GZIP_LEVEL: Final = 1


def encode_mgz(mask: npt.NDArray[np.uint8], frame: Frame) -> bytes:
    """Return the mask as .mgz with its label values, uint8, on the scan's grid.

    The place is exact to the float32 of the format's header: below 0.0001 mm within a metre.

    Args:
        mask: (D, H, W) label values on the scan's grid.
        frame: affine of the scan.
    """
    image = nib.freesurfer.mghformat.MGHImage(mask, frame.affine_ras)
    return igzip.compress(image.to_bytes(), _GZIP_LEVEL, mtime=0)
