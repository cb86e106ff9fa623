"""Surface distances of each structure of a case, by `service.derived.surfaces`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from service.bundle.schema import StructureChannels
from service.derived.surfaces import hd95_mm, nsd


@dataclass(frozen=True, slots=True)
class SurfaceScores:
    """Scores of one structure in one case; NaN where undefined."""

    hd95_mm: float
    """95 % Hausdorff distance."""
    nsd: float
    """Normalised surface Dice at the tolerance, in [0, 1]."""

    @classmethod
    def undefined(cls) -> Self:
        """Return the scores of a structure that the reference lacks."""
        return cls(math.nan, math.nan)


def structure_surfaces(
    reference: npt.NDArray[np.uint8],
    mask: npt.NDArray[np.uint8],
    structures: Sequence[StructureChannels],
    spacing_mm: Sequence[float],
    tolerance_mm: float,
) -> list[SurfaceScores]:
    """Return the scores of each structure; a region is the union of its classes.

    Args:
        reference: (D, H, W) true class of each voxel.
        mask: (D, H, W) predicted class of each voxel.
        structures: structures to score.
        spacing_mm: voxel spacing along the three axes.
        tolerance_mm: distance within which two surfaces agree.
    """
    scores = []
    for structure in structures:
        true, predicted = np.isin(reference, structure.channels), np.isin(mask, structure.channels)
        scores.append(
            SurfaceScores(hd95_mm(true, predicted, spacing_mm), nsd(true, predicted, spacing_mm, tolerance_mm))
        )
    return scores
