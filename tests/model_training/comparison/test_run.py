import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from model_training import recipes
from model_training.cli import app
from model_training.comparison import run as compare
from model_training.comparison.files import pack
from model_training.comparison.run import TEMPERATURES, Run, RunName, run_once
from model_training.config import Recipe
from model_training.data.case import Case
from model_training.data.layouts.msd import read_msd
from model_training.training.parallel import ALONE
from model_training.training.progress import Progress
from model_training.training.train import train


def quiet(_: Case) -> None:
    """Ignore the progress."""


def test_a_run_measures_the_fold_that_it_was_not_trained_on(recipe: Recipe, tiny_msd: Path, tmp_path: Path) -> None:
    """The file holds the held-out fold's cases at each temperature; only the checkpoint of the shared steps remains beside it."""
    file = run_once(recipe, RunName("tiny", "fold1", 3), tiny_msd, tmp_path / "runs", quiet)

    run = Run.model_validate_json(file.read_bytes())
    assert (run.configuration, run.fold, run.seed, run.steps) == ("tiny", "fold1", 3, 3)
    assert list(run.cases) == [str(t) for t in TEMPERATURES]
    expected = [case.name for case in read_msd(tiny_msd, str)["fold1"]]
    assert all([record.case for record in records] == expected for records in run.cases.values())
    assert files(tmp_path / "runs") == [".start-1-fold1-seed3/begun.safetensors", "tiny-fold1-seed3.json"]


def test_rounded_sums_keep_the_figures(
    recipe: Recipe, tiny_msd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding the sums to five decimals changes no gap by more than 1e-5."""
    rounded = Run.model_validate_json(
        run_once(recipe, RunName("a", "fold2", 0), tiny_msd, tmp_path, quiet).read_bytes()
    )
    monkeypatch.setattr(compare, "_rounded", lambda record: record)
    exact = Run.model_validate_json(run_once(recipe, RunName("b", "fold2", 0), tiny_msd, tmp_path, quiet).read_bytes())

    for few, all_digits in zip(rounded.cases["1.2"], exact.cases["1.2"], strict=True):
        a, b = few.sums().histogram, all_digits.sums().histogram
        np.testing.assert_allclose(a.gap, b.gap, atol=1e-5)


def test_finished_runs_are_skipped(
    recipe: Recipe, tiny_msd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Called again, the command computes only missing runs; an unknown configuration is refused with a list of the known ones."""
    variants = {"one": recipe, "two": dataclasses.replace(recipe, ace_weight=0.0)}
    monkeypatch.setitem(recipes.RECIPES, "tiny", recipe)
    monkeypatch.setitem(recipes.COMPARISONS, "tiny", variants)

    def call(*arguments: str) -> tuple[int, str]:
        command = ["compare", "tiny", "--data", str(tiny_msd), "-o", str(tmp_path / "runs"), *arguments]
        result = CliRunner().invoke(app, command)
        return result.exit_code, result.output

    assert call("--configuration", "one", "--fold", "2")[0] == 0
    before = (tmp_path / "runs" / "one-fold2-seed0.json").read_bytes()
    code, output = call()
    assert code == 0
    runs = {f"{name}-fold{k}-seed0.json" for name in ("one", "two") for k in (1, 2)}
    assert set(files(tmp_path / "runs")) == runs | {f".start-1-fold{k}-seed0/begun.safetensors" for k in (1, 2)}
    assert "one-fold2" not in output
    assert (tmp_path / "runs" / "one-fold2-seed0.json").read_bytes() == before
    pack(tmp_path / "runs" / "one-fold2-seed0.json")
    assert call() == (0, "")
    code, output = call("--configuration", "three")
    assert code == 2
    assert "there are: one, two" in output


class Watched:
    """Records the steps of the runs of a test and the weights that each run ended with."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.steps: list[int] = []
        self.weights: list[dict[str, torch.Tensor]] = []
        self.kill_at = 0

    def step(self, progress: Progress, step: int, epoch: float, terms: Mapping[str, float]) -> None:
        """Record a step in place of the progress display; raise at the chosen one."""
        del progress, epoch, terms
        self.steps.append(step)
        if step == self.kill_at:
            self.kill_at = 0
            raise KeyboardInterrupt

    def measure(self, network: torch.nn.Module, *_: object) -> dict[str, list[object]]:
        """Keep the weights in place of measuring the network."""
        self.weights.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return {}


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Return the recorder of every run of the test."""
    watched = Watched()
    monkeypatch.setattr(Progress, "step", lambda *arguments: watched.step(*arguments))  # noqa: PLW0108 - binds it
    monkeypatch.setattr(compare, "_measured", watched.measure)
    return watched


def longer(recipe: Recipe) -> Recipe:
    """Return the recipe with five steps, each with a checkpoint."""
    return dataclasses.replace(recipe, schedule=dataclasses.replace(recipe.schedule, steps=5, validate_every=1))


def alone(recipe: Recipe, data: Path, run: Path) -> dict[str, torch.Tensor]:
    """Return the weights that an ordinary training run reaches without the first fold."""
    train(recipe.without("fold1", recipe.cases(data)), data, run, seed=0, group=ALONE)
    return load_file(run / "model.safetensors")


def test_configurations_share_their_first_steps(
    recipe: Recipe, tiny_msd: Path, tmp_path: Path, watched: Watched
) -> None:
    """A configuration that starts from another's checkpoint ends with exactly the weights that it reaches alone."""
    first, second = (longer(recipe).with_loss(*loss, after=2) for loss in (("hard", 1.0), ("soft", 5.0)))

    for name, configuration in (("first", first), ("second", second)):
        run_once(configuration, RunName(name, "fold1", 0), tiny_msd, tmp_path / "runs", quiet)

    assert watched.steps == [1, 2, 3, 4, 5, 3, 4, 5]
    expected = [alone(one, tiny_msd, tmp_path / name) for name, one in (("first", first), ("second", second))]
    assert same(watched.weights[0], expected[0])
    assert same(watched.weights[1], expected[1])
    assert not same(watched.weights[0], watched.weights[1])


@pytest.mark.parametrize("killed_at", [1, 2, 4])
def test_a_killed_run_resumes_from_its_checkpoint(
    recipe: Recipe, tiny_msd: Path, tmp_path: Path, watched: Watched, killed_at: int
) -> None:
    """A run that is killed during, at the end of or after the shared steps repeats only the step without a checkpoint."""
    configuration = longer(recipe).with_loss("soft", 1.0, after=2)
    watched.kill_at = killed_at

    with pytest.raises(KeyboardInterrupt):
        run_once(configuration, RunName("a", "fold1", 0), tiny_msd, tmp_path / "runs", quiet)
    run_once(configuration, RunName("a", "fold1", 0), tiny_msd, tmp_path / "runs", quiet)

    # The step that was killed is taken again: its checkpoint follows it.
    assert watched.steps == sorted([*range(1, 6), killed_at])
    assert same(watched.weights[0], alone(configuration, tiny_msd, tmp_path / "alone"))


@pytest.mark.parametrize("after", [0, 5, 9])
def test_no_steps_are_shared_unless_ace_joins_midway(
    recipe: Recipe, tiny_msd: Path, tmp_path: Path, watched: Watched, after: int
) -> None:
    """Without steps before mL1-ACE, or without any after, the configuration trains by itself and leaves no shared checkpoint."""
    configuration = longer(recipe).with_loss("hard", 1.0, after=after)

    run_once(configuration, RunName("a", "fold1", 0), tiny_msd, tmp_path / "runs", quiet)

    assert watched.steps == [1, 2, 3, 4, 5]
    assert files(tmp_path / "runs") == ["a-fold1-seed0.json"]
    assert same(watched.weights[0], alone(configuration, tiny_msd, tmp_path / "alone"))


def files(folder: Path) -> list[str]:
    """Return every file below a folder, including hidden ones."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def same(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    """Return whether two networks have the same weights, bit for bit."""
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)
