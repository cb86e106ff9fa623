import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from scipy.stats import binomtest

from service.calibration.shift import ALPHA, LEAST_PERSONS, SHRINKAGE, Feature, Observation, ShiftTest

FEATURES = {f"feature {k}": Feature("mm", log=k == 0) for k in range(6)}
MIXING = np.random.default_rng(1).normal(size=(6, 6))


def drawn(generator: np.random.Generator, n: int) -> np.ndarray:
    """Return correlated rows whose first value is positive."""
    rows = generator.normal(size=(n, 6)) @ MIXING
    rows[:, 0] = np.exp(rows[:, 0] / 3)
    return rows


def observed(rows: np.ndarray, each: int = 1) -> list[Observation]:
    """Return rows as answers, so many of each person; persons are in five folds."""
    return [
        Observation(f"person {i // each}", f"fold{i // each % 5}", tuple(row.tolist())) for i, row in enumerate(rows)
    ]


def named(row: np.ndarray) -> dict[str, float]:
    """Return a row by the features' names."""
    return dict(zip(FEATURES, row.tolist(), strict=True))


def test_new_persons_are_withdrawn_as_often_as_stated() -> None:
    """Over many references the share of p-values below alpha does not exceed alpha, and is not far below."""
    generator = np.random.default_rng(0)
    tests = [ShiftTest(FEATURES, observed(drawn(generator, 60))) for _ in range(40)]
    shifted = [test.verdict(named(row)).shifted for test in tests for row in drawn(generator, 10)]

    assert binomtest(sum(shifted), len(shifted), ALPHA, alternative="greater").pvalue > 0.01


def test_p_is_the_share_of_persons_at_least_as_far() -> None:
    """A brute-force computation by scipy's distance gives the same p-value."""
    generator = np.random.default_rng(2)
    rows = drawn(generator, 40)
    test = ShiftTest(FEATURES, observed(rows, each=2))
    new = drawn(generator, 1)[0]
    folds = np.array([i // 2 % 5 for i in range(40)])

    def transformed(values: np.ndarray) -> np.ndarray:
        values = np.array(values)
        values[..., 0] = np.log(values[..., 0])
        return values

    farther = 0
    for person in range(20):
        others = transformed(rows[folds != person % 5])
        centre = np.median(others, axis=0)
        spread = np.maximum(1.4826 * np.median(abs(others - centre), axis=0), others.std(axis=0) / 2)
        z = np.clip((others - centre) / spread, -5, 5)
        inverse = np.linalg.inv((1 - SHRINKAGE) * np.corrcoef(z.T) + SHRINKAGE * np.eye(6))
        own, its = (
            max(mahalanobis((row - centre) / spread, np.zeros(6), inverse) for row in transformed(batch))
            for batch in (rows[2 * person : 2 * person + 2], new[None])
        )
        farther += own >= its
    assert test.verdict(named(new)).p == pytest.approx((1 + farther) / 21)


def test_what_is_off_is_named_with_its_range() -> None:
    """The farthest feature comes first, with value and range as stated, not their logarithms."""
    rows = drawn(np.random.default_rng(3), 50)
    test = ShiftTest(FEATURES, observed(rows))
    strange = named(np.median(rows, axis=0)) | {"feature 0": 1e4, "feature 3": rows[:, 3].min() - 1}

    verdict = test.verdict(strange)

    assert verdict.shifted
    assert verdict.n_persons == 50
    first, second = verdict.off
    assert (first.feature, first.value, first.unit) == ("feature 0", 1e4, "mm")
    assert (first.low, first.high) == (rows[:, 0].min(), rows[:, 0].max())
    assert second.feature == "feature 3"


def test_the_least_number_of_persons_is_enough_to_withdraw() -> None:
    """Farther than all of them is withdrawn; with one person fewer nothing could be."""
    test = ShiftTest(FEATURES, observed(drawn(np.random.default_rng(6), LEAST_PERSONS)))

    verdict = test.verdict(dict.fromkeys(FEATURES, 1e6))

    assert verdict.p == 1 / (LEAST_PERSONS + 1)
    assert verdict.shifted
    assert 1 / LEAST_PERSONS > ALPHA


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_none_is_off(value: float) -> None:
    """An answer that cannot be described is withdrawn."""
    test = ShiftTest(FEATURES, observed(drawn(np.random.default_rng(4), 40)))

    verdict = test.verdict(dict.fromkeys(FEATURES, 1.0) | {"feature 2": value})

    assert verdict.p == 1 / 41
    assert verdict.off[0].feature == "feature 2"


def test_a_person_counts_once_with_the_farthest_answer() -> None:
    """Many answers of one person do not make the test more certain than the number of persons allows."""
    generator = np.random.default_rng(5)
    test = ShiftTest(FEATURES, observed(np.repeat(drawn(generator, 20), 10, axis=0), each=10))

    assert test.n_persons == 20
    assert test.verdict(dict.fromkeys(FEATURES, 1e6)).p == 1 / 21


@pytest.mark.parametrize(
    ("observations", "message"),
    [
        (observed(drawn(np.random.default_rng(0), 18)), "18 persons; a shift test needs at least 19"),
        (
            [Observation(o.person, "fold1", o.values) for o in observed(drawn(np.random.default_rng(0), 30))],
            "two folds",
        ),
        (
            [
                Observation(f"person {i % 25}", f"fold{i}", o.values)
                for i, o in enumerate(observed(drawn(np.random.default_rng(0), 30)))
            ],
            "a person is in two folds",
        ),
        (
            [Observation(o.person, o.fold, o.values[:5]) for o in observed(drawn(np.random.default_rng(0), 30))],
            "6 finite",
        ),
    ],
    ids=["few", "one fold", "person", "values"],
)
def test_an_unfit_reference_is_refused(observations: list[Observation], message: str) -> None:
    """The error says what is missing."""
    with pytest.raises(ValueError, match=message):
        ShiftTest(FEATURES, observations)
