import math
from dataclasses import replace

import numpy as np
import pytest

from service.calibration.cohort import (
    FLOOR_REPLICATES,
    BootstrapEstimate,
    CaseSums,
    class_scores,
    cohort_scores,
    measure_case,
)
from service.calibration.floor import ace_floor
from service.calibration.histogram import ReliabilityHistogram
from service.errors import InvalidProbabilities

KEYS = [
    "ace_excess",
    "ace_floor",
    "ace_macro",
    "ace_micro",
    "brier",
    "dsc",
    "ece_macro",
    "ece_micro",
    "mce_macro",
    "mce_micro",
    "nll",
]

ROWS = [(0,), (1, 2), (2,)]
"""Background, two classes joined, and the second of them alone."""

Bins = dict[int, tuple[int, float, int]]
"""Bin -> number of voxels, their mean probability, number of them with the label."""


def case(person: str, structure: Bins, *, overlap: tuple[int, int] = (0, 0), floor: float = 0.0) -> CaseSums:
    """Return a case of background and one structure with the given bins; `overlap` is intersection and mask size."""
    sums = np.zeros((3, 2, 20))
    for k, (n, p, y) in structure.items():
        sums[:, 1, k] = n, n * p, y
        sums[:, 0, 19 - k] = n, n * (1 - p), n - y
    count, sum_p, sum_y = sums
    intersection, predicted = overlap
    voxels = int(count[0].sum())
    return CaseSums(
        case=f"of {person}",
        person=person,
        histogram=ReliabilityHistogram(count.astype(np.int64), sum_p, sum_y.astype(np.int64)),
        brier=0.5 * voxels,
        nll=0.25 * voxels,
        intersection=np.array([0, intersection]),
        predicted=np.array([voxels - predicted, predicted]),
        floor=np.array([0.0, floor]),
    )


SURE = case("A", {4: (4, 0.25, 1), 14: (4, 0.75, 4)}, overlap=(4, 7), floor=0.0625)
"""Gaps 0 and 0.25; DSC 2 * 4 / (7 + 5)."""

UNSURE = case("B", {14: (12, 0.71875, 6)}, overlap=(6, 10), floor=0.125)
"""Gap 0.21875; DSC 2 * 6 / (10 + 6)."""

ABSENT = case("C", {4: (8, 0.25, 0)}, overlap=(0, 2), floor=0.5)
"""The reference lacks the structure, but two voxels are predicted."""


def test_macro_is_the_mean_over_cases() -> None:
    """Each case is scored by itself, independent of its size, then scores are averaged."""
    scores = cohort_scores([SURE, UNSURE])

    assert scores["dsc"].value == pytest.approx((8 / 12 + 12 / 16) / 2)
    assert scores["ace_macro"].value == pytest.approx((0.125 + 0.21875) / 2)
    assert scores["ece_macro"].value == pytest.approx((0.125 + 0.21875) / 2)
    assert scores["mce_macro"].value == pytest.approx((0.25 + 0.21875) / 2)
    assert scores["ace_floor"].value == pytest.approx((0.0625 + 0.125) / 2)
    assert scores["ace_excess"].value == pytest.approx((0.0625 + 0.09375) / 2)


def test_micro_pools_voxels_not_means() -> None:
    """Bin 14 pools 4 voxels of mean 0.75 and 12 of mean 0.71875, sum 11.625 for 10 labels: gap 1.625 / 16."""
    scores = cohort_scores([SURE, UNSURE])

    assert scores["ace_micro"].value == pytest.approx((0 + 1.625 / 16) / 2)
    assert scores["ece_micro"].value == pytest.approx((0 * 4 + 1.625) / 20)
    assert scores["mce_micro"].value == pytest.approx(1.625 / 16)


def test_brier_and_nll_are_means_over_voxels_then_cases() -> None:
    """Cases of different size have equal weight."""
    worse = replace(UNSURE, brier=1.0 * 12, nll=0.75 * 12)

    scores = cohort_scores([SURE, worse])

    assert (scores["brier"].value, scores["nll"].value) == ((0.5 + 1.0) / 2, (0.25 + 0.75) / 2)


def test_a_class_is_left_out_of_a_case_that_lacks_it() -> None:
    """A case without the structure has no DSC, calibration or floor and changes no macro figure."""
    with_absent, without = cohort_scores([SURE, ABSENT]), cohort_scores([SURE])

    assert math.isnan(ABSENT.dsc[1])
    for name in ("dsc", "ace_macro", "ace_floor", "ace_excess", "ece_macro", "mce_macro"):
        assert with_absent[name].value == without[name].value


def test_a_class_that_no_case_has_is_undefined() -> None:
    """Values and intervals of such a class are NaN, without a warning."""
    for figure in class_scores([ABSENT, replace(ABSENT, person="D")], 1).values():
        assert np.isnan([figure.value, figure.low, figure.high]).all()


def test_cases_of_one_person_are_not_resampled() -> None:
    """Two scans of one person are always drawn together, so the interval has no width."""
    for figure in cohort_scores([SURE, replace(UNSURE, person="A")]).values():
        assert figure.low == figure.value == figure.high


def test_the_interval_of_two_persons_spans_both() -> None:
    """One of four equally likely draws holds the first person twice and one the second: the extremes."""
    scores = cohort_scores([SURE, UNSURE])

    assert scores["ace_macro"] == BootstrapEstimate(0.171875, 0.125, 0.21875)
    assert (scores["dsc"].low, scores["dsc"].high) == pytest.approx((8 / 12, 12 / 16))


def test_a_person_with_two_scans_weighs_twice() -> None:
    """Scans are averaged but persons are drawn: the value counts both scans of A, the extremes only A or only B."""
    scores = cohort_scores([SURE, SURE, UNSURE])

    assert scores["ace_macro"].value == pytest.approx((2 * 0.125 + 0.21875) / 3)
    assert (scores["ace_macro"].low, scores["ace_macro"].high) == (0.125, 0.21875)


def test_intervals_are_reproducible_by_their_seed() -> None:
    """The same seed gives the same intervals; another seed changes intervals but no value."""
    cohort = [case(str(k), {4: (4 + k, 0.25, 1)}, overlap=(1, 1 + k)) for k in range(12)]

    first, again, other = (cohort_scores(cohort, seed=seed) for seed in (1, 1, 2))

    assert first == again
    assert first["dsc"] != other["dsc"]
    assert first["dsc"].value == other["dsc"].value


def test_class_scores_look_at_one_class() -> None:
    """With a single structure its figures equal the foreground's; Brier and NLL are left out."""
    foreground, structure = cohort_scores([SURE, UNSURE]), class_scores([SURE, UNSURE], 1)

    assert sorted(foreground) == KEYS
    assert structure == {name: figure for name, figure in foreground.items() if name not in {"brier", "nll"}}


def test_background_is_no_part_of_the_headline() -> None:
    """Figures of the background do not enter the mean over the foreground."""
    assert cohort_scores([SURE])["ace_floor"].value == 0.0625
    assert class_scores([SURE], 0)["ace_floor"].value == 0.0
    assert class_scores([SURE], 0)["dsc"].value == 0.0


def test_sums_of_a_case() -> None:
    """For four voxels, of which three agree, sizes, Dice, Brier and NLL are known."""
    probs = np.array([[0.75, 0.75, 0.25, 0.0], [0.25, 0.25, 0.75, 1.0]], np.float32).reshape(2, 2, 2, 1)
    mask = np.array([0, 0, 1, 1], np.uint8).reshape(2, 2, 1)
    labels = np.array([0, 1, 1, 1], np.uint8).reshape(2, 2, 1)

    sums = measure_case("a1", "A", probs, mask, labels)

    assert (sums.case, sums.person, sums.voxels) == ("a1", "A", 4)
    assert sums.intersection.tolist() == [1, 2]
    assert sums.predicted.tolist() == [2, 2]
    assert sums.reference.tolist() == [1, 3]
    assert sums.dsc.tolist() == pytest.approx([2 / 3, 4 / 5])
    assert sums.brier == pytest.approx(0.125 + 1.125 + 0.125)
    assert sums.nll == pytest.approx(-2 * math.log(0.75) - math.log(0.25))
    assert sums.histogram.sum_y[1, [4, 14, 19]].tolist() == [1, 1, 1]
    assert ((sums.floor > 0) & (sums.floor < 0.5)).all()


def test_a_case_with_a_label_outside_the_classes_is_refused() -> None:
    """A reference with more classes than the network cannot be scored."""
    probs = np.full((2, 2, 2, 2), 0.5, np.float32)
    mask = np.zeros((2, 2, 2), np.uint8)

    with pytest.raises(InvalidProbabilities, match="expected 0 to 1 for 2 classes"):
        measure_case("a1", "A", probs, mask, np.full((2, 2, 2), 2, np.uint8))


def test_sums_of_a_case_by_structure() -> None:
    """Sizes, overlap and bins of joined classes are those of the merged class.

    Of five voxels one of front is predicted as back: an error for back, but none for the two joined.
    """
    probs = np.array([[0.5, 0.125, 0, 0.25, 1], [0.25, 0.25, 0.5, 0.25, 0], [0.25, 0.625, 0.5, 0.5, 0]], np.float32)
    labels, mask = np.array([0, 1, 2, 0, 0], np.uint8), np.array([0, 2, 1, 2, 0], np.uint8)

    sums = measure_case("a1", "A", probs.reshape(3, 5, 1, 1), mask.reshape(5, 1, 1), labels.reshape(5, 1, 1), ROWS)

    assert sums.reference.tolist() == [3, 2, 1]
    assert sums.predicted.tolist() == [2, 3, 2]
    assert sums.intersection.tolist() == [2, 2, 0]
    assert sums.dsc.tolist() == pytest.approx([4 / 5, 4 / 5, 0])
    bins = {int(k): int(sums.histogram.count[1, k]) for k in np.flatnonzero(sums.histogram.count[1])}
    assert bins == {0: 1, 9: 1, 14: 1, 17: 1, 19: 1}
    assert sums.voxels == 5
    assert sums.floor.tolist() == ace_floor(probs, ROWS, replicates=FLOOR_REPLICATES, seed=0).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_structures_agree_with_a_case_whose_classes_were_merged(seed: int) -> None:
    """Merging classes first or joining them as structures gives the same sizes, overlap and bins."""
    generator = np.random.default_rng(seed)
    probs = generator.dirichlet([0.5] * 4, size=(3, 4, 5)).transpose(3, 0, 1, 2).astype(np.float32)
    labels, mask = generator.integers(4, size=(2, 3, 4, 5)).astype(np.uint8)
    merged = np.stack([probs[0] + probs[3], probs[1] + probs[2]]).clip(max=1)
    to_merged = np.array([0, 1, 1, 0], np.uint8)

    by_structure = measure_case("a", "A", probs, mask, labels, [(0, 3), (1, 2)])
    by_class = measure_case("a", "A", merged, to_merged[mask], to_merged[labels])

    for name in ("count", "sum_p", "sum_y"):
        np.testing.assert_array_equal(getattr(by_structure.histogram, name), getattr(by_class.histogram, name))
    assert by_structure.intersection.tolist() == by_class.intersection.tolist()
    assert by_structure.predicted.tolist() == by_class.predicted.tolist()


def test_each_class_is_a_structure_by_default() -> None:
    """Without structures the sums are those of each class."""
    generator = np.random.default_rng(5)
    probs = generator.dirichlet([0.5] * 3, size=(3, 4, 5)).transpose(3, 0, 1, 2).astype(np.float32)
    labels, mask = generator.integers(3, size=(2, 3, 4, 5)).astype(np.uint8)

    default, explicit = (measure_case("a", "A", probs, mask, labels, rows) for rows in (None, [(0,), (1,), (2,)]))

    for name in ("count", "sum_p", "sum_y"):
        assert getattr(default.histogram, name).tolist() == getattr(explicit.histogram, name).tolist()
    for name in ("intersection", "predicted", "floor"):
        assert getattr(default, name).tolist() == getattr(explicit, name).tolist()
    assert (default.brier, default.nll) == (explicit.brier, explicit.nll)
