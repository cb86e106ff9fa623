"""Fits temperatures on out-of-fold cases, each scored by the network that never saw its person.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017: logits are divided by a temperature before softmax, chosen
to minimise the negative log likelihood (NLL). It is a scalar, or one per class. The scaled logits are linear in the inverse
temperatures, so the NLL is convex in these and has one minimum. The scalar with the lowest average calibration error (ACE) is
another one, since ACE weighs all bins alike and most of them lie between the certain voxels; it is found on a grid.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from model_training.config import Recipe
from model_training.data.case import Case, DataError, read_case
from model_training.evaluation.crossvalidate import networks_of
from service.bundle.schema import Declaration
from service.calibration.histogram import ReliabilityHistogram
from service.calibration.scores import ace
from service.pipeline.infer import infer
from service.pipeline.preprocess import preprocess, to_scan_grid

VOXELS_PER_CASE: Final = 200_000
"""Voxels that are drawn from each case at most; each case has the same weight."""

GRID: Final = tuple(round(0.5 + 0.05 * step, 2) for step in range(31))
"""Temperatures among which the lowest ACE is looked for, 0.5 to 2; between neighbours it hardly differs."""

Scaling = Literal["scalar", "per-class", "least-ace"]


class Temperatures(Declaration):
    """Temperatures fitted for a recipe, and NLL and ACE with and without them.

    Each fold is scored with the temperatures fitted on the others.
    """

    recipe: str
    folds: list[str]
    n_cases: int
    n_persons: int
    scalar: float
    """One temperature for all classes, fitted on all folds."""
    per_class: list[float]
    """One temperature for each class, fitted on all folds."""
    least_ace: float
    """One temperature for all classes, with the lowest ACE on all folds."""
    nll: dict[str, float]
    """NLL in nats, mean over voxels, then over cases, by scaling and with ``none``."""
    ace: dict[str, float]
    """ACE, mean over the foreground classes that a case has, then over cases, by scaling and with ``none``."""

    def of_classes(self, scaling: Scaling, classes: int) -> list[float]:
        """Return the temperature of each class, as `service.json` states them."""
        if scaling == "per-class":
            return self.per_class
        return [self.scalar if scaling == "scalar" else self.least_ace] * classes


@dataclass(frozen=True, slots=True, eq=False)
class _Voxels:
    """Voxels of one case: logits (n, C) and true classes (n,)."""

    fold: str
    person: str
    logits: torch.Tensor
    classes: torch.Tensor
    ace_at: dict[tuple[float, ...], float] = field(default_factory=dict)
    """ACE by inverse temperatures, since folds share most of the cases that they are fitted on."""


def calibrate(
    recipe: Recipe, data: Path, runs: Path, folds: Sequence[str], done: Callable[[Case], None]
) -> Temperatures:
    """Return the temperatures that fit the out-of-fold cases best.

    Args:
        recipe: recipe of the trained networks.
        data: folder of the data set.
        runs: folder that `crossvalidate` filled.
        folds: folds to fit on; leave out the one that a card will be measured on.
        done: called after each case.

    Raises:
        DataError: fewer than two folds, a fold that has not been trained, or a file that does not fit.
    """
    if len(folds) < 2:  # noqa: PLR2004 - one to fit on, one to score
        msg = f"Temperatures need two folds or more, to be scored on cases that they were not fitted on; got {', '.join(folds)}."
        raise DataError(msg)
    voxels = [
        _voxels_of(recipe, network, case, fold, done)
        for fold in folds
        for network, cases in networks_of(recipe, data, runs, [fold])
        for case in cases
    ]
    choices = {fold: _fitted_without(voxels, fold) for fold in folds}
    return Temperatures(
        recipe=recipe.service.name,
        folds=list(folds),
        n_cases=len(voxels),
        n_persons=len({case.person for case in voxels}),
        scalar=fitted(voxels, "scalar")[0],
        per_class=fitted(voxels, "per-class"),
        least_ace=least_ace(voxels),
        nll=_scored(voxels, choices, lambda case, inverse: float(_nll(case, inverse))),
        ace=_scored(voxels, choices, _ace),
    )


def _voxels_of(
    recipe: Recipe, network: torch.nn.Module, case: Case, fold: str, done: Callable[[Case], None]
) -> _Voxels:
    scan, labels = read_case(case, recipe.service)
    image, grid = preprocess(scan, recipe.service)
    logits = to_scan_grid(infer(network, image, recipe.service), grid).reshape(len(recipe.service.labels), -1)
    classes = labels.ravel()
    generator = np.random.default_rng(0)
    chosen = generator.choice(classes.size, min(VOXELS_PER_CASE, classes.size), replace=False)
    done(case)
    drawn = torch.from_numpy(logits[:, chosen].T.copy())
    return _Voxels(fold, case.person, drawn, torch.from_numpy(classes[chosen].astype(np.int64)))


def fitted(cases: Sequence[_Voxels], scaling: Scaling) -> list[float]:
    """Return the temperature, or one per class, with the lowest mean NLL over the cases."""
    count = 1 if scaling == "scalar" else cases[0].logits.shape[1]
    with torch.inference_mode(False):
        log_inverse = torch.zeros(count, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS([log_inverse], max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimiser.zero_grad()
            loss = torch.zeros((), dtype=torch.float64)
            for case in cases:
                # One case at a time: in float64 all of them may not fit into memory.
                case_loss = _nll(case, log_inverse.exp()) / len(cases)
                case_loss.backward()
                loss += case_loss.detach()
            return loss

        optimiser.step(closure)
    return [float(t) for t in (-log_inverse.detach()).exp()]


def _nll(case: _Voxels, inverse: torch.Tensor) -> torch.Tensor:
    return cross_entropy(case.logits.clone().double() * inverse, case.classes.clone())


def least_ace(cases: Sequence[_Voxels]) -> float:
    """Return the temperature of `GRID` for all classes with the lowest mean ACE over the cases."""
    means = {t: np.mean([_ace(case, torch.tensor([1 / t], dtype=torch.float64)) for case in cases]) for t in GRID}
    return min(means, key=means.__getitem__)


def _ace(case: _Voxels, inverse: torch.Tensor) -> float:
    """Return the mean ACE over the foreground classes that a case has."""
    key = inverse.tolist()
    known = case.ace_at.get(tuple(key))
    if known is None:
        probs = (case.logits.float() * inverse.float()).softmax(dim=1).T.contiguous().numpy()
        known = float(np.nanmean(ace(ReliabilityHistogram.from_probabilities(probs, case.classes.numpy()))[1:]))
        case.ace_at[tuple(key)] = known
    return known


def _fitted_without(cases: Sequence[_Voxels], fold: str) -> dict[str, list[float]]:
    others = [case for case in cases if case.fold != fold]
    return {
        "none": [1.0],
        "scalar": fitted(others, "scalar"),
        "per-class": fitted(others, "per-class"),
        "least-ace": [least_ace(others)],
    }


def _scored(
    cases: Sequence[_Voxels],
    choices: Mapping[str, Mapping[str, list[float]]],
    score: Callable[[_Voxels, torch.Tensor], float],
) -> dict[str, float]:
    """Return the mean score over the cases by scaling, each case with the temperatures that were fitted without its fold."""
    return {
        scaling: float(
            np.mean([score(case, 1 / torch.tensor(choices[case.fold][scaling], dtype=torch.float64)) for case in cases])
        )
        for scaling in next(iter(choices.values()))
    }
