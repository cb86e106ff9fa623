"""Reads label maps of whole heads: their landmarks, and the tissues that have an intensity of their own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import nibabel as nib
import numpy as np
import numpy.typing as npt

from model_training.data.case import DataError

Points = npt.NDArray[np.float64]

LANDMARKS: Final[dict[str, tuple[int, ...]]] = {
    "left hippocampus": (17,),
    "right hippocampus": (53,),
    "left amygdala": (18,),
    "right amygdala": (54,),
    "left thalamus": (10,),
    "right thalamus": (49,),
    "left caudate": (11,),
    "right caudate": (50,),
    "left putamen": (12,),
    "right putamen": (51,),
    "left pallidum": (13,),
    "right pallidum": (52,),
    "left cerebellum": (7, 8),
    "right cerebellum": (46, 47),
    "brain stem": (16,),
    "fourth ventricle": (15,),
}
"""Values in FreeSurfer's colour table, by landmark; each left landmark is followed by its right one."""

OTHER_SIDE: Final = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 15, 16)
"""Output channel of each landmark in a mirrored head; background first."""

_LEFT_OF: Final = {
    41: 2,
    42: 3,
    43: 4,
    44: 5,
    46: 7,
    47: 8,
    49: 10,
    50: 11,
    51: 12,
    52: 13,
    53: 17,
    54: 18,
    57: 25,
    58: 26,
    60: 28,
    62: 30,
    63: 31,
    137: 136,
    164: 163,
}

SCALP: Final = 500
"""Values from this one on lie outside the brain."""

_VALUES: Final = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """One label map, its axes in RAS order.

    Args:
        name: name of its file.
        tissue: (D, H, W) uint8, index into `values`; both sides of a structure are one tissue.
        landmark: (D, H, W) uint8, output channel of the landmark, 0 elsewhere.
        values: colour-table value of each tissue, background first.
        affine: (4, 4) voxel index to RAS millimetres.
        centres_mm: (L, 3) centroid of each landmark.
        middles_mm: (L, 3) middle of each landmark's bounding box.
        volumes_ml: (L,) volume of each landmark.
    """

    name: str
    tissue: npt.NDArray[np.uint8]
    landmark: npt.NDArray[np.uint8]
    values: npt.NDArray[np.int64]
    affine: Points
    centres_mm: Points
    middles_mm: Points
    volumes_ml: Points


def read_heads(folder: Path) -> list[Head]:
    """Return the heads of a folder of label maps with FreeSurfer's values, sorted by name.

    Raises:
        DataError: the folder holds none, or a map lacks a landmark.
    """
    files = sorted(folder.glob("*.nii.gz"))
    if not files:
        msg = f"{folder} holds no label maps (*.nii.gz with FreeSurfer's values)."
        raise DataError(msg)
    return [_read(file) for file in files]


def _read(file: Path) -> Head:
    image = nib.as_closest_canonical(nib.load(file))
    array = np.ascontiguousarray(image.dataobj, np.int16)
    merged = np.arange(_VALUES)
    merged[list(_LEFT_OF)] = list(_LEFT_OF.values())
    values = np.unique(merged[np.flatnonzero(np.bincount(array.ravel(), minlength=_VALUES))])
    tissue = np.searchsorted(values, merged).astype(np.uint8)[array]
    channel = np.zeros(_VALUES, np.uint8)
    for index, landmark_values in enumerate(LANDMARKS.values(), start=1):
        channel[list(landmark_values)] = index
    landmark = channel[array]
    affine = np.asarray(image.affine, np.float64)
    counts = np.bincount(landmark.ravel(), minlength=len(LANDMARKS) + 1)[1:]
    if missing := [name for name, n in zip(LANDMARKS, counts, strict=True) if n == 0]:
        msg = f"{file.name} has no {missing[0]}: expected FreeSurfer's values, of a whole head."
        raise DataError(msg)
    flat = np.flatnonzero(landmark)
    voxels = np.array(np.unravel_index(flat, landmark.shape))
    channels = landmark.ravel()[flat]
    sums = np.array([np.bincount(channels, axis, len(LANDMARKS) + 1)[1:] for axis in voxels])
    centres = (sums / counts).T
    by_landmark = [voxels[:, channels == index] for index in range(1, len(LANDMARKS) + 1)]
    middles = np.array([(of.min(axis=1) + of.max(axis=1)) / 2 for of in by_landmark])
    return Head(
        name=file.name.removesuffix(".nii.gz"),
        tissue=tissue,
        landmark=landmark,
        values=values,
        affine=affine,
        centres_mm=centres @ affine[:3, :3].T + affine[:3, 3],
        middles_mm=middles @ affine[:3, :3].T + affine[:3, 3],
        volumes_ml=counts * abs(np.linalg.det(affine[:3, :3])) / 1000,
    )
