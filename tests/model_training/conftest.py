"""What the training tests share: a recipe of seconds, and a run of it."""

import dataclasses
from pathlib import Path

import pytest

from model_training.config import Recipe, Schedule
from model_training.layouts.msd import read_msd
from model_training.parallel import ALONE
from model_training.recipes.hippocampus import HIPPOCAMPUS
from model_training.train import train
from service.bundle.schema import ServiceConfig


@pytest.fixture
def recipe(tiny_config: ServiceConfig) -> Recipe:
    """Return a recipe that trains the tiny network for three steps."""
    schedule = Schedule(steps=3, warmup_steps=1, batch_size=2, learning_rate=1e-2, weight_decay=1e-4, validate_every=2)
    return dataclasses.replace(
        HIPPOCAMPUS,
        service=tiny_config,
        cases=lambda root: read_msd(root, str),
        train_splits=("fold1",),
        validation_split="fold2",
        binning="hard",
        ace_weight=1.0,
        ace_after=1,
        schedule=schedule,
    )


@pytest.fixture
def trained(tiny_msd: Path, tmp_path: Path, recipe: Recipe) -> Path:
    """Return the folder of a finished run of the recipe."""
    train(recipe, tiny_msd, tmp_path / "run", seed=0, group=ALONE)
    return tmp_path / "run"
