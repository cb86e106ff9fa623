import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import CalibrationErrorMetric
from monai.metrics.calibration import calibration_binning
from torchmetrics.functional.classification import binary_calibration_error

from service.calibration.histogram import ReliabilityHistogram
from service.calibration.scores import Scores, ace, brier_sum, ece, mce, nll_sum

Image = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
"""(C, ...) probabilities and (...) labels."""

HALVES = np.array([[0.75, 0.75, 0.0, 1.0], [0.25, 0.25, 1.0, 0.0]], np.float32)
HALF_LABELS = np.array([0, 1, 1, 0])
"""Class 0 has the gaps 0 (1 voxel), 0.25 (2 voxels) and 0 (1 voxel); so has class 1."""


def random_image(seed: int, *, classes: int = 3, present: int = 3) -> Image:
    """Return 6 x 7 x 5 miscalibrated voxels whose labels hold the first `present` classes."""
    generator = np.random.default_rng(seed)
    probs = generator.dirichlet(np.full(classes, 0.5), size=(6, 7, 5)).transpose(3, 0, 1, 2).astype(np.float32)
    return probs, generator.integers(present, size=(6, 7, 5))


@st.composite
def histograms(draw: st.DrawFn) -> ReliabilityHistogram:
    """Draw consistent sums of 3 classes and 20 bins, many of them empty."""
    count = draw(arrays(np.int64, (3, 20), elements=st.sampled_from([0, 0, 1, 2, 10, 10**9])))
    fraction = draw(arrays(np.float64, (2, 3, 20), elements=st.floats(0, 1)))
    return ReliabilityHistogram(count, fraction[0] * count, (fraction[1] * count).astype(np.int64))


def gaps(histogram: ReliabilityHistogram, c: int) -> list[tuple[int, float]]:
    """Return the number of voxels and ``|P - Y|`` of each filled bin of a class, in plain Python."""
    rows = zip(histogram.count[c].tolist(), histogram.sum_p[c].tolist(), histogram.sum_y[c].tolist(), strict=True)
    return [(n, abs(p / n - y / n)) for n, p, y in rows if n]


def test_scores_of_four_voxels() -> None:
    """For gaps 0, 0.25, 0 over 1, 2, 1 voxels, ECE is 2/4 of 0.25, ACE a third of it and MCE all of it."""
    histogram = ReliabilityHistogram.from_probabilities(HALVES, HALF_LABELS)

    assert ece(histogram).tolist() == [0.125, 0.125]
    assert ace(histogram).tolist() == [0.25 / 3, 0.25 / 3]
    assert mce(histogram).tolist() == [0.25, 0.25]


def test_absent_class_is_nan_unless_included() -> None:
    """A class that the labels lack has no score; if included, its gap is its mean probability."""
    probs = np.array([[0.75, 0.75], [0.25, 0.25]], np.float32)
    histogram = ReliabilityHistogram.from_probabilities(probs, np.array([0, 0]))

    for score in (ece, ace, mce):
        np.testing.assert_array_equal(score(histogram), [0.25, np.nan])
        np.testing.assert_array_equal(score(histogram, include_absent=True), [0.25, 0.25])


def test_no_voxels_have_no_score() -> None:
    """The scores of an empty histogram are NaN, without a warning about 0/0."""
    empty = ReliabilityHistogram.empty(2)

    for score in (ece, ace, mce):
        assert np.isnan(score(empty, include_absent=True)).all()


@given(histograms())
def test_scores_equal_plain_formulas(histogram: ReliabilityHistogram) -> None:
    """ECE, ACE and MCE equal sums over filled bins in plain Python, lie in [0, 1], and MCE is the largest."""
    for c in range(3):
        filled = gaps(histogram, c)
        if not filled:
            continue
        voxels = sum(n for n, _ in filled)
        expected = (
            math.fsum(n * gap for n, gap in filled) / voxels,
            math.fsum(gap for _, gap in filled) / len(filled),
            max(gap for _, gap in filled),
        )
        actual = tuple(float(score(histogram, include_absent=True)[c]) for score in (ece, ace, mce))
        assert actual == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert 0 <= min(actual) <= max(actual) <= actual[2] * (1 + 1e-12) <= 1 + 1e-12


@pytest.mark.parametrize("present", [3, 2])
@pytest.mark.parametrize(("score", "name"), [(ece, "expected"), (ace, "average"), (mce, "maximum")])
def test_scores_equal_those_of_monai(score: Callable[..., Scores], name: str, present: int) -> None:
    """MONAI's metric, which includes absent classes, gives the same figures on small volumes."""
    probs, labels = random_image(1, present=present)
    metric = CalibrationErrorMetric(num_bins=20, calibration_reduction=name, metric_reduction="none", right=False)
    metric(_batch(probs), _onehot(labels))

    actual = score(ReliabilityHistogram.from_probabilities(probs, labels), include_absent=True)

    np.testing.assert_allclose(actual, metric.aggregate()[0], atol=1e-6)


@pytest.mark.parametrize(("score", "norm"), [(ece, "l1"), (mce, "max")])
def test_scores_equal_those_of_torchmetrics(score: Callable[..., Scores], norm: Literal["l1", "max"]) -> None:
    """ECE and MCE of each class equal torchmetrics' binary figures; it has no ACE.

    torchmetrics' bins are left-closed, and p = 1 has its own bin (its issue 3510), so no probability is on an edge here.
    """
    probs, labels = random_image(4)
    assert not np.isin(probs, (np.arange(21) / 20).astype(np.float32)).any()

    actual = score(ReliabilityHistogram.from_probabilities(probs, labels))

    expected = [
        float(binary_calibration_error(p, y, n_bins=20, norm=norm))
        for p, y in zip(_batch(probs)[0], _onehot(labels)[0].long(), strict=True)
    ]
    assert actual.tolist() == pytest.approx(expected, abs=1e-6)


def test_bins_equal_those_of_monai() -> None:
    """MONAI's counts and means per bin follow from our sums, also on bin edges."""
    probs, labels = random_image(2)
    probs[0, :3] = np.resize((np.arange(21) / 20).astype(np.float32), probs[0, :3].shape)
    histogram = ReliabilityHistogram.from_probabilities(probs, labels)

    mean_p, mean_y, count = calibration_binning(_batch(probs), _onehot(labels), num_bins=20)

    filled = histogram.count > 0
    np.testing.assert_array_equal(histogram.count, count[0])
    np.testing.assert_allclose(
        (histogram.sum_p[filled] / histogram.count[filled]), mean_p[0].numpy()[filled], rtol=1e-5
    )
    np.testing.assert_allclose(
        (histogram.sum_y[filled] / histogram.count[filled]), mean_y[0].numpy()[filled], atol=1e-6
    )


def test_brier_and_nll_of_four_voxels() -> None:
    """Brier is 0.125 and 1.125, NLL -ln 0.75 and -ln 0.25 for the two uncertain voxels, and 0 for the others."""
    assert brier_sum(HALVES, HALF_LABELS) == 0.125 + 1.125
    assert nll_sum(HALVES, HALF_LABELS) == pytest.approx(-math.log(0.75) - math.log(0.25))


@pytest.mark.parametrize("classes", [2, 5])
def test_brier_and_nll_equal_plain_formulas(classes: int) -> None:
    """Sums over the voxels of a volume equal a loop with one-hot labels."""
    probs, labels = random_image(3, classes=classes, present=classes)
    brier: list[float] = []
    nll: list[float] = []
    for index in np.ndindex(labels.shape):
        p = [float(probs[(c, *index)]) for c in range(classes)]
        true = int(labels[index])
        brier.extend((p[c] - (c == true)) ** 2 for c in range(classes))
        nll.append(-math.log(p[true]))

    assert brier_sum(probs, labels) == pytest.approx(math.fsum(brier), rel=1e-9)
    assert nll_sum(probs, labels) == pytest.approx(math.fsum(nll), rel=1e-6)


def test_nll_of_an_impossible_truth_is_finite() -> None:
    """A probability of 0 for the true class counts as the smallest normal float32, 2^-126."""
    probs = np.array([[1.0], [0.0]], np.float32)

    assert nll_sum(probs, np.array([1])) == pytest.approx(126 * math.log(2))


def _batch(probs: npt.NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(probs[np.newaxis]))


def _onehot(labels: npt.NDArray[np.int64]) -> torch.Tensor:
    return _batch(np.stack([labels == c for c in range(3)]).astype(np.float32))
