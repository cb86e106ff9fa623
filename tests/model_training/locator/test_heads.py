"""Label maps are read as they lie in the patient."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from model_training.data.case import DataError
from model_training.locator.heads import LANDMARKS, OTHER_SIDE, read_heads
from tests.model_training.locator.conftest import place_of


def test_centroids_lie_where_the_landmarks_are(maps: Path) -> None:
    """Centroids are exact to a fraction of a voxel, whatever the order of the file's axes."""
    for head in read_heads(maps):
        assert np.allclose(head.centres_mm, [place_of(name) for name in LANDMARKS], atol=0.5)


def test_the_middle_of_a_ball_is_its_centroid(maps: Path) -> None:
    """The middle of a ball's bounding box is its centroid to within a voxel, whatever the order of the file's axes."""
    for head in read_heads(maps):
        assert np.allclose(head.middles_mm, head.centres_mm, atol=1.1)


def test_volumes_are_those_of_the_balls(maps: Path) -> None:
    """Volumes are 4/3 pi r^3 in millilitres, within the discretisation by 2 mm voxels."""
    first, *_ = read_heads(maps)
    assert np.allclose(first.volumes_ml, 4 / 3 * np.pi * 8**3 / 1000, rtol=0.1)


def test_both_sides_share_their_tissue(maps: Path) -> None:
    """Left and right hippocampus, 17 and 53, are one tissue and two landmarks."""
    first, *_ = read_heads(maps)
    left, right = (first.landmark == channel for channel in (1, 2))
    assert {17} == set(first.values[first.tissue[left | right]].tolist())


def test_the_other_side_of_the_other_side_is_this_one() -> None:
    """Mirroring twice gives the same channel, and left and right names correspond."""
    names = ["background", *LANDMARKS]
    for channel, other in enumerate(OTHER_SIDE):
        swapped = names[channel].replace("left", "L").replace("right", "left").replace("L", "right")
        assert (OTHER_SIDE[other], names[other]) == (channel, swapped)


def test_a_folder_without_maps_is_refused(tmp_path: Path) -> None:
    """A folder without label maps is refused, and so is a map that lacks a landmark, which is named."""
    with pytest.raises(DataError, match="holds no label maps"):
        read_heads(tmp_path)
    nib.save(nib.Nifti1Image(np.full((4, 4, 4), 17, np.int16), np.eye(4)), tmp_path / "half.nii.gz")
    with pytest.raises(DataError, match=r"half.nii.gz has no right hippocampus"):
        read_heads(tmp_path)
