from pathlib import Path

import numpy as np
import pytest
import torch
from monai.metrics import CalibrationErrorMetric, CalibrationReduction
from torch.nn.functional import cross_entropy

from model_training.config import Recipe
from model_training.data.case import Case, DataError
from model_training.evaluation.crossvalidate import train_folds
from model_training.evaluation.evaluate import measure
from model_training.evaluation.temperature import GRID, Temperatures, _Voxels, calibrate, fitted, least_ace
from model_training.training.parallel import ALONE


def quiet(_: Case) -> None:
    """Ignore the progress."""


def overconfident(seed: int, inverse: tuple[float, ...], number: int = 20_000) -> _Voxels:
    """Return voxels whose labels are drawn from softmax(logits * inverse), so that the best temperatures are 1 / inverse."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn((number, 3), generator=generator)
    probs = (logits * torch.tensor(inverse)).softmax(dim=1)
    classes = torch.multinomial(probs, 1, generator=generator)[:, 0]
    return _Voxels(f"fold{seed}", f"person {seed}", logits, classes)


def test_the_scalar_is_the_best_of_a_fine_grid() -> None:
    """No temperature of a grid with steps of 0.01 has a lower NLL, and the fitted one is close to the true one."""
    cases = [overconfident(seed, (0.5, 0.5, 0.5)) for seed in (1, 2)]

    (temperature,) = fitted(cases, "scalar")

    def nll(t: float) -> float:
        return float(np.mean([float(cross_entropy(case.logits.double() / t, case.classes)) for case in cases]))

    grid = np.arange(1.0, 3.0, 0.01)
    best = grid[np.argmin([nll(t) for t in grid])]
    assert temperature == pytest.approx(best, abs=0.011)
    assert temperature == pytest.approx(2.0, rel=0.05)
    assert nll(temperature) <= min(nll(t) for t in grid) + 1e-9


def test_temperatures_per_class_are_found_again() -> None:
    """The temperatures with which the labels were drawn, one per class, are recovered."""
    assert fitted([overconfident(1, (0.4, 0.8, 1.25), 100_000)], "per-class") == pytest.approx(
        [2.5, 1.25, 0.8], rel=0.05
    )


def test_the_temperature_with_the_lowest_ace_is_the_best_of_its_grid() -> None:
    """By the metric of MONAI, no temperature of the grid has a lower mean ACE over the foreground classes."""
    cases = [overconfident(seed, (0.6, 0.6, 0.6)) for seed in (1, 2)]

    found = least_ace(cases)

    def mean_ace(t: float) -> float:
        values = []
        for case in cases:
            metric = CalibrationErrorMetric(
                num_bins=20, include_background=False, calibration_reduction=CalibrationReduction.AVERAGE
            )
            one_hot = torch.nn.functional.one_hot(case.classes, 3).float()
            probs = (case.logits / t).softmax(dim=1)
            metric(probs.T[None, ..., None].contiguous(), one_hot.T[None, ..., None].contiguous())
            buffer = metric.get_buffer()
            assert isinstance(buffer, torch.Tensor)
            values.append(float(buffer.nanmean()))
        return float(np.mean(values))

    assert mean_ace(found) == pytest.approx(min(mean_ace(t) for t in GRID), abs=1e-5)
    assert 1.4 < found < 2.0


def test_a_case_counts_the_same_however_large_it_is() -> None:
    """A case with a hundred times the voxels has the same weight as the others."""
    small, large = overconfident(1, (0.5,) * 3, 2_000), overconfident(2, (1.0,) * 3, 2_000)
    many = _Voxels("fold2", "person 2", large.logits.repeat(100, 1), large.classes.repeat(100))

    assert fitted([small, many], "scalar") == pytest.approx(fitted([small, large], "scalar"), rel=1e-4)


def test_temperatures_are_scored_on_folds_that_they_were_not_fitted_on(
    recipe: Recipe, tiny_msd: Path, tmp_path: Path
) -> None:
    """Without a temperature the NLL equals the evaluation's, since all voxels of the tiny cases take part."""
    train_folds(recipe, tiny_msd, tmp_path, ["fold1", "fold2"], seed=0, group=ALONE)

    temperatures = calibrate(recipe, tiny_msd, tmp_path, ["fold1", "fold2"], quiet)

    assert (temperatures.n_cases, temperatures.n_persons, temperatures.folds) == (4, 3, ["fold1", "fold2"])
    from model_training.evaluation.crossvalidate import networks_of

    cases = [
        case.sums()
        for network, held_out in networks_of(recipe, tiny_msd, tmp_path, ["fold1", "fold2"])
        for case in measure(network, recipe.service, held_out, quiet).cases
    ]
    assert temperatures.nll["none"] == pytest.approx(np.mean([case.nll / case.voxels for case in cases]), rel=1e-5)
    assert temperatures.of_classes("scalar", 3) == [temperatures.scalar] * 3
    assert temperatures.of_classes("per-class", 3) == temperatures.per_class
    assert Temperatures.model_validate_json(temperatures.model_dump_json()) == temperatures


def test_one_fold_is_not_enough(recipe: Recipe, tmp_path: Path) -> None:
    """A single fold is refused: temperatures must be scored on cases that they were not fitted on."""
    with pytest.raises(DataError, match="need two folds or more"):
        calibrate(recipe, tmp_path, tmp_path, ["fold1"], quiet)
