"""Two masks of a structure -> the distance of their surfaces, HD95 and NSD, by MONAI's functions on the native grid.

The surface of a mask consists of its voxels with a face neighbour outside the mask; the outside of the image counts as
outside. Distances are measured from each voxel of one surface to the nearest voxel of the other, in millimetres. All
surface voxels have equal weight whatever their area: with thick slices, surfaces across the slices weigh less than
surfaces within them.

=================================== ========= =======
voxels of the structure             HD95      NSD
=================================== ========= =======
in reference and prediction         measured  measured
in the reference only (missed)      undefined 0
not in the reference                undefined undefined
=================================== ========= =======

Undefined is NaN. Source: Maier-Hein et al., Metrics reloaded, Nat Methods 21:195-212 (2024); percentiles interpolate
linearly.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

Mask: TypeAlias = npt.NDArray[np.bool_]

PERCENTILE: Final = 95
"""Percentile of the distances in either direction; the larger one is HD95."""


def hd95_mm(reference: Mask, predicted: Mask, spacing_mm: Sequence[float]) -> float:
    """Return the 95 % Hausdorff distance in millimetres.

    ``HD95 = max(P95 {d(a, B)}, P95 {d(b, A)})`` for the surfaces A and B with voxels a and b, where d is the distance
    to the nearest voxel of a surface.

    Args:
        reference: (D, H, W).
        predicted: (D, H, W) on the same grid.
        spacing_mm: distance between voxel centres along the three axes.
    """
    if not (reference.any() and predicted.any()):
        return math.nan
    predicted_box, reference_box = _cropped(predicted, reference)
    with _monai_deprecation_ignored():
        distance = compute_hausdorff_distance(
            predicted_box, reference_box, include_background=True, percentile=PERCENTILE, spacing=list(spacing_mm)
        )
    return float(distance)


def nsd(reference: Mask, predicted: Mask, spacing_mm: Sequence[float], tolerance_mm: float) -> float:
    """Return the normalised surface Dice, in [0, 1].

    ``NSD = (|{a: d(a, B) <= t}| + |{b: d(b, A) <= t}|) / (|A| + |B|)`` with the notation of `hd95_mm` and tolerance t.

    Args:
        reference: (D, H, W).
        predicted: (D, H, W) on the same grid.
        spacing_mm: distance between voxel centres along the three axes.
        tolerance_mm: distance within which two surfaces agree.
    """
    if not reference.any():
        return math.nan
    if not predicted.any():
        return 0.0
    predicted_box, reference_box = _cropped(predicted, reference)
    with _monai_deprecation_ignored():
        agreement = compute_surface_dice(
            predicted_box, reference_box, [tolerance_mm], include_background=True, spacing=list(spacing_mm)
        )
    return float(agreement)


def _cropped(predicted: Mask, reference: Mask) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both masks, (1, 1, d, h, w), cropped to their common bounding box, which contains both surfaces."""
    both = reference | predicted
    box = []
    for axis in range(both.ndim):
        others = tuple(other for other in range(both.ndim) if other != axis)
        (filled,) = np.nonzero(both.any(axis=others))
        box.append(slice(filled[0], filled[-1] + 1))
    cropped = (torch.from_numpy(mask[tuple(box)].astype(np.uint8))[None, None] for mask in (predicted, reference))
    predicted_box, reference_box = cropped
    return predicted_box, reference_box


@contextmanager
def _monai_deprecation_ignored() -> Iterator[None]:
    # MONAI 1.6.1 itself uses an argument that it has deprecated.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        yield
