"""Training of a locator: resumable, and its files are those that export takes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from model_training import recipes
from model_training.cli import app
from model_training.data.case import DataError
from model_training.locator.recipe import LocatorRecipe
from model_training.locator.train import (
    DECLARATION,
    LOCATING,
    WEIGHTS,
    landmark_loss,
    measure_locator,
    read_locator,
    train_locator,
)
from service.bundle.card import Locating


def quiet(_: int, __: float) -> None:
    """Ignore the progress."""


class Stopped(Exception):
    """The run was stopped."""


def test_a_stopped_run_resumes_to_the_same_weights(maps: Path, locator_recipe: LocatorRecipe, tmp_path: Path) -> None:
    """Stopped after the checkpoint of step 2 and called again, a run reaches the weights of an uninterrupted run, bit for bit."""

    def stop(step: int, _: float) -> None:
        if step == 3:
            raise Stopped

    train_locator(locator_recipe, maps, tmp_path / "a", seed=0, report=quiet)
    with pytest.raises(Stopped):
        train_locator(locator_recipe, maps, tmp_path / "b", seed=0, report=stop)
    assert not (tmp_path / "b" / DECLARATION).exists()
    seen: list[int] = []
    train_locator(locator_recipe, maps, tmp_path / "b", seed=0, report=lambda step, _: seen.append(step))

    a, b = (load_file(tmp_path / run / WEIGHTS) for run in "ab")
    assert seen == [3]
    assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(DataError, match="finished run"):
        train_locator(locator_recipe, maps, tmp_path / "a", seed=0, report=quiet)


def test_the_measurement_is_written_beside_the_weights(
    maps: Path, locator_recipe: LocatorRecipe, tmp_path: Path
) -> None:
    """The measurement of an untrained network, which finds nothing, is written beside the weights."""
    with pytest.raises(DataError, match="no finished run"):
        read_locator(tmp_path)
    train_locator(locator_recipe, maps, tmp_path / "run", seed=0, report=quiet)
    measured = measure_locator(locator_recipe, maps, tmp_path / "run", n=2, seed=0)
    assert (measured.heads, measured.scans, measured.boxes_hold, measured.distance_mm_median) == (1, 2, 0, None)
    assert Locating.model_validate_json((tmp_path / "run" / LOCATING).read_bytes()) == measured


def test_the_loss_is_least_where_the_shares_are() -> None:
    """The logits that equal the shares have the lowest loss, and a false mark raises it."""
    share = torch.rand(1, 3, 4, 4, 4).softmax(dim=1)
    share = torch.nn.functional.one_hot(share.argmax(dim=1), 3).movedim(-1, 1).float()
    right = landmark_loss(20 * share, share)
    assert right < 0.01 < landmark_loss(20 * share.flip(1), share)
    empty = torch.zeros(1, 3, 4, 4, 4)
    empty[:, 0] = 1
    assert landmark_loss(20 * empty, empty) < landmark_loss(20 * share, empty)


def test_one_command_per_step(
    maps: Path, locator_recipe: LocatorRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command names the next one; for a recipe without a locator the message lists those that have one."""
    monkeypatch.setitem(recipes.LOCATORS, "tiny", locator_recipe)

    def call(*arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        return result.exit_code, result.output

    code, output = call("train-locator", "tiny", "--maps", maps, "-o", tmp_path / "run")
    assert code == 0
    assert "calibrant measure-locator tiny" in output
    code, output = call("measure-locator", "tiny", "--maps", maps, "--run", tmp_path / "run", "-n", 2)
    assert code == 0
    assert '"boxes_hold": 0' in output
    assert f"--locator {tmp_path / 'run'}" in output.replace("\n", "")
    code, output = call("train-locator", "acdc17", "--maps", maps, "-o", tmp_path / "other")
    assert (code, output) == (2, "There is no locator of acdc17; there are: hippocampus, tiny.\n")
