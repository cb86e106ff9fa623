import numpy as np

from model_training.evaluation.surfaces import SurfaceScores, structure_surfaces
from service.bundle.schema import StructureChannels


def test_a_region_is_the_union_of_its_classes() -> None:
    """With the two halves of a region swapped, the region is right and each half is off by two slices."""
    reference, mask = np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)
    reference[:, :, :2], reference[:, :, 2:] = 1, 2
    mask[:, :, :2], mask[:, :, 2:] = 2, 1
    structures = [StructureChannels("whole", (1, 2)), StructureChannels("half", (1,))]

    whole, half = structure_surfaces(reference, mask, structures, [1, 1, 3], 1.0)

    assert whole == SurfaceScores(0.0, 1.0)
    assert half == SurfaceScores(6.0, 0.0)
