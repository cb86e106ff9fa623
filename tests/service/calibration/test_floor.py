import math

import numpy as np
import numpy.typing as npt
import pytest

from service.calibration.floor import ace_floor, normal_cdf
from service.calibration.histogram import ReliabilityHistogram
from service.calibration.scores import ace


def test_floor_of_one_uncertain_voxel() -> None:
    """A single voxel with p = 0.5 has a gap of 0.5 for either label."""
    assert ace_floor(np.full((2, 1), 0.5, np.float32), replicates=3, seed=0).tolist() == [0.5, 0.5]


def test_floor_of_four_uncertain_voxels() -> None:
    """For 4 fair coins |heads/4 - 1/2| is 3/16 on average: (2 * 1/2 + 8 * 1/4) / 16."""
    floor = ace_floor(np.full((2, 4), 0.5, np.float32), replicates=4000, seed=0)

    assert floor == pytest.approx(3 / 16, abs=0.01)


def test_floor_of_certainty_is_zero() -> None:
    """Labels drawn from probabilities 0 and 1 have no gap, including the first and the last class."""
    certain = np.eye(3, dtype=np.float32)

    assert ace_floor(certain, replicates=5, seed=0).tolist() == [0.0, 0.0, 0.0]


def test_floor_falls_with_the_square_root_of_the_voxels() -> None:
    """For n fair coins the mean gap is sqrt(1 / (2 pi n)): 0.0199 for 400, half of it for 1600."""
    few, many = (ace_floor(np.full((2, n), 0.5, np.float32), replicates=400, seed=1) for n in (400, 1600))

    assert few == pytest.approx((2 * np.pi * 400) ** -0.5, rel=0.15)
    assert many == pytest.approx((2 * np.pi * 1600) ** -0.5, rel=0.15)


def test_floor_is_the_ace_of_a_perfectly_calibrated_model() -> None:
    """For labels that truly follow p, drawn independently here, the mean ACE equals the floor within its noise."""
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
    """The same seed gives the same floor; another seed gives another."""
    probs = np.random.default_rng(4).dirichlet([1, 1], size=50).T.astype(np.float32)

    first, again, other = (ace_floor(probs, replicates=3, seed=seed) for seed in (5, 5, 6))

    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def random_image(seed: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return the probabilities of 3 classes, (3, ...)."""
    draws = np.random.default_rng(seed).dirichlet([0.3, 0.3, 0.3], size=shape)
    return np.moveaxis(draws, -1, 0).astype(np.float32)


def test_independent_voxels_are_drawn_as_in_the_first_cards() -> None:
    """Cards store the floor, so it must not change: one random number per voxel in this order, against float64 edges."""
    probs = random_image(7, (5, 6, 7))
    generator = np.random.default_rng(8)
    edges = np.cumsum(probs.reshape(3, -1), axis=0, dtype=np.float64)[:-1]
    draws = []
    for _ in range(4):
        labels = (generator.random(210) >= edges).sum(axis=0)
        histogram = ReliabilityHistogram.from_probabilities(probs.reshape(3, -1), labels)
        draws.append(ace(histogram, include_absent=True))

    assert ace_floor(probs, replicates=4, seed=8).tolist() == np.mean(draws, axis=0).tolist()


def test_a_structure_has_the_floor_of_its_summed_probability() -> None:
    """Two of three classes joined have the floor of the merged class."""
    probs = random_image(9, (4, 5, 6))
    merged = np.stack([probs[0], np.minimum(probs[1] + probs[2], 1)])

    actual = ace_floor(probs, [(0,), (1, 2)], replicates=10, seed=1)

    assert actual.tolist() == ace_floor(merged, replicates=10, seed=1).tolist()
    default = ace_floor(probs, replicates=2, seed=1)
    assert default.tolist() == ace_floor(probs, [(0,), (1,), (2,)], replicates=2, seed=1).tolist()


def test_the_normal_distribution_function_is_as_close_as_its_source_says() -> None:
    """Abramowitz and Stegun give an error of 7.5e-8; math.erfc is exact in float64."""
    x = np.linspace(-9, 9, 20_001)
    exact = [0.5 * math.erfc(-value / math.sqrt(2)) for value in x.tolist()]

    actual = normal_cdf(x)

    assert np.abs(actual - exact).max() < 7.5e-8
    assert actual.min() >= 0
    assert actual.max() <= 1


@pytest.mark.parametrize("shape", [(4000,), (60, 66), (12, 17, 20)])
def test_correlated_labels_still_follow_p(shape: tuple[int, ...]) -> None:
    """For p = (0.2, 0.3, 0.5) everywhere, labels of 60 maps have these frequencies within four standard errors."""
    p = np.array([0.2, 0.3, 0.5], np.float32)
    probs = np.broadcast_to(p.reshape(3, *(1 for _ in shape)), (3, *shape))

    frequencies = np.stack([frequency_of_labels(probs, seed, correlation_voxels=1.5) for seed in range(60)])

    error = frequencies.std(axis=0) / np.sqrt(60)
    assert (np.abs(frequencies.mean(axis=0) - p) < 4 * error).all()
    assert (error < 0.01).all()


def test_agreement_decreases_with_distance() -> None:
    """Fair coins with noise correlated by r = exp(-d^2 / 4 s^2) agree with probability asin(r) / pi + 1/2 (Sheppard)."""
    labels = [labels_drawn(np.full((2, 40, 41), 0.5, np.float32), seed, correlation_voxels=2.0) for seed in range(20)]

    for d in (1, 3, 20):
        expected = 0.5 + math.asin(math.exp(-(d**2) / 16)) / math.pi
        along_rows = np.mean([(one[:, d:] == one[:, :-d]).mean() for one in labels])
        along_columns = np.mean([(one[d:] == one[:-d]).mean() for one in labels])
        assert (along_rows, along_columns) == pytest.approx((expected, expected), abs=0.03)


def test_opposite_faces_are_not_neighbours() -> None:
    """The first and the last voxel of a row are independent, although the Fourier transform is periodic."""
    ends = [labels_drawn(np.full((2, 30, 12), 0.5, np.float32), seed, correlation_voxels=2.0) for seed in range(60)]

    assert np.mean([(one[:, 0] == one[:, -1]).mean() for one in ends]) == pytest.approx(0.5, abs=0.06)


def test_floor_grows_with_the_correlation() -> None:
    """Longer correlations leave fewer independent voxels and raise the floor."""
    probs = random_image(10, (10, 12, 14))

    floors = [ace_floor(probs, replicates=20, seed=2, correlation_voxels=voxels) for voxels in (0.0, 1.0, 2.0, 4.0)]

    assert (np.diff(np.stack(floors), axis=0) > 0).all()


def test_correlated_floor_of_certainty_is_zero() -> None:
    """Probabilities 0 and 1 leave no room for noise of any reach."""
    certain = np.repeat(np.eye(3, dtype=np.float32), 50, axis=1)

    assert ace_floor(certain, replicates=5, seed=0, correlation_voxels=3.0).tolist() == [0.0, 0.0, 0.0]


def test_the_correlated_floor_is_reproducible_by_its_seed() -> None:
    """The same seed gives the same floor; another seed gives another."""
    probs = random_image(11, (6, 5, 4))

    first, again, other = (
        ace_floor(probs, replicates=3, seed=seed, correlation_voxels=1.0).tolist() for seed in (5, 5, 6)
    )

    assert first == again
    assert first != other


@pytest.mark.parametrize("length", [-1.0, float("nan"), float("inf")])
def test_an_invalid_correlation_length_is_refused(length: float) -> None:
    """The message gives the value and the meaning of 0."""
    with pytest.raises(ValueError, match="expected 0 for independent voxels"):
        ace_floor(np.ones((1, 4), np.float32), replicates=1, seed=0, correlation_voxels=length)


def labels_drawn(probs: npt.NDArray[np.float32], seed: int, *, correlation_voxels: float) -> npt.NDArray[np.integer]:
    """Return the label map from which the floor is computed."""
    drawn: list[npt.NDArray[np.integer]] = []
    from_probabilities = ReliabilityHistogram.from_probabilities

    def recorded(*arguments: object) -> ReliabilityHistogram:
        drawn.append(arguments[1])  # type: ignore[arg-type]
        return from_probabilities(*arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReliabilityHistogram, "from_probabilities", recorded)
        ace_floor(probs, replicates=1, seed=seed, correlation_voxels=correlation_voxels)
    return drawn[0]


def frequency_of_labels(
    probs: npt.NDArray[np.float32], seed: int, *, correlation_voxels: float
) -> npt.NDArray[np.float64]:
    """Return the frequency of each class in one label map, (3,)."""
    labels = labels_drawn(probs, seed, correlation_voxels=correlation_voxels)
    return np.bincount(labels.ravel(), minlength=3) / labels.size
