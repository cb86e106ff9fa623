import numpy as np
import pytest

from service.calibration.floor import ace_floor
from service.calibration.histogram import ReliabilityHistogram
from service.calibration.scores import ace


def test_floor_of_one_uncertain_voxel_is_its_doubt() -> None:
    """A single voxel with p = 0.5 misses by 0.5 whatever its label."""
    assert ace_floor(np.full((2, 1), 0.5, np.float32), replicates=3, seed=0).tolist() == [0.5, 0.5]


def test_floor_of_four_uncertain_voxels() -> None:
    """Of 4 fair coins |heads/4 - 1/2| is 3/16 on average: (2 * 1/2 + 8 * 1/4) / 16."""
    floor = ace_floor(np.full((2, 4), 0.5, np.float32), replicates=4000, seed=0)

    assert floor == pytest.approx(3 / 16, abs=0.01)


def test_floor_of_certainty_is_zero() -> None:
    """Labels drawn from probabilities 0 and 1 never miss, the last class and the first included."""
    certain = np.eye(3, dtype=np.float32)

    assert ace_floor(certain, replicates=5, seed=0).tolist() == [0.0, 0.0, 0.0]


def test_floor_falls_with_the_square_root_of_the_voxels() -> None:
    """Of n fair coins the miss is sqrt(1 / (2 pi n)) on average: 0.0199 for 400, half of it for 1600."""
    few, many = (ace_floor(np.full((2, n), 0.5, np.float32), replicates=400, seed=1) for n in (400, 1600))

    assert few == pytest.approx((2 * np.pi * 400) ** -0.5, rel=0.15)
    assert many == pytest.approx((2 * np.pi * 1600) ** -0.5, rel=0.15)


def test_floor_is_the_ace_of_a_perfectly_calibrated_model() -> None:
    """Where the labels truly follow p, drawn here by other means, the mean ACE equals the floor within its noise."""
    generator = np.random.default_rng(2)
    probs = generator.dirichlet([0.3, 0.3, 0.3], size=(6, 10, 5)).transpose(3, 0, 1, 2).astype(np.float32)
    p_N3 = probs.reshape(3, -1).T.astype(np.float64)
    p_N3 /= p_N3.sum(axis=1, keepdims=True)
    scores = []
    for _ in range(150):
        labels = generator.multinomial(1, p_N3).argmax(axis=1).reshape(probs.shape[1:])
        scores.append(ace(ReliabilityHistogram.from_probabilities(probs, labels)))

    floor = ace_floor(probs, replicates=150, seed=3)

    noise = np.std(scores, axis=0) * np.sqrt(2 / 150)
    assert (np.abs(np.mean(scores, axis=0) - floor) < 4 * noise).all()
    assert (floor > 10 * noise).all()


def test_floor_is_reproducible_by_its_seed() -> None:
    """The same seed gives the same floor, another seed another one."""
    probs = np.random.default_rng(4).dirichlet([1, 1], size=50).T.astype(np.float32)

    first, again, other = (ace_floor(probs, replicates=3, seed=seed) for seed in (5, 5, 6))

    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()
