from pathlib import Path

import pytest
from typer.testing import CliRunner

from model_training import recipes
from model_training.cli import app
from model_training.config import Recipe
from model_training.data.case import Case, DataError
from model_training.evaluation.crossvalidate import measure_folds, networks_of, train_folds
from model_training.training.parallel import ALONE
from service.bundle.card import Measurement


def quiet(_: Case) -> None:
    """Ignore the progress."""


def test_each_fold_is_measured_by_the_network_that_never_saw_it(recipe: Recipe, tiny_msd: Path, tmp_path: Path) -> None:
    """Every development case is measured once, by the network of the other fold, and the test set is not used."""
    train_folds(recipe, tiny_msd, tmp_path, ["fold1", "fold2"], seed=0, group=ALONE)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/model.safetensors")}
    train_folds(recipe, tiny_msd, tmp_path, ["fold1", "fold2"], seed=0, group=ALONE)

    measurement = measure_folds(recipe, tiny_msd, tmp_path, ["fold1", "fold2"], quiet)

    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [(case.case, case.person) for case in measurement.cases] == [
        ("a1", "A"),
        ("a2", "A"),
        ("b1", "B"),
        ("c1", "C"),
    ]
    assert Measurement.model_validate_json((tmp_path / "out-of-fold.json").read_bytes()) == measurement
    trained_on = {fold: (tmp_path / fold / "training.json").read_text() for fold in ("fold1", "fold2")}
    assert '"train_cases": 1' in trained_on["fold1"]
    assert '"train_cases": 3' in trained_on["fold2"]


def test_folds_give_other_networks(recipe: Recipe, tiny_msd: Path, tmp_path: Path) -> None:
    """Each fold's cases come with the network that was trained without that fold."""
    train_folds(recipe, tiny_msd, tmp_path, ["fold1", "fold2"], seed=0, group=ALONE)

    (one, of_one), (two, of_two) = networks_of(recipe, tiny_msd, tmp_path, ["fold1", "fold2"])

    assert [[case.name for case in cases] for cases in (of_one, of_two)] == [["a1", "a2", "b1"], ["c1"]]
    weights = [next(network.parameters()) for network in (one, two)]
    assert not one.training
    assert not (weights[0] == weights[1]).all()


def test_a_fold_that_is_not_there_is_named(recipe: Recipe, tiny_msd: Path, tmp_path: Path) -> None:
    """An unknown fold, the test set and an untrained fold are refused; the message says what to do."""
    for name in ("fold3", "test"):
        with pytest.raises(DataError, match=f"no fold {name}; the data set has fold1, fold2"):
            train_folds(recipe, tiny_msd, tmp_path, [name], seed=0, group=ALONE)
    with pytest.raises(DataError, match="calibrant crossvalidate trains the folds"):
        measure_folds(recipe, tiny_msd, tmp_path, ["fold1"], quiet)


def test_from_folds_to_a_calibrated_bundle_by_commands(
    recipe: Recipe, tiny_msd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """crossvalidate, calibrate, train and export lead to a bundle with the fitted temperatures."""
    monkeypatch.setitem(recipes.RECIPES, "tiny", recipe)

    def call(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "--data", str(tiny_msd)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    folds, fitted, run, bundle = (str(tmp_path / name) for name in ("folds", "temperature.json", "run", "bundle"))
    assert "fold1, fold2, out of fold: 4 cases of 3 persons" in call("crossvalidate", "tiny", "-o", folds)
    output = call("calibrate", "tiny", "--runs", folds, "-o", fitted, "--fold", "1", "--fold", "2")
    assert "per-class  NLL" in output
    call("train", "tiny", "-o", run)
    call("export", "tiny", "--run", run, "-o", bundle, "--temperature", fitted, "--scaling", "per-class")

    from model_training.evaluation.temperature import Temperatures
    from service.bundle.schema import ServiceConfig

    served = ServiceConfig.model_validate_json((Path(bundle) / "service.json").read_bytes()).temperature
    assert served == Temperatures.model_validate_json(Path(fitted).read_bytes()).per_class
    assert served != [1.0, 1.0, 1.0]
