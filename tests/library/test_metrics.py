"""`calibrant.metrics` against brute force in float64 and against torchmetrics."""

import inspect

import numpy as np
import numpy.typing as npt
import pytest
import torch
from calibrant import InvalidProbabilities, metrics
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_calibration_error


def drawn(seed: int, classes: int, voxels: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return probabilities (C, N) and labels (N,); the last class has no voxel."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(classes), voxels).T.astype(np.float32)
    return probs, rng.integers(0, classes - 1, voxels)


def gaps(p: npt.NDArray[np.float32], y: npt.NDArray[np.bool_], bins: int) -> list[tuple[int, float]]:
    """Return (voxels, gap) of each filled bin of one class, voxel by voxel in Python."""
    filled: dict[int, list[tuple[float, bool]]] = {}
    for value, truth in zip(p, y, strict=True):
        index = max(int(np.ceil(np.float32(value) * np.float32(bins))) - 1, 0)
        filled.setdefault(index, []).append((float(value), bool(truth)))
    return [(len(members), abs(sum(v - t for v, t in members)) / len(members)) for members in filled.values()]


@given(st.integers(0, 1000), st.integers(3, 5), st.integers(20, 200), st.sampled_from([5, 10, 15, 20]))
def test_they_are_the_equations(seed: int, classes: int, voxels: int, bins: int) -> None:
    """ACE, ECE and MCE equal a loop over voxels in float64; an absent class is NaN."""
    probs, labels = drawn(seed, classes, voxels)
    for c in range(classes):
        of_bins = gaps(probs[c], labels == c, bins)
        expected = {
            metrics.ace: np.mean([gap for _, gap in of_bins]),
            metrics.ece: sum(n * gap for n, gap in of_bins) / voxels,
            metrics.mce: max(gap for _, gap in of_bins),
        }
        for function, value in expected.items():
            found = function(probs, labels, bins=bins)[c]
            assert np.isnan(found) if not (labels == c).any() else found == pytest.approx(value, abs=1e-6)


def test_torchmetrics_agrees() -> None:
    """Of two classes ECE and MCE are those of torchmetrics, of one class against the other."""
    rng = np.random.default_rng(5)
    p = rng.random(3000).astype(np.float32)
    labels = (rng.random(3000) < p).astype(np.int64)
    probs = np.stack([1 - p, p])
    for function, norm in ((metrics.ece, "l1"), (metrics.mce, "max")):
        expected = binary_calibration_error(torch.tensor(p), torch.tensor(labels), n_bins=20, norm=norm)  # type: ignore[arg-type]
        assert function(probs, labels)[1] == pytest.approx(float(expected), abs=1e-5)


def test_proper_scores_by_hand() -> None:
    """Two voxels, p of the truth 0.8 and 0.4."""
    probs, labels = np.array([[0.8, 0.6], [0.2, 0.4]]), np.array([0, 1])
    assert metrics.brier(probs, labels) == pytest.approx((2 * 0.2**2 + 2 * 0.6**2) / 2)
    assert metrics.nll(probs, labels) == pytest.approx(-(np.log(0.8) + np.log(0.4)) / 2)


def test_histograms_pool_images() -> None:
    """The histogram of two images together is the sum of theirs."""
    probs, labels = drawn(1, 3, 400)
    halves = [metrics.reliability_histogram(probs[:, part], labels[part]) for part in (slice(150), slice(150, None))]
    np.testing.assert_allclose(metrics.ace_of(halves[0] + halves[1]), metrics.ace(probs, labels))


def test_a_calibrated_model_scores_its_floor() -> None:
    """Labels drawn from p score the floor, up to the noise of one draw; more voxels lower it."""
    rng = np.random.default_rng(2)
    p = rng.random(20_000).astype(np.float32)
    probs, labels = np.stack([1 - p, p]), (rng.random(20_000) < p).astype(np.int64)
    floor = metrics.ace_floor(probs)
    assert metrics.ace(probs, labels) == pytest.approx(floor, rel=0.5)
    assert (metrics.ace_floor(probs[:, :2000]) > 2 * floor).all()


@given(st.integers(1, 6), st.integers(0, 1000))
def test_sum_adds_up_histograms(images: int, seed: int) -> None:
    """`sum` of the histograms of parts is the histogram of the whole."""
    probs, labels = drawn(seed, 3, 120)
    parts = np.array_split(np.arange(120), images)
    pooled = sum(metrics.reliability_histogram(probs[:, part], labels[part]) for part in parts)
    whole = metrics.reliability_histogram(probs, labels)
    assert isinstance(pooled, metrics.ReliabilityHistogram)
    np.testing.assert_array_equal(pooled.count, whole.count)
    np.testing.assert_array_equal(pooled.sum_y, whole.sum_y)
    np.testing.assert_allclose(pooled.sum_p, whole.sum_p)


@pytest.mark.parametrize("name", ["ace", "ece", "mce", "ace_floor", "brier", "nll", "reliability_histogram"])
def test_help_opens_with_a_short_line(name: str) -> None:
    """The signature names its types instead of spelling them out."""
    assert len(str(inspect.signature(getattr(metrics, name)))) < 160


@given(st.one_of(st.integers(-5, 0), st.floats(0, 30), st.booleans(), st.none(), st.text(max_size=3)))
def test_bins_are_a_whole_number(bins: object) -> None:
    """Any other `bins` is an error that says what is expected."""
    probs, labels = drawn(6, 3, 50)
    for function in (metrics.ace, metrics.ece, metrics.mce, metrics.reliability_histogram):
        with pytest.raises(ValueError, match="expected a whole number, at least 1"):
            function(probs, labels, bins=bins)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected a whole number, at least 1"):
        metrics.ace_floor(probs, bins=bins)  # type: ignore[arg-type]
    of_numpy = metrics.ace(probs, labels, bins=np.int16(7))  # type: ignore[arg-type]
    np.testing.assert_array_equal(of_numpy, metrics.ace(probs, labels, bins=7))


@given(st.floats(0, 1), st.sampled_from([np.complex64, np.complex128]))
def test_one_number_and_complex_ones_are_refused(value: float, dtype: type) -> None:
    """What has no axis of classes, or an imaginary part, is no set of probabilities."""
    for function in (metrics.ace, metrics.ece, metrics.mce, metrics.brier, metrics.nll):
        with pytest.raises(InvalidProbabilities, match="one number"):
            function(value, 0)
        with pytest.raises(InvalidProbabilities, match="real numbers"):
            function(np.array([[value], [1 - value]], dtype), [0])
    with pytest.raises(InvalidProbabilities, match="real numbers"):
        metrics.ace_floor(np.array([[value], [1 - value]], dtype))


def test_tensors_and_lists_are_taken() -> None:
    """Whatever numpy can read gives the same figure."""
    probs, labels = drawn(4, 3, 60)
    expected = metrics.ace(probs, labels)
    np.testing.assert_array_equal(metrics.ace(torch.tensor(probs), torch.tensor(labels)), expected)
    np.testing.assert_array_equal(metrics.ace(probs.tolist(), labels.tolist()), expected)


@pytest.mark.parametrize("probs", [[[1.5], [-0.5]], [[float("nan")], [0.5]], [[0.5, 0.5], [0.5, 0.5]]])
def test_what_is_no_probability_is_refused(probs: list[list[float]]) -> None:
    """Values outside [0, 1], NaN and shapes that disagree are a ValueError in each function."""
    for function in (metrics.ace, metrics.ece, metrics.mce, metrics.brier, metrics.nll):
        with pytest.raises(InvalidProbabilities):
            function(probs, [0])
        with pytest.raises(ValueError, match=r"[Pp]robabilities"):
            function(probs, [0])
