"""Cross-validation: each development fold is measured with the network that was trained on the others."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file
from torch import nn

from model_training.config import Recipe
from model_training.data.case import Case, DataError
from model_training.data.splits import TEST
from model_training.evaluation.evaluate import measure, this_platform
from model_training.training.parallel import Group
from model_training.training.progress import Progress
from model_training.training.train import WEIGHTS, train
from service.bundle.card import Measurement
from service.bundle.engine_kind import REFERENCE
from service.bundle.network import build_network

MEASUREMENT: Final = "out-of-fold.json"
"""File of the out-of-fold measurement in the folder of the runs."""


def train_folds(recipe: Recipe, data: Path, out: Path, folds: Sequence[str], *, seed: int, group: Group) -> None:
    """Train a network without each of the folds, in a folder below `out` named after the fold; skip finished ones.

    Raises:
        DataError: the data set is not as the recipe expects, or has no such fold.
    """
    splits = recipe.cases(data)
    if unknown := next((fold for fold in folds if fold not in splits or fold == TEST), None):
        known = ", ".join(split for split in splits if split != TEST)
        msg = f"There is no fold {unknown}; the data set has {known}."
        raise DataError(msg)
    for fold in folds:
        if not (out / fold / WEIGHTS).exists():
            with Progress(recipe.schedule.steps, shown=group.leads) as progress:
                held_out = recipe.without(fold, splits)
                train(held_out, data, out / fold, seed=seed, group=group, watchers=[progress])


def measure_folds(
    recipe: Recipe, data: Path, runs: Path, folds: Sequence[str], done: Callable[[Case], None]
) -> Measurement:
    """Measure each network on the fold that it was not trained on; write the measurement to `runs` and return it.

    Raises:
        DataError: a fold has not been trained.
    """
    records = [
        record
        for network, cases in networks_of(recipe, data, runs, folds)
        for record in measure(network, recipe.service, cases, done).cases
    ]
    names = [structure.name for structure in recipe.service.structures]
    measurement = Measurement.of(*REFERENCE, this_platform(), records, names)
    (runs / MEASUREMENT).write_text(measurement.model_dump_json() + "\n")
    return measurement


def networks_of(recipe: Recipe, data: Path, runs: Path, folds: Sequence[str]) -> Iterator[tuple[nn.Module, list[Case]]]:
    """Yield for each fold the network that never saw it, in evaluation mode, and the fold's cases.

    Raises:
        DataError: a fold has not been trained.
    """
    splits = recipe.cases(data)
    for fold in folds:
        weights = runs / fold / WEIGHTS
        if not weights.exists():
            msg = f"{weights} was not found: calibrant crossvalidate trains the folds."
            raise DataError(msg)
        network = build_network(recipe.service.network)
        network.load_state_dict(load_file(weights))
        with torch.inference_mode():
            yield network.eval(), splits[fold]
