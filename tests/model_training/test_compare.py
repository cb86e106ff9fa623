import dataclasses
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from model_training import compare, recipes
from model_training.cli import app
from model_training.compare import TEMPERATURES, Run, RunName, run_once
from model_training.config import Recipe
from model_training.data import Case
from model_training.layouts.msd import read_msd


def quiet(_: Case) -> None:
    """Ignore the progress."""


def test_a_run_measures_the_fold_that_it_was_not_trained_on(recipe: Recipe, tiny_msd: Path, tmp_path: Path) -> None:
    """The file holds the held-out fold's cases once per temperature, and nothing else is left in the folder."""
    file = run_once(recipe, RunName("tiny", "fold1", 3), tiny_msd, tmp_path / "runs", quiet)

    run = Run.model_validate_json(file.read_bytes())
    assert (run.configuration, run.fold, run.seed, run.steps) == ("tiny", "fold1", 3, 3)
    assert list(run.cases) == [str(t) for t in TEMPERATURES]
    expected = [case.name for case in read_msd(tiny_msd, str)["fold1"]]
    assert all([record.case for record in records] == expected for records in run.cases.values())
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny-fold1-seed3.json"]


def test_rounded_sums_keep_the_figures(
    recipe: Recipe, tiny_msd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five decimals in the sums move no score by more than a millionth."""
    rounded = Run.model_validate_json(
        run_once(recipe, RunName("a", "fold2", 0), tiny_msd, tmp_path, quiet).read_bytes()
    )
    monkeypatch.setattr(compare, "_rounded", lambda record: record)
    exact = Run.model_validate_json(run_once(recipe, RunName("b", "fold2", 0), tiny_msd, tmp_path, quiet).read_bytes())

    for few, all_digits in zip(rounded.cases["1.2"], exact.cases["1.2"], strict=True):
        a, b = few.sums().histogram, all_digits.sums().histogram
        np.testing.assert_allclose(a.gap, b.gap, atol=1e-5)


def test_runs_that_are_there_are_skipped(
    recipe: Recipe, tiny_msd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Called again, the command computes what is missing only; an unknown configuration is answered with the known."""
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
    names = {path.name for path in (tmp_path / "runs").iterdir()}
    assert names == {f"{name}-fold{k}-seed0.json" for name in ("one", "two") for k in (1, 2)}
    assert "one-fold2" not in output
    assert (tmp_path / "runs" / "one-fold2-seed0.json").read_bytes() == before
    code, output = call("--configuration", "three")
    assert code == 2
    assert "there are: one, two" in output
