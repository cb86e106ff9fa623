"""Two masks of a structure -> how far apart their surfaces lie: HD95 and NSD, by MONAI's functions, on the native grid.

The surface of a mask is every voxel of it with a face neighbour outside, where the outside of the image counts as
outside. Distances run from each voxel of one surface to the nearest voxel of the other, in millimetres. Surface voxels
count alike whatever their area: with thick slices, what lies across them weighs less than what lies within.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

from service.bundle.schema import Structure

Mask: TypeAlias = npt.NDArray[np.bool_]

PERCENTILE: Final = 95
"""Of the distances in either direction; the larger one is HD95."""


@dataclass(frozen=True, slots=True)
class SurfaceScores:
    """Scores of one structure in one case; NaN where undefined.

    =================================== ========= =======
    voxels of the structure             HD95      NSD
    =================================== ========= =======
    in reference and prediction         measured  measured
    in the reference only (missed)      undefined 0
    not in the reference                undefined undefined
    =================================== ========= =======
    """

    hd95_mm: float
    """95 % Hausdorff distance."""
    nsd: float
    """Normalised surface Dice at the tolerance, in [0, 1]."""

    @classmethod
    def undefined(cls) -> Self:
        """Return the scores of a structure that the reference lacks."""
        return cls(math.nan, math.nan)


def surface_scores(reference: Mask, predicted: Mask, spacing_mm: Sequence[float], tolerance_mm: float) -> SurfaceScores:
    """Return how far the surface of the predicted mask lies from that of the reference.

    ``HD95 = max(P95 {d(a, B)}, P95 {d(b, A)})`` and ``NSD = (|{a: d(a, B) <= t}| + |{b: d(b, A) <= t}|) / (|A| + |B|)``
    for the surfaces A and B, their voxels a and b, d the distance to the nearest voxel, t the tolerance.
    Source: Maier-Hein et al., Metrics reloaded, Nat Methods 21:195-212 (2024); percentiles interpolate linearly.

    Args:
        reference: (D, H, W).
        predicted: (D, H, W) on the same grid.
        spacing_mm: distance between voxel centres along the three axes.
        tolerance_mm: distance within which two surfaces agree.
    """
    if not reference.any():
        return SurfaceScores.undefined()
    if not predicted.any():
        return SurfaceScores(math.nan, 0.0)
    box = _bounding_box(reference | predicted)
    found, true = (torch.from_numpy(mask[box].astype(np.uint8))[None, None] for mask in (predicted, reference))
    spacing = list(spacing_mm)
    with warnings.catch_warnings():
        # MONAI 1.6.1 calls one of its own functions with an argument that it has deprecated.
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        hd95 = compute_hausdorff_distance(found, true, include_background=True, percentile=PERCENTILE, spacing=spacing)
        nsd = compute_surface_dice(found, true, [tolerance_mm], include_background=True, spacing=spacing)
    return SurfaceScores(float(hd95), float(nsd))


def structure_surfaces(
    reference: npt.NDArray[np.uint8],
    mask: npt.NDArray[np.uint8],
    structures: Sequence[Structure],
    spacing_mm: Sequence[float],
    tolerance_mm: float,
) -> list[SurfaceScores]:
    """Return the scores of each structure, a region being the union of its classes.

    Args:
        reference: (D, H, W) the true class of each voxel.
        mask: (D, H, W) the predicted class of each voxel.
        structures: what is scored.
        spacing_mm: as `surface_scores`.
        tolerance_mm: as `surface_scores`.
    """
    return [
        surface_scores(np.isin(reference, of.channels), np.isin(mask, of.channels), spacing_mm, tolerance_mm)
        for of in structures
    ]


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    """Return the smallest box that holds the mask; everything beyond it is far from either surface."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        (filled,) = np.nonzero(mask.any(axis=others))
        box.append(slice(filled[0], filled[-1] + 1))
    return tuple(box)
