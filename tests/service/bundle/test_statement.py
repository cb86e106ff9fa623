import datetime as dt
from pathlib import Path

import pytest

from service.bundle.card import CalibrationCard, Interval, ShiftReference
from service.bundle.description import describe_bundle
from service.bundle.registry import DEFAULT_MODEL, SHIPPED
from service.bundle.statement import FEATURES, MARGIN, Unmeasured, reasons_to_withdraw, statement_of


@pytest.fixture
def card(tiny_bundle: Path) -> CalibrationCard:
    """Return a card whose cases span 40 to 60 mm along one axis."""
    reference = ShiftReference(feature="extent_mm_2", unit="mm", values=[50.0, 40.0, 60.0])
    return describe_bundle(tiny_bundle).card.model_copy(update={"shift_references": (reference,)})


def test_a_statement_that_holds_gives_figures_and_population(card: CalibrationCard) -> None:
    """It names population, date and engine, and says that it does not describe this image."""
    measurement = card.measurements[0]
    statement = statement_of(card, measurement, [])

    assert statement.status == "holds"
    assert statement.text.startswith("On 2 cases of 2 persons (two boxes, all; 2026-01-31) ")
    assert statement.text.endswith("This describes that population, not this image.")
    assert (statement.n_persons, statement.n_cases, statement.date) == (2, 2, dt.date(2026, 1, 31))
    assert (statement.engine, statement.precision) == ("torch", "fp32")
    assert (statement.dataset, statement.split, statement.protocol) == ("two boxes", "all", "held-out")
    assert statement.figures is not None
    assert {name: figure.value for name, figure in statement.figures.items()} == {
        name: score.value for name, score in measurement.scores.items()
    }


def test_the_text_spells_the_figures_of_the_card(card: CalibrationCard) -> None:
    """Figures have three decimals and their interval."""
    text = statement_of(card, card.measurements[0], []).text

    assert "a DSC of 1.000 (1.000 to 1.000)" in text
    assert "an ACE of 0.188 (0.188 to 0.188)" in text
    assert "0.020 (0.020 to 0.020) is the floor" in text


def test_an_undefined_figure_is_unknown(card: CalibrationCard) -> None:
    """A figure that could not be computed is "unknown" in the text."""
    scores = card.measurements[0].scores | {"dsc": Interval(value=None, low=None, high=None)}
    measurement = card.measurements[0].model_copy(update={"scores": scores})

    assert "a DSC of unknown and" in statement_of(card, measurement, []).text


def test_a_withdrawn_statement_gives_no_figure(card: CalibrationCard) -> None:
    """It gives the reasons and the population but no figures."""
    statement = statement_of(card, card.measurements[0], ["extent along axis 2: 9.0 mm"])

    assert statement.status == "withdrawn"
    assert statement.figures is None
    assert statement.reasons == ["extent along axis 2: 9.0 mm"]
    assert statement.text.startswith("Withdrawn: this scan is unlike the 2 cases of 2 persons")
    assert "DSC" not in statement.text


def test_on_a_device_that_was_never_measured_nothing_is_stated(card: CalibrationCard) -> None:
    """The statement is withdrawn, names the device, and one sentence says what to run."""
    statement = statement_of(card, Unmeasured("torch", "fp32", "cuda-9.0"), [])

    assert statement.status == "withdrawn"
    assert statement.figures is None
    assert statement.text.startswith("Withdrawn: the calibration card was measured on 2 cases of 2 persons")
    assert statement.text.endswith("but not on cuda-9.0.")
    assert (statement.engine, statement.precision, statement.device) == ("torch", "fp32", "cuda-9.0")
    (reason,) = statement.reasons
    assert "calibrant verify-engine BUNDLE --recipe RECIPE --data DIR --device cuda." in reason


def test_an_unlike_scan_on_such_a_device_has_both_reasons(card: CalibrationCard) -> None:
    """One reason does not hide the other."""
    statement = statement_of(card, Unmeasured("torch", "fp32", "cuda-9.0"), ["extent along axis 2: 9.0 mm"])

    assert statement.text.startswith("Withdrawn: this scan is unlike")
    assert len(statement.reasons) == 2


def test_a_statement_of_a_cpu_is_written_as_before(card: CalibrationCard) -> None:
    """The device is named only where it is a GPU."""
    of_gpu = card.measurements[0].model_copy(update={"device": "cuda-8.0"})

    assert '"device"' not in statement_of(card, card.measurements[0], []).model_dump_json()
    assert '"device":"cuda-8.0"' in statement_of(card, of_gpu, []).model_dump_json()


@pytest.mark.parametrize("value", [40.0, 60.0, 40.0 / MARGIN, 60.0 * MARGIN])
def test_a_scan_within_the_margin_is_accepted(card: CalibrationCard, value: float) -> None:
    """Values in the range of the cases, widened by a quarter, give no reason."""
    assert reasons_to_withdraw({"extent_mm_2": value}, card) == []


@pytest.mark.parametrize("value", [31.9, 75.1, 0.0, float("nan")])
def test_a_scan_beyond_the_margin_is_a_reason(card: CalibrationCard, value: float) -> None:
    """A value outside on either side, or NaN, gives a reason with the value and the range of the cases."""
    assert reasons_to_withdraw({"extent_mm_2": value}, card) == [
        f"extent along axis 2: {value:.1f} mm; the card's cases span 40.0 to 60.0."
    ]


def test_a_card_without_references_withdraws_nothing(card: CalibrationCard) -> None:
    """Without reference values there is nothing to compare with."""
    assert reasons_to_withdraw({}, card.model_copy(update={"shift_references": ()})) == []


def test_the_shipped_card_can_be_compared_by_every_feature() -> None:
    """The shipped card covers field of view and voxel size along each axis."""
    card = describe_bundle(SHIPPED / DEFAULT_MODEL).card

    assert {reference.feature for reference in card.shift_references} == set(FEATURES)
    assert len(reasons_to_withdraw(dict.fromkeys(FEATURES, 1000.0), card)) == len(FEATURES)
