from pathlib import Path

import pytest
from typer.testing import CliRunner

from model_training import recipes
from model_training.cli import app
from model_training.config import Recipe
from model_training.data.case import Case
from model_training.evaluation.crossvalidate import train_folds
from model_training.evaluation.shift import MILD, MILD_EACH, observe_folds
from model_training.training.parallel import ALONE
from service.pipeline.features import features_of

FOLDS = ["fold1", "fold2"]


def quiet(_: Case) -> None:
    """Ignore the progress."""


def test_each_case_is_observed_clean_and_mildly_spoilt(recipe: Recipe, tiny_msd: Path, tmp_path: Path) -> None:
    """By the network that never saw its person, with the bundle's features, and the same again."""
    train_folds(recipe, tiny_msd, tmp_path, FOLDS, seed=0, group=ALONE)

    record = observe_folds(recipe, tiny_msd, tmp_path, FOLDS, quiet)

    assert [feature.name for feature in record.features] == list(features_of(recipe.service))
    clean = [answer for answer in record.answers if not answer.artefacts]
    assert [(answer.case, answer.person, answer.fold) for answer in clean] == [
        ("a1", "A", "fold1"),
        ("a2", "A", "fold1"),
        ("b1", "B", "fold1"),
        ("c1", "C", "fold2"),
    ]
    assert len(record.answers) == len(clean) * (1 + MILD_EACH)
    spoilt = [answer.artefacts.rpartition(" ") for answer in record.answers if answer.artefacts]
    assert all(low <= float(severity) <= high for kind, _, severity in spoilt for low, high in [MILD[kind]])
    assert all(0 <= answer.dsc <= 1 for answer in record.answers)
    assert observe_folds(recipe, tiny_msd, tmp_path, FOLDS, quiet) == record


def test_the_command_writes_what_export_takes(
    recipe: Recipe, tiny_msd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too few persons for a test are said where the alarms would be counted."""
    monkeypatch.setitem(recipes.RECIPES, "tiny", recipe)
    train_folds(recipe, tiny_msd, tmp_path / "runs", FOLDS, seed=0, group=ALONE)
    command = ["shift-test", "tiny", "--data", str(tiny_msd), "--runs", str(tmp_path / "runs"), "-o"]

    result = CliRunner().invoke(app, [*command, str(tmp_path / "shift.json")])

    assert result.exit_code == 0, result.output
    assert "4 cases of 3 persons" in result.output
    assert "needs at least 19" in result.output
    assert "export tiny" in result.output
