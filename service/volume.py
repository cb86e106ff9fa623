"""The one image type in memory: voxels, their position in the patient, and the header of their file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

Stated = Mapping[str, tuple[str, ...]]
"""What a scan says: values by DICOM keyword, or by the part of a BIDS name (`suffix`, `ce`). What it does not say is missing."""

KEYWORDS: Final = (
    *("Modality", "BodyPartExamined", "ImageType", "ContrastBolusAgent"),
    *("AcquisitionContrast", "ScanningSequence", "SequenceVariant", "SequenceName", "PulseSequenceName"),
    *("SeriesDescription", "ProtocolName", "EchoTime", "InversionTime", "RepetitionTime", "SliceThickness"),
)
"""DICOM attributes that are read from a series and can be compared."""

VOXEL_SIZE: Final = "voxel-size"
"""Doubt: the file holds two voxel sizes, so that no length or volume is certain."""


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """A 3-D image of C channels on one grid.

    Args:
        array_CDHW: (C, D, H, W) real numbers; D, H, W are the voxel indices i, j, k of the affine, in file order.
        affine: (4, 4) float64, voxel index (i, j, k, 1) to RAS millimetres.
        header: the NIfTI header (348 bytes of NIfTI-1 or 540 of NIfTI-2) that every result on this grid repeats.
        warnings: for the user, e.g. about two orientations that disagree.
        source: for a DICOM series, its headers as kept by `service.intake.dicom.source`, as JSON; they name the patient.
        padding: (D, H, W) voxels that the file declares to show nothing (Pixel Padding Value of DICOM); in the array they
            have the lowest intensity of the others. None if there are none.
        stated: what the scan says about itself; never logged.
        doubts: what the file contradicts itself about, of the constants above: no statement can rest on it.
    """

    array_CDHW: npt.NDArray[np.generic]
    affine: npt.NDArray[np.float64]
    header: bytes
    warnings: tuple[str, ...] = ()
    source: str | None = None
    padding: npt.NDArray[np.bool_] | None = None
    stated: Stated = field(default_factory=dict)
    doubts: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along i, j and k."""
        _, d, h, w = self.array_CDHW.shape
        return d, h, w

    @property
    def spacing_mm(self) -> npt.NDArray[np.float64]:
        """(3,) distance between voxel centres along i, j and k."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000
