import datetime as dt
from pathlib import Path

import numpy as np
import pytest

from model_training.comparison.files import pack
from model_training.comparison.run import TEMPERATURES, Run
from model_training.comparison.tables import compared, fitted_temperature, fold_person_weights, load_runs, score, table
from model_training.data.case import DataError
from service.bundle.card import CaseRecord
from service.calibration.cohort import measure_case


def record(case: str, person: str, p: float, right: int) -> CaseRecord:
    """Return a case of 100 voxels, all predicted as the structure with probability p, of which `right` belong to it."""
    probs = np.empty((2, 100), np.float32)
    probs[1], probs[0] = p, 1 - p
    labels = np.array([1] * right + [0] * (100 - right))
    return CaseRecord.of(measure_case(case, person, probs, probs.argmax(axis=0), labels), (4, 5, 5), (1, 1, 1))


def run(configuration: str, fold: str, best: float, *, right: int = 80) -> Run:
    """Return a run of two persons that is calibrated at one temperature and less so the further away the temperature is."""
    at = TEMPERATURES.index(best)
    cases = {
        str(t): [record(f"{fold}-{k}", f"{fold}-{k // 2}", right / 100 + 0.02 * abs(i - at), right) for k in range(3)]
        for i, t in enumerate(TEMPERATURES)
    }
    return Run(
        recipe="made-up",
        configuration=configuration,
        binning="soft",
        ace_weight=0.0,
        ace_after=0,
        steps=1,
        fold=fold,
        seed=0,
        date=dt.date(2026, 1, 31),
        platform="test",
        cases=cases,
    )


def test_the_temperature_is_fitted_on_the_other_folds() -> None:
    """Fold 1 is best at 1.5 and the others at 0.8: 0.8 is applied to fold 1."""
    runs = [run("a", "fold1", 1.5), run("a", "fold2", 0.8), run("a", "fold3", 0.8)]

    assert fitted_temperature(runs, "fold1", 0) == 0.8
    with pytest.raises(DataError, match="Run more folds"):
        fitted_temperature(runs[:1], "fold1", 0)


def test_scoring_takes_each_case_at_its_temperature() -> None:
    """Without scaling the record at temperature 1 is used, with scaling the one at the temperature fitted on other folds."""
    runs = [run("a", "fold1", 1.0), run("a", "fold2", 1.2)]

    plain, scaled = score(runs, scaled=False), score(runs, scaled=True)

    assert [case.sums.case for case in plain] == ["fold1-0", "fold1-1", "fold1-2", "fold2-0", "fold2-1", "fold2-2"]
    assert plain[0].sums.nll == runs[0].cases["1.0"][0].nll
    assert scaled[0].sums.nll == runs[0].cases["1.2"][0].nll
    assert scaled[3].sums.nll == runs[1].cases["1.0"][0].nll


def test_folds_and_persons_are_resampled_not_cases() -> None:
    """Row 0 counts each case once; in the others both cases of a person count equally, and some folds are missing."""
    cases = score([run("a", f"fold{k}", 1.0) for k in (1, 2, 3)], scaled=False)

    weights = fold_person_weights(cases, seed=1)

    assert weights[0].tolist() == [1] * 9
    assert (weights[:, 0::3] == weights[:, 1::3]).all()
    assert (weights[1:, :3].sum(axis=1) == 0).any()
    per_person = weights[1:, [1, 2, 4, 5, 7, 8]].sum(axis=1)
    assert (per_person == 6).all()
    np.testing.assert_array_equal(weights, fold_person_weights(cases, seed=1))


def test_the_table_sets_each_configuration_beside_the_baseline() -> None:
    """The baseline's difference from itself is 0, a configuration with half its ACE has -50 %, and only common folds count."""
    runs = [run("dice-ce", f"fold{k}", 1.2) for k in (1, 2, 3)]
    runs += [run("better", f"fold{k}", 1.1) for k in (1, 2)]

    comparison = compared(runs)
    text = table(comparison)

    assert text.startswith("6 cases of 4 persons, out of fold; fold1, fold2; seeds 0.\n")
    lines = text.splitlines()
    (own,) = [line for line in lines if line.startswith("| dice-ce | none |") and "+0.0" in line]
    assert own.count("+0.0 (+0.0 to +0.0)") == 6
    (better,) = [line for line in lines if line.startswith("| better | none |") and "+0.0 (" in line]
    assert better.split(" | ")[3] == "-50.0 (-50.0 to -50.0)"
    fitted = [line for line in lines if line.startswith("| better | fitted |")]
    assert len(fitted) == 2
    change = comparison.changes(("better", False))["ace_macro"]
    assert (change.value, change.low, change.high) == pytest.approx((-50, -50, -50))


def test_runs_are_read_from_a_folder(tmp_path: Path) -> None:
    """Plain and packed files are read; an empty folder or an unreadable file is an error that names the remedy."""
    with pytest.raises(DataError, match="calibrant compare"):
        load_runs(tmp_path)
    (tmp_path / "a.json").write_text(run("a", "fold1", 1.0).model_dump_json())
    assert [run.fold for run in load_runs(tmp_path)] == ["fold1"]
    pack(tmp_path / "a.json")
    assert [run.fold for run in load_runs(tmp_path)] == ["fold1"]
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be read"):
        load_runs(tmp_path)
