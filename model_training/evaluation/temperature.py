"""Fits temperatures on out-of-fold cases, each scored by the network that never saw its person.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017: logits are divided by a temperature before softmax, chosen
to minimise the negative log likelihood (NLL). It is a scalar, or one per class. The scaled logits are linear in the inverse
temperatures, so the NLL is convex in these and has one minimum.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from model_training.config import Recipe
from model_training.data.case import Case, DataError, read_case
from model_training.evaluation.crossvalidate import networks_of
from service.bundle.schema import Declaration
from service.pipeline.infer import infer
from service.pipeline.preprocess import preprocess, to_scan_grid

VOXELS_PER_CASE: Final = 200_000
"""Voxels that are drawn from each case at most; each case has the same weight."""

Scaling = Literal["scalar", "per-class"]


class Temperatures(Declaration):
    """Temperatures fitted for a recipe, and the NLL with and without them."""

    recipe: str
    folds: list[str]
    n_cases: int
    n_persons: int
    scalar: float
    """One temperature for all classes, fitted on all folds."""
    per_class: list[float]
    """One temperature for each class, fitted on all folds."""
    nll: dict[str, float]
    """NLL in nats, mean over voxels, then over cases: ``none``, ``scalar``, ``per-class``. Each fold is scored with the
    temperatures fitted on the others."""

    def of_classes(self, scaling: Scaling, classes: int) -> list[float]:
        """Return the temperature of each class, as `service.json` states them."""
        return [self.scalar] * classes if scaling == "scalar" else self.per_class


@dataclass(frozen=True, slots=True, eq=False)
class _Voxels:
    """Voxels of one case: logits (n, C) and true classes (n,)."""

    fold: str
    person: str
    logits: torch.Tensor
    classes: torch.Tensor


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
    return Temperatures(
        recipe=recipe.service.name,
        folds=list(folds),
        n_cases=len(voxels),
        n_persons=len({case.person for case in voxels}),
        scalar=fitted(voxels, "scalar")[0],
        per_class=fitted(voxels, "per-class"),
        nll=_cross_fitted_nll(voxels, folds),
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


def _cross_fitted_nll(cases: Sequence[_Voxels], folds: Sequence[str]) -> dict[str, float]:
    totals = {"none": 0.0, "scalar": 0.0, "per-class": 0.0}
    for fold in folds:
        others = [case for case in cases if case.fold != fold]
        choices = {
            "none": [1.0],
            "scalar": fitted(others, "scalar"),
            "per-class": fitted(others, "per-class"),
        }
        for scaling, temperatures in choices.items():
            inverse = 1 / torch.tensor(temperatures, dtype=torch.float64)
            totals[scaling] += sum(float(_nll(case, inverse)) for case in cases if case.fold == fold)
    return {scaling: total / len(cases) for scaling, total in totals.items()}
