import datetime as dt
import math
from pathlib import Path

import pytest

from service.bundle.card import CalibrationCard, Interval, ShiftTestRecord
from service.bundle.description import describe_bundle
from service.bundle.statement import (
    NO_LOCATED_TEST,
    NO_SHIFT_TEST,
    SHIFT,
    Findings,
    Unmeasured,
    statement_about,
    statement_of,
)
from service.calibration.shift import ALPHA, Deviation, ShiftVerdict

ALIKE = Findings(shift=ShiftVerdict(p=0.4, n_persons=33))
"""Of an answer that is like those about the card's persons."""

UNLIKE = ShiftVerdict(
    p=1 / 34,
    n_persons=33,
    off=(Deviation("volume of left", "ml", 12.345, 1, 2), Deviation("pieces", "", math.nan, 1, 3)),
)


@pytest.fixture
def card(tiny_bundle: Path) -> CalibrationCard:
    """Return the card of a small bundle."""
    return describe_bundle(tiny_bundle).card


def test_a_statement_that_holds_gives_figures_and_population(card: CalibrationCard) -> None:
    """It names population, date and engine, and says that it does not describe this image."""
    measurement = card.measurements[0]
    statement = statement_of(card, measurement, ALIKE)

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
    text = statement_of(card, card.measurements[0], ALIKE).text

    assert "a DSC of 1.000 (1.000 to 1.000)" in text
    assert "an ACE of 0.188 (0.188 to 0.188)" in text
    assert "0.020 (0.020 to 0.020) is the floor" in text


def test_an_undefined_figure_is_unknown(card: CalibrationCard) -> None:
    """A figure that could not be computed is "unknown" in the text."""
    scores = card.measurements[0].scores | {"dsc": Interval(value=None, low=None, high=None)}
    measurement = card.measurements[0].model_copy(update={"scores": scores})

    assert "a DSC of unknown and" in statement_of(card, measurement, ALIKE).text


def test_a_withdrawn_statement_gives_no_figure(card: CalibrationCard) -> None:
    """It gives the reasons and the population but no figures."""
    statement = statement_of(card, card.measurements[0], Findings(("extent along axis 2: 9.0 mm",), shift=ALIKE.shift))

    assert statement.status == "withdrawn"
    assert statement.figures is None
    assert statement.reasons == ["extent along axis 2: 9.0 mm"]
    assert statement.text.startswith("Withdrawn: this scan is unlike the 2 cases of 2 persons")
    assert "DSC" not in statement.text


def test_on_a_device_that_was_never_measured_nothing_is_stated(card: CalibrationCard) -> None:
    """The statement is withdrawn, names the device, and one sentence says what to run."""
    statement = statement_of(card, Unmeasured("torch", "fp32", "cuda-9.0"), ALIKE)

    assert statement.status == "withdrawn"
    assert statement.figures is None
    assert statement.text.startswith("Withdrawn: the calibration card was measured on 2 cases of 2 persons")
    assert statement.text.endswith("but not on cuda-9.0.")
    assert (statement.engine, statement.precision, statement.device) == ("torch", "fp32", "cuda-9.0")
    (reason,) = statement.reasons
    assert "calibrant verify-engine BUNDLE --recipe RECIPE --data DIR --device cuda." in reason


def test_an_unlike_scan_on_such_a_device_has_both_reasons(card: CalibrationCard) -> None:
    """One reason does not hide the other."""
    statement = statement_of(
        card, Unmeasured("torch", "fp32", "cuda-9.0"), Findings(("extent along axis 2: 9.0 mm",), shift=ALIKE.shift)
    )

    assert statement.text.startswith("Withdrawn: this scan is unlike")
    assert len(statement.reasons) == 2


def test_a_statement_of_a_cpu_is_written_as_before(card: CalibrationCard) -> None:
    """The device is named only where it is a GPU."""
    of_gpu = card.measurements[0].model_copy(update={"device": "cuda-8.0"})

    assert '"device"' not in statement_of(card, card.measurements[0], ALIKE).model_dump_json()
    assert '"device":"cuda-8.0"' in statement_of(card, of_gpu, ALIKE).model_dump_json()


def test_an_answer_unlike_the_persons_is_withdrawn_in_figures(card: CalibrationCard) -> None:
    """The reason holds p, the persons and each figure with their range; a value that is no number is null."""
    statement = statement_of(card, card.measurements[0], Findings(shift=UNLIKE))

    assert (statement.status, statement.figures) == ("withdrawn", None)
    assert (statement.p, statement.n_compared) == (1 / 34, 33)
    (reason,) = statement.reasons
    assert "33 persons (p = 0.029): volume of left 12.3 ml (theirs 1 to 2); pieces nan (theirs 1 to 3)." in reason
    assert [(feature.name, feature.value) for feature in statement.features] == [
        ("volume of left", 12.345),
        ("pieces", None),
    ]


def test_an_answer_at_alpha_is_withdrawn(card: CalibrationCard) -> None:
    """With 19 persons alpha is the smallest p-value that there is."""
    verdict = ShiftVerdict(p=ALPHA, n_persons=19, off=UNLIKE.off)

    assert statement_of(card, card.measurements[0], Findings(shift=verdict)).status == "withdrawn"


def test_a_feature_outside_the_range_alone_withdraws_nothing(card: CalibrationCard) -> None:
    """Above alpha the statement holds; what is off is named all the same."""
    verdict = ShiftVerdict(p=1.01 * ALPHA, n_persons=19, off=UNLIKE.off)
    statement = statement_of(card, card.measurements[0], Findings(shift=verdict))

    assert statement.status == "holds"
    assert len(statement.features) == 2


def test_without_a_shift_test_nothing_was_compared(card: CalibrationCard) -> None:
    """A card from before the shift test neither holds nor is withdrawn; its figures are quoted, with the reason."""
    statement = statement_of(card, card.measurements[0], Findings(not_compared=("EchoTime",)))

    assert statement.status == "not compared"
    assert statement.text.startswith("Not compared: ")
    assert statement.figures is not None
    assert statement.reasons == [NO_SHIFT_TEST]
    assert statement.not_compared == ["EchoTime", SHIFT]


def test_located_parts_hold_only_by_a_test_of_their_own(card: CalibrationCard) -> None:
    """The crops' test may withdraw a located answer, but does not let it hold."""
    measurement = card.measurements[0]
    own = card.model_copy(update={"shift_tests": (ShiftTestRecord(region="located", features=[], answers=[]),)})

    located = Findings(shift=ALIKE.shift, located=True)
    assert statement_of(card, measurement, located).status == "not compared"
    assert statement_of(card, measurement, located).reasons == [NO_LOCATED_TEST]
    assert statement_of(own, measurement, located).status == "holds"
    assert statement_of(card, measurement, Findings(shift=UNLIKE, located=True)).status == "withdrawn"


def test_a_page_about_a_model_quotes_the_card(card: CalibrationCard) -> None:
    """Where no scan is spoken of, the statement is that of an answer that holds."""
    about, of_answer = statement_about(card), statement_of(card, card.measurements[0], ALIKE)

    assert about == of_answer.model_copy(update={"p": None, "n_compared": None})
