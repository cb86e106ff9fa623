from pathlib import Path

import pytest

from model_training.evaluation.console import disagrees, print_scores, print_temperatures
from model_training.evaluation.temperature import Temperatures
from service.bundle.card import Measurement
from service.bundle.description import describe_bundle


@pytest.fixture
def measurement(tiny_bundle: Path) -> Measurement:
    """Return the measurement of the tiny bundle's card: two cases of two persons."""
    return describe_bundle(tiny_bundle).card.measurements[0]


def test_scores_are_printed_with_their_intervals(measurement: Measurement, capsys: pytest.CaptureFixture[str]) -> None:
    """The first line names cases and engine; the mean stands before the structures; DSC is 1 in this card."""
    print_scores("fold1", measurement)

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fold1: 2 cases of 2 persons, torch fp32"
    assert [line.split()[0] for line in lines if " dsc " in line] == ["mean", "front", "back"]
    assert all(line.split()[2:] == ["1.0000", "(1.0000", "to", "1.0000)"] for line in lines if " dsc " in line)


def test_undefined_figures_are_called_undefined(measurement: Measurement, capsys: pytest.CaptureFixture[str]) -> None:
    """A figure without a value is not printed as None or NaN."""
    dsc = measurement.scores["dsc"].model_copy(update={"value": None})
    print_scores("fold1", measurement.model_copy(update={"scores": {"dsc": dsc}}))

    assert "mean" in (line := next(line for line in capsys.readouterr().out.splitlines() if "undefined" in line))
    assert line.split() == ["mean", "dsc", "undefined"]


def test_temperatures_are_printed_with_their_scores(capsys: pytest.CaptureFixture[str]) -> None:
    """Cases, persons and folds first, then the temperatures, then NLL and ACE of each scaling."""
    print_temperatures(
        Temperatures(
            recipe="tiny",
            folds=["fold1", "fold2"],
            n_cases=4,
            n_persons=3,
            scalar=1.25,
            per_class=[1.0, 1.5],
            least_ace=1.1,
            nll={"none": 0.5, "scalar": 0.25},
            ace={"none": 0.07, "scalar": 0.08},
        )
    )

    assert capsys.readouterr().out.splitlines() == [
        "4 cases of 3 persons (fold1, fold2), out of fold",
        "  scalar 1.2500; per class 1.0000 1.5000",
        "  with the lowest ACE 1.10",
        "  none       NLL 0.50000  ACE 0.07000",
        "  scalar     NLL 0.25000  ACE 0.08000",
    ]


def test_equal_measurements_agree(measurement: Measurement, capsys: pytest.CaptureFixture[str]) -> None:
    """The same figures and sums are reported as exactly equal."""
    assert not disagrees(measurement, measurement)
    assert "equals the card's exactly" in capsys.readouterr().out


@pytest.mark.parametrize(("difference", "expected"), [(1e-4, False), (1e-2, True)])
def test_only_differences_beyond_the_tolerance_disagree(
    measurement: Measurement, capsys: pytest.CaptureFixture[str], difference: float, *, expected: bool
) -> None:
    """In float32 the tolerance is 1e-3; the largest difference is printed either way."""
    dsc = measurement.scores["dsc"]
    assert dsc.value is not None
    changed = dsc.model_copy(update={"value": dsc.value - difference})
    other = measurement.model_copy(update={"scores": measurement.scores | {"dsc": changed}})

    assert disagrees(other, measurement) == expected
    assert f"differ from the card's by up to {difference:.2g}" in capsys.readouterr().out
