import numpy as np
import pytest
from scipy.stats import permutation_test

from service.calibration.cohort import CaseSums, measure_case
from service.calibration.two_cohorts import compare_cohorts

FIGURES = ("dsc", "brier")


def cohort(persons: list[str], error: float, seed: int) -> list[CaseSums]:
    """Return a case of 400 voxels for each name; the probabilities of its one structure are wrong by this much."""
    generator = np.random.default_rng(seed)
    cases = []
    for number, person in enumerate(persons):
        labels = (generator.random(400) < 0.3).astype(np.int64)
        p = np.clip(labels + generator.normal(0, error, 400) * (1 - 2 * labels), 0, 1).astype(np.float32)
        probs = np.stack([1 - p, p])
        cases.append(measure_case(f"{seed}-{number}", person, probs, probs.argmax(axis=0).astype(np.uint8), labels))
    return cases


def names(number: int) -> list[str]:
    """Return so many names of persons."""
    return [f"P{index}" for index in range(number)]


def test_the_p_value_is_that_of_scipys_permutation_test() -> None:
    """With one case for each person, DSC's p-value agrees with SciPy's exact test over all exchanges."""
    first, second = cohort(names(6), 0.35, 1), cohort(names(5), 0.4, 2)
    scores = [np.array([case.dsc[1] for case in cases]) for cases in (second, first)]
    exact = permutation_test(scores, lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis), n_resamples=np.inf)

    found = compare_cohorts(first, second, FIGURES)["dsc"]

    assert found.difference.value == pytest.approx(scores[0].mean() - scores[1].mean())
    assert found.p == pytest.approx(exact.pvalue, abs=0.04)  # 2,000 of the 462 exchanges, drawn with replacement


def test_alike_cohorts_are_rarely_told_apart_and_unlike_ones_always() -> None:
    """Of 40 pairs from one population at most 6 differ in some figure (level 0.05); ten pairs of two populations all do."""
    alike = [
        compare_cohorts(cohort(names(8), 0.35, 2 * k), cohort(names(9), 0.35, 2 * k + 1), FIGURES) for k in range(40)
    ]
    unlike = [
        compare_cohorts(cohort(names(8), 0.2, 2 * k), cohort(names(9), 0.6, 2 * k + 1), FIGURES) for k in range(10)
    ]

    assert sum(any(figure.differs for figure in found.values()) for found in alike) <= 6
    assert all(found["brier"].differs and found["brier"].difference.low > 0 for found in unlike)


def test_the_person_is_exchanged_not_the_case() -> None:
    """Ten copies of each case of two persons show nothing that two persons do not show."""
    first, second = cohort(names(2), 0.2, 1), cohort(names(2), 0.6, 2)

    found = compare_cohorts(first * 10, second * 10, FIGURES)

    assert found["brier"].p > 0.3  # two of six exchanges differ as much
    assert not found["brier"].differs


def test_a_figure_that_is_undefined_differs_from_nothing() -> None:
    """Where no reference has the structure, DSC has no p-value, and the other figures are judged all the same."""
    empty = [
        measure_case(
            "a", person, np.tile(np.array([[0.9], [0.1]], np.float32), 50), np.zeros(50, np.uint8), np.zeros(50, int)
        )
        for person in names(4)
    ]

    found = compare_cohorts(cohort(names(12), 0.5, 1), empty * 3, FIGURES)

    assert np.isnan(found["dsc"].p)
    assert not found["dsc"].differs
    assert found["brier"].p < 0.05
