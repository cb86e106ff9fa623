"""Two masks of a structure -> how far apart their surfaces lie: HD95 and NSD, by MONAI's functions, on the native grid.

The surface of a mask is every voxel of it with a face neighbour outside, where the outside of the image counts as
outside. Distances run from each voxel of one surface to the nearest voxel of the other, in millimetres. Surface voxels
count alike whatever their area: with thick slices, what lies across them weighs less than what lies within.

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
"""Of the distances in either direction; the larger one is HD95."""


def hd95_mm(reference: Mask, predicted: Mask, spacing_mm: Sequence[float]) -> float:
    """Return the 95 % Hausdorff distance in millimetres.

    ``HD95 = max(P95 {d(a, B)}, P95 {d(b, A)})`` for the surfaces A and B, their voxels a and b, d the distance to the
    nearest voxel.

    Args:
        reference: (D, H, W).
        predicted: (D, H, W) on the same grid.
        spacing_mm: distance between voxel centres along the three axes.
    """
    if not (reference.any() and predicted.any()):
        return math.nan
    found, true = _cropped(predicted, reference)
    with _monai_calls_itself():
        distance = compute_hausdorff_distance(
            found, true, include_background=True, percentile=PERCENTILE, spacing=list(spacing_mm)
        )
    return float(distance)


def nsd(reference: Mask, predicted: Mask, spacing_mm: Sequence[float], tolerance_mm: float) -> float:
    """Return the normalised surface Dice, in [0, 1].

    ``NSD = (|{a: d(a, B) <= t}| + |{b: d(b, A) <= t}|) / (|A| + |B|)``, as `hd95_mm`, t the tolerance.

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
    found, true = _cropped(predicted, reference)
    with _monai_calls_itself():
        share = compute_surface_dice(found, true, [tolerance_mm], include_background=True, spacing=list(spacing_mm))
    return float(share)


def _cropped(predicted: Mask, reference: Mask) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both masks, (1, 1, d, h, w), within the smallest box that holds them; what lies beyond is on no surface."""
    both = reference | predicted
    box = []
    for axis in range(both.ndim):
        others = tuple(other for other in range(both.ndim) if other != axis)
        (filled,) = np.nonzero(both.any(axis=others))
        box.append(slice(filled[0], filled[-1] + 1))
    found, true = (torch.from_numpy(mask[tuple(box)].astype(np.uint8))[None, None] for mask in (predicted, reference))
    return found, true


@contextmanager
def _monai_calls_itself() -> Iterator[None]:
    # MONAI 1.6.1 calls one of its own functions with an argument that it has deprecated.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        yield
