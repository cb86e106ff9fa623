"""The reference frame is that of the mean head and of its mirror image."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from model_training.locator.frame import reference, shift_mm
from model_training.locator.heads import LANDMARKS, OTHER_SIDE, read_heads
from tests.model_training.locator.conftest import place_of


def test_the_frame_is_symmetric_and_keeps_shape_and_axes(maps: Path) -> None:
    """Randomly rotated and moved heads give back the original shape and axes, up to the origin."""
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
    measured, stated = (np.linalg.norm(c[:, None] - c[None], axis=-1) for c in (centres, expected))
    assert np.allclose(measured, stated, atol=0.6)


def test_volumes_leave_room_on_both_sides(maps: Path) -> None:
    """The accepted volumes range from below the smallest head's to above the largest head's."""
    heads = read_heads(maps)
    for landmark, volumes in zip(reference(heads), np.array([h.volumes_ml for h in heads]).T, strict=True):
        low, high = landmark.volume_ml
        assert low < volumes.min() < volumes.max() < high
        assert low < landmark.usual_ml < high


def test_the_usual_volume_is_the_mean_of_both_sides(maps: Path) -> None:
    """A left landmark and its right counterpart share a mean volume; an unpaired landmark has its own."""
    heads = read_heads(maps)
    usual = {landmark.name: landmark.usual_ml for landmark in reference(heads)}
    volumes = dict(zip(LANDMARKS, np.mean([head.volumes_ml for head in heads], axis=0), strict=True))
    both = (volumes["left thalamus"] + volumes["right thalamus"]) / 2
    assert np.allclose([usual["left thalamus"], usual["right thalamus"]], both, atol=1e-3)
    assert np.isclose(usual["brain stem"], volumes["brain stem"], atol=1e-3)


def test_a_box_is_shifted_to_the_middle_of_its_landmark(maps: Path) -> None:
    """Each side's shift is the mean of its own and the mirrored one of the other side."""
    heads = [replace(head, middles_mm=head.centres_mm.copy()) for head in read_heads(maps)]
    names = list(LANDMARKS)
    for head in heads:
        head.middles_mm[names.index("left hippocampus")] += [2, -4, 1]
        head.middles_mm[names.index("right hippocampus")] += [0, -2, 3]

    assert shift_mm(heads, "left hippocampus") == (1, -3, 2)
    assert shift_mm(heads, "right hippocampus") == (-1, -3, 2)
