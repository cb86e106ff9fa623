"""Whether the figures of two cohorts differ: bootstrap interval of the difference, and a permutation test by person."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from .cohort import BootstrapEstimate, CaseSums, cohort_draws, estimate, person_weights
from .scores import Scores

PERMUTATIONS: Final = 2000
"""Random exchanges of persons behind each p-value."""

ALPHA: Final = 0.05
"""Level of the tests of all figures together."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of a figure between two cohorts.

    Args:
        difference: second minus first, with its 95 % interval: the persons of each cohort are resampled.
        p: two-sided, of the exchange of persons between the cohorts; NaN where the figure is undefined.
        differs: whether p is significant at `ALPHA` among all tested figures (Holm's correction).
    """

    difference: BootstrapEstimate
    p: float
    differs: bool


def compare_cohorts(
    first: Sequence[CaseSums], second: Sequence[CaseSums], figures: Sequence[str], *, seed: int = 0
) -> dict[str, Difference]:
    """Return how much the second cohort's figures differ from the first's.

    The test exchanges persons, with all of their cases, between the two cohorts: if both are drawn from one population,
    every assignment is equally likely (Phipson and Smyth 2010: p = (b + 1) / (m + 1)). Persons of the two cohorts are taken
    for different ones, even if they have the same name.

    Args:
        first: cases of one cohort.
        second: cases of the other.
        figures: keys of `cohort_draws`.
        seed: of resampling and exchange.
    """
    of_first, of_second = (
        cohort_draws(first, person_weights(first, seed)),
        cohort_draws(second, person_weights(second, seed + 1)),
    )
    cases = [*first, *second]
    in_second = _exchanged(first, second, seed)
    left, right = cohort_draws(cases, 1 - in_second), cohort_draws(cases, in_second)
    differences = {name: of_second[name] - of_first[name] for name in figures}
    p_values = {name: _p_value(right[name] - left[name]) for name in figures}
    rejected = _holm(p_values)
    return {name: Difference(estimate(differences[name]), p_values[name], name in rejected) for name in figures}


def _exchanged(first: Sequence[CaseSums], second: Sequence[CaseSums], seed: int) -> npt.NDArray[np.int64]:
    """Return whether each case counts to the second cohort, (1 + PERMUTATIONS, N): in row 0 as it does, then by chance."""
    persons = [(0, case.person) for case in first] + [(1, case.person) for case in second]
    known = sorted(set(persons))
    owner = np.array([known.index(person) for person in persons])
    group = np.array([cohort for cohort, _ in known], np.int64)
    generator = np.random.default_rng(seed)
    rows = [group, *(generator.permutation(group) for _ in range(PERMUTATIONS))]
    return np.stack(rows)[:, owner]


def _p_value(differences: Scores) -> float:
    """Return the share of the exchanges that differ at least as much as row 0, which counts itself; NaN if undefined."""
    observed, exchanged = abs(differences[0]), np.abs(differences[1:])
    if np.isnan(observed):
        return float("nan")
    # An exchange may repeat the cohorts themselves, up to the order of summation.
    return float((1 + np.count_nonzero(exchanged >= observed * (1 - 1e-12))) / (1 + len(exchanged)))


def _holm(p_values: dict[str, float]) -> set[str]:
    """Return the figures whose p-value is significant at `ALPHA` by Holm's step-down procedure (Holm 1979)."""
    rejected: set[str] = set()
    for rank, name in enumerate(sorted(p_values, key=lambda name: (np.isnan(p_values[name]), p_values[name]))):
        if not p_values[name] <= ALPHA / (len(p_values) - rank):
            break
        rejected.add(name)
    return rejected
