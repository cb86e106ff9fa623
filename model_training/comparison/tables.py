"""The tables of a comparison: out-of-fold figures of each configuration, and its difference from the baseline.

Each case is scored by the network that did not see its person. A temperature, if applied, is the one with the lowest NLL
on the out-of-fold cases of the other folds, so it was not fitted on the case either. Intervals resample folds, then
persons within folds; two configurations are compared under the same resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from model_training.comparison.files import read_json, run_files
from model_training.comparison.run import TEMPERATURES, Run
from model_training.data.case import DataError
from service.calibration.cohort import REPLICATES, BootstrapEstimate, CaseSums, cohort_draws, estimate

BASELINE: Final = "dice-ce"
"""Configuration that the others are compared with, without a temperature."""

FIGURES: Final = ("dsc", "ace_macro", "ace_excess", "ece_macro", "brier", "nll")
"""Columns of the tables; keys of `service.calibration.cohort.cohort_draws`."""


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """One case as one run scored it."""

    fold: str
    seed: int
    sums: CaseSums


def load_runs(folder: Path) -> list[Run]:
    """Return every run of a folder, from plain and packed files.

    Raises:
        DataError: the folder holds no run, or one that cannot be read.
    """
    files = run_files(folder)
    if not files:
        msg = f"{folder} holds no runs. calibrant compare computes them."
        raise DataError(msg)
    try:
        return [Run.model_validate_json(read_json(file)) for file in files]
    except ValueError as error:
        msg = f"A run in {folder} cannot be read: {error}"
        raise DataError(msg) from error


def fitted_temperature(runs: Sequence[Run], fold: str, seed: int) -> float:
    """Return the temperature with the lowest mean NLL over the out-of-fold cases of the other folds.

    Args:
        runs: of one configuration.
        fold: left out, because the temperature will be applied to its cases.
        seed: only runs of this seed count.

    Raises:
        DataError: no other fold has been run.
    """
    others = [run for run in runs if run.seed == seed and run.fold != fold]
    if not others:
        msg = (
            f"No other fold than {fold} has been run with seed {seed}: a temperature cannot be fitted. Run more folds."
        )
        raise DataError(msg)

    def mean_nll(temperature: float) -> float:
        cases = [case.sums() for run in others for case in run.cases[str(temperature)]]
        return float(np.mean([case.nll / case.voxels for case in cases]))

    return min(TEMPERATURES, key=mean_nll)


def score(runs: Sequence[Run], *, scaled: bool) -> list[Scored]:
    """Return the cases of every run of one configuration, with the fitted temperature or without one."""
    return [
        Scored(run.fold, run.seed, case.sums())
        for run in runs
        for case in run.cases[str(fitted_temperature(runs, run.fold, run.seed) if scaled else 1.0)]
    ]


def fold_person_weights(cases: Sequence[Scored], seed: int) -> npt.NDArray[np.int64]:
    """Return how often each case counts, (1 + REPLICATES, N): row 0 is the cohort, the others are resamples.

    A resample draws folds with replacement, as many as there are, and in each of them persons with replacement, as many
    as it has.

    Args:
        cases: the columns.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    folds = sorted({case.fold for case in cases})
    columns: dict[str, dict[str, list[int]]] = {fold: {} for fold in folds}
    for index, case in enumerate(cases):
        columns[case.fold].setdefault(case.sums.person, []).append(index)
    weights = np.zeros((1 + REPLICATES, len(cases)), np.int64)
    weights[0] = 1
    for row in weights[1:]:
        for fold in generator.choice(folds, len(folds)):
            cases_of_persons = list(columns[str(fold)].values())
            for person in generator.integers(len(cases_of_persons), size=len(cases_of_persons)):
                row[cases_of_persons[person]] += 1
    return weights


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Figures of every configuration on the cases that all of them scored.

    Args:
        cases: describes the cases in a sentence.
        figures: (configuration, whether with a temperature) -> name -> (1 + R,): the figure, then its value under each
            resample.
    """

    cases: str
    figures: dict[tuple[str, bool], dict[str, npt.NDArray[np.float64]]]

    def changes(self, key: tuple[str, bool]) -> dict[str, BootstrapEstimate]:
        """Return the differences of a configuration from the baseline: DSC in points, the others in per cent of it."""
        draws, baseline = self.figures[key], self.figures[BASELINE, False]
        changes = {name: 100 * (draws[name] / baseline[name] - 1) for name in FIGURES}
        changes["dsc"] = 100 * (draws["dsc"] - baseline["dsc"])
        return {name: estimate(change) for name, change in changes.items()}


def compared(runs: Sequence[Run]) -> Comparison:
    """Return the comparison of the runs, over the folds and seeds that every configuration has."""
    configurations = sorted({run.configuration for run in runs}, key=lambda name: (name != BASELINE, name))
    common = set.intersection(*({(r.fold, r.seed) for r in runs if r.configuration == name} for name in configurations))
    kept = sorted((run for run in runs if (run.fold, run.seed) in common), key=lambda run: (run.seed, run.fold))
    draws = {
        (name, scaled): score([run for run in kept if run.configuration == name], scaled=scaled)
        for name in configurations
        for scaled in (False, True)
    }
    weights = fold_person_weights(draws[BASELINE, False], seed=0)
    figures = {key: cohort_draws([case.sums for case in cases], weights) for key, cases in draws.items()}
    return Comparison(_cases(kept), figures)


def table(comparison: Comparison) -> str:
    """Return the comparison as Markdown: figures with 95 % intervals, and differences from the baseline."""
    return "\n".join([comparison.cases + "\n", *_absolute(comparison), "", *_relative(comparison)])


def _cases(runs: Sequence[Run]) -> str:
    baseline = [run for run in runs if run.configuration == BASELINE]
    cases = {(case.case, case.person) for run in baseline for case in run.cases["1.0"]}
    persons = len({person for _, person in cases})
    folds, seeds = sorted({run.fold for run in baseline}), sorted({run.seed for run in baseline})
    return (
        f"{len(cases)} cases of {persons} persons, out of fold; {', '.join(folds)}; seeds {', '.join(map(str, seeds))}."
    )


def _absolute(comparison: Comparison) -> list[str]:
    rows = [
        _row(key, [_spelt(estimate(draws[figure]), "{:.4f}") for figure in FIGURES])
        for key, draws in comparison.figures.items()
    ]
    return [*_head(FIGURES), *rows]


def _relative(comparison: Comparison) -> list[str]:
    rows = [
        _row(key, [_spelt(change, "{:+.1f}") for change in comparison.changes(key).values()])
        for key in comparison.figures
    ]
    return [*_head(["dsc, points", *(f"{name}, %" for name in FIGURES[1:])]), *rows]


def _head(columns: Sequence[str]) -> list[str]:
    return [f"| configuration | temperature | {' | '.join(columns)} |", f"|{'---|' * (2 + len(columns))}"]


def _row(key: tuple[str, bool], cells: list[str]) -> str:
    name, scaled = key
    return f"| {name} | {'fitted' if scaled else 'none'} | {' | '.join(cells)} |"


def _spelt(figure: BootstrapEstimate, form: str) -> str:
    value, low, high = (form.format(x) for x in (figure.value, figure.low, figure.high))
    return f"{value} ({low} to {high})"
