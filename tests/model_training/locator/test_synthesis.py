"""Scans that never were, and what is known of them."""

import numpy as np

from model_training.locator.evaluate import points_of
from model_training.locator.heads import LANDMARKS, Head
from model_training.locator.synthesis import draw, training_pair


def test_the_same_draw_gives_the_same_scan(heads: list[Head]) -> None:
    """A scan follows from the generator's state alone; another state gives another scan."""
    a, b, c = (draw(heads, np.random.default_rng(seed), whole=True) for seed in (3, 3, 4))
    assert np.array_equal(a.volume.array_CDHW, b.volume.array_CDHW)
    assert a.volume.shape != c.volume.shape or not np.array_equal(a.volume.array_CDHW, c.volume.array_CDHW)


def test_a_landmark_lies_where_the_matrix_takes_the_head_to(heads: list[Head]) -> None:
    """Up to the warp, the matrix takes a landmark's centroid in the scan to that in the head; mirrored, to the other side's."""
    for seed in range(6):
        drawn = draw(heads, np.random.default_rng(seed), whole=True)
        assert drawn.head is not None
        name = "right amygdala" if drawn.mirrored else "left amygdala"
        points = points_of(drawn, "left amygdala")
        centre = drawn.to_head[:3, :3] @ points.mean(axis=0) + drawn.to_head[:3, 3]
        assert np.linalg.norm(centre - drawn.head.centres_mm[list(LANDMARKS).index(name)]) < 20


def test_left_is_left_in_the_patient(heads: list[Head]) -> None:
    """In every scan, mirrored or not, the left amygdala has the smaller x."""
    mirrored = set()
    for seed in range(8):
        drawn = draw(heads, np.random.default_rng(seed), whole=True)
        mirrored.add(drawn.mirrored)
        left, right = (points_of(drawn, f"{side} amygdala").mean(axis=0) for side in ("left", "right"))
        assert left[0] < right[0]
    assert mirrored == {True, False}


def test_image_and_shares_of_a_pair_lie_on_one_grid(heads: list[Head]) -> None:
    """The shares of each voxel sum to one; the shares of a landmark sum to its volume in the scan."""
    drawn = draw(heads, np.random.default_rng(1), whole=True)
    image, share = training_pair(drawn, 17, 4.0)
    assert image.shape[2:] == share.shape[2:]
    assert np.allclose(share.sum(dim=1), 1)
    assert 0 <= float(image.min()) < float(image.max()) <= 1 + 1e-6
    volume = 2**3 * len(points_of(drawn, "brain stem"))
    assert abs(float(share[0, 1 + list(LANDMARKS).index("brain stem")].sum()) * 64 / volume - 1) < 0.1


def test_without_heads_there_are_no_landmarks() -> None:
    """A scan without a head has intensities, but only background."""
    drawn = draw([], np.random.default_rng(0))
    image, share = training_pair(drawn, 17, 4.0)
    assert float(share[:, 0].min()) == 1
    assert float(image.std()) > 0.01
