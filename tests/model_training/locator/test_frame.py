"""The reference frame is that of the mean head and of its mirror image."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from model_training.locator.frame import reference, shift_mm
from model_training.locator.heads import LANDMARKS, OTHER_SIDE, read_heads
from tests.model_training.locator.conftest import place_of


def test_the_frame_is_symmetric_and_keeps_shape_and_axes(maps: Path) -> None:
    """Heads turned and moved at random give the places that were put in, but for where the origin is."""
    heads = read_heads(maps)
    rng = np.random.default_rng(0)
    turned = []
    for head in heads:
        q, _ = np.linalg.qr(rng.normal(0, 0.15, (3, 3)) + np.eye(3))
        q *= np.sign(np.diag(q))
        turned.append(replace(head, centres_mm=head.centres_mm @ q.T + rng.uniform(-30, 30, 3)))
    centres = np.array([landmark.centre_mm for landmark in reference(turned)])
    expected = np.array([place_of(name) for name in LANDMARKS])

    assert np.allclose(centres, centres[np.array(OTHER_SIDE[1:]) - 1] * (-1, 1, 1), atol=0.11)
    distances = [np.linalg.norm(c[:, None] - c[None], axis=-1) for c in (centres, expected)]
    assert np.allclose(*distances, atol=0.6)


def test_volumes_leave_room_on_both_sides(maps: Path) -> None:
    """From less than the smallest head's to more than the largest's."""
    heads = read_heads(maps)
    for landmark, volumes in zip(reference(heads), np.array([h.volumes_ml for h in heads]).T, strict=True):
        low, high = landmark.volume_ml
        assert low < volumes.min() < volumes.max() < high
        assert low < landmark.usual_ml < high


def test_the_usual_volume_is_the_mean_of_both_sides(maps: Path) -> None:
    """A left landmark and its right one have the same; one without sides has its own mean."""
    heads = read_heads(maps)
    usual = {landmark.name: landmark.usual_ml for landmark in reference(heads)}
    volumes = dict(zip(LANDMARKS, np.mean([head.volumes_ml for head in heads], axis=0), strict=True))
    both = (volumes["left thalamus"] + volumes["right thalamus"]) / 2
    assert np.allclose([usual["left thalamus"], usual["right thalamus"]], both, atol=1e-3)
    assert np.isclose(usual["brain stem"], volumes["brain stem"], atol=1e-3)


def test_a_box_is_shifted_to_the_middle_of_its_landmark(maps: Path) -> None:
    """Left (2, -4, 1) and right (0, -2, 3) from the centroid: each side has the mean of its own and the other's mirror image."""
    heads = [replace(head, middles_mm=head.centres_mm.copy()) for head in read_heads(maps)]
    names = list(LANDMARKS)
    for head in heads:
        head.middles_mm[names.index("left hippocampus")] += [2, -4, 1]
        head.middles_mm[names.index("right hippocampus")] += [0, -2, 3]

    assert shift_mm(heads, "left hippocampus") == (1, -3, 2)
    assert shift_mm(heads, "right hippocampus") == (-1, -3, 2)
