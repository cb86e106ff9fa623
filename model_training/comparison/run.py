"""One run of a comparison: a configuration trained without one fold and measured on it at several temperatures.

A run is one JSON file, named by configuration, fold and seed. Existing runs are not computed again, so a comparison can be
spread over days and machines. Tables and pictures are computed from the files alone.
"""

import datetime as dt
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file

from model_training.comparison.files import PACKED, PLAIN
from model_training.config import Recipe
from model_training.data.case import Case
from model_training.evaluation.evaluate import measure_one, this_platform
from model_training.training.checkpoint import NAME as CHECKPOINT
from model_training.training.parallel import ALONE
from model_training.training.progress import Progress
from model_training.training.train import SAMPLES, WEIGHTS, train
from service.bundle.card import CaseRecord
from service.bundle.network import build_network
from service.bundle.schema import Declaration

TEMPERATURES: Final = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.75)
"""Scalar temperatures at which each case is measured, so that one can be fitted on the other folds and applied here."""

BEGUN: Final = "begun.safetensors"
"""Checkpoint after the first steps, which the configurations of a fold share."""

_DECIMALS = 5


class Run(Declaration):
    """Measurement of one run."""

    recipe: str
    configuration: str
    binning: str
    ace_weight: float
    ace_after: int
    steps: int
    fold: str
    seed: int
    date: dt.date
    platform: str
    cases: dict[str, list[CaseRecord]]
    """Records of the fold's cases, by temperature; sums of probabilities are rounded to 5 decimals."""


@dataclass(frozen=True, slots=True)
class RunName:
    """Identifies a run of a comparison."""

    configuration: str
    fold: str
    seed: int

    @property
    def file(self) -> str:
        """Name of the run's file."""
        return f"{self.configuration}-{self.fold}-seed{self.seed}{PLAIN}"

    def is_done_in(self, folder: Path) -> bool:
        """Return whether the folder holds this run, plain or packed."""
        return any((folder / (self.file.removesuffix(PLAIN) + suffix)).exists() for suffix in (PLAIN, PACKED))


def run_once(recipe: Recipe, name: RunName, data: Path, out: Path, done: Callable[[Case], None]) -> Path:
    """Train on all folds but one, measure on that one, and return the file of the run.

    A killed run resumes from its checkpoint, which is kept in a folder beside the file.

    Raises:
        DataError: the data set is not as the recipe expects.
    """
    file = out / name.file
    folder = out / f".{file.stem}"
    splits = recipe.cases(data)
    held_out = recipe.without(name.fold, splits)
    if not (folder / WEIGHTS).exists():
        if 0 < recipe.ace_after < recipe.schedule.steps and not (folder / CHECKPOINT).exists():
            _begin(held_out, name, data, folder)
        with Progress(recipe.schedule.steps) as progress:
            train(held_out, data, folder, seed=name.seed, group=ALONE, watchers=[progress])
    network = build_network(recipe.service.network)
    network.load_state_dict(load_file(folder / WEIGHTS))
    cases = _measured(network.eval(), recipe, splits[name.fold], done)
    run = Run(
        recipe=recipe.service.name,
        configuration=name.configuration,
        binning=recipe.binning,
        ace_weight=recipe.ace_weight,
        ace_after=recipe.ace_after,
        steps=recipe.schedule.steps,
        fold=name.fold,
        seed=name.seed,
        date=dt.datetime.now(dt.UTC).date(),
        platform=this_platform(),
        cases=cases,
    )
    part = folder / "run.json"
    part.write_text(run.model_dump_json() + "\n")
    part.replace(file)
    shutil.rmtree(folder)
    return file


def _begin(recipe: Recipe, name: RunName, data: Path, folder: Path) -> None:
    """Train the steps before mL1-ACE joins, or copy their checkpoint from another run of the fold.

    Until mL1-ACE joins, all configurations of a fold and a seed reach the same weights.
    """
    start = folder.parent / f".start-{recipe.ace_after}-{name.fold}-seed{name.seed}"
    if not (start / BEGUN).exists():
        with Progress(recipe.schedule.steps) as progress:
            train(recipe, data, start, seed=name.seed, group=ALONE, watchers=[progress], until=recipe.ace_after)
        (start / CHECKPOINT).rename(start / BEGUN)
        shutil.rmtree(start / SAMPLES)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(start / BEGUN, folder / f"{CHECKPOINT}.part")
    (folder / f"{CHECKPOINT}.part").replace(folder / CHECKPOINT)


def _measured(
    network: torch.nn.Module, recipe: Recipe, cases: list[Case], done: Callable[[Case], None]
) -> dict[str, list[CaseRecord]]:
    classes = len(recipe.service.labels)
    measured: dict[str, list[CaseRecord]] = {str(t): [] for t in TEMPERATURES}
    for case in cases:
        records = measure_one(network, recipe.service, case, [[t] * classes for t in TEMPERATURES])
        for t, record in zip(TEMPERATURES, records, strict=True):
            measured[str(t)].append(_rounded(record))
        done(case)
    return measured


def _rounded(record: CaseRecord) -> CaseRecord:
    return record.model_copy(
        update={
            "sum_p": [[round(p, _DECIMALS) for p in row] for row in record.sum_p],
            "ace_floor": [round(floor, _DECIMALS) for floor in record.ace_floor],
        }
    )
