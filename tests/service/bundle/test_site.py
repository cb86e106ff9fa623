import numpy as np
import pytest

from service.bundle.card import CalibrationCard, CaseRecord
from service.bundle.registry import DEFAULT_MODEL, SHIPPED
from service.bundle.reliability import reliability_of
from service.bundle.site import record_of, site_figures
from service.calibration.scores import ace, ece, mce
from service.errors import MeasuredDiffer
from service.schemas import Measured, MeasuredCase, MeasuredStructure

CARD = CalibrationCard.model_validate_json((SHIPPED / DEFAULT_MODEL / "calibration.json").read_bytes())
STATED = CARD.measurements[0]
MODEL = "model@0"


def measured_of(record: CaseRecord, model: str = MODEL) -> Measured:
    """Return what a service answers about an image with these sums."""
    sums, names = record.sums(), list(STATED.class_scores)
    scores = {name: score(sums.histogram) for name, score in {"ace": ace, "ece": ece, "mce": mce}.items()}
    return Measured(
        model=model,
        statement="holds",
        structures=[
            MeasuredStructure(
                name=name,
                reference_voxels=int(sums.reference[row]),
                predicted_voxels=int(sums.predicted[row]),
                dsc=float(sums.dsc[row]),
                hd95_mm=None,
                **{key: float(values[row]) for key, values in scores.items()},
            )
            for row, name in enumerate(names, start=1)
        ],
        brier=sums.brier / sums.voxels,
        nll=sums.nll / sums.voxels,
        reliability=reliability_of([record], names, "an image"),
    )


def cases_of(records: list[CaseRecord], model: str = MODEL) -> list[MeasuredCase]:
    """Return the records as a site sends them."""
    return [MeasuredCase(person=record.person, measured=measured_of(record, model)) for record in records]


def test_the_sums_come_back_from_what_was_answered() -> None:
    """Counts and intersections of a measured image are exact, sums of probabilities to rounding."""
    record = STATED.cases[0]

    found = record_of(measured_of(record), record.case, record.person).sums()

    expected = record.sums()
    np.testing.assert_array_equal(found.histogram.count[1:], expected.histogram.count[1:])
    np.testing.assert_array_equal(found.histogram.sum_y[1:], expected.histogram.sum_y[1:])
    np.testing.assert_allclose(found.histogram.sum_p[1:], expected.histogram.sum_p[1:], rtol=1e-12)
    np.testing.assert_array_equal(found.intersection[1:], expected.intersection[1:])
    assert found.voxels == expected.voxels
    assert found.brier == pytest.approx(expected.brier)


def test_the_cards_own_cases_give_the_cards_own_figures() -> None:
    """Their figures and intervals are the card's, nothing differs, and the p-values are 1."""
    figures = site_figures(CARD, MODEL, cases_of(STATED.cases))

    persons = len({case.person for case in STATED.cases})
    assert (figures.n_cases, figures.n_persons, figures.card_n_persons) == (len(STATED.cases), persons, persons)
    assert figures.statements == {"holds": len(STATED.cases)}
    for name, figure in figures.figures.items():
        assert figure.card is not None
        for bound in ("value", "low", "high"):
            assert getattr(figure.site, bound) == pytest.approx(getattr(STATED.scores[name], bound), rel=1e-9)
        assert (figure.p, figure.differs) == (1, False)


def test_a_worse_site_is_noticed() -> None:
    """Of the cases with the lowest DSC, the DSC differs from the card's, and the interval of the difference lies below 0."""
    worst = sorted(STATED.cases, key=lambda case: float(np.nanmean(case.sums().dsc[1:])))[:12]

    dsc = site_figures(CARD, MODEL, cases_of(worst)).figures["dsc"]

    assert dsc.differs
    assert dsc.difference is not None
    assert dsc.difference.high is not None
    assert dsc.difference.high < 0


def test_other_structures_are_not_compared_with_the_card() -> None:
    """Images of whole scans have the structures of both sides: they have figures, but nothing to compare with."""
    cases = [
        case.model_copy(
            update={
                "measured": case.measured.model_copy(
                    update={
                        "structures": [
                            structure.model_copy(update={"name": f"left {structure.name}"})
                            for structure in case.measured.structures
                        ]
                    }
                )
            }
        )
        for case in cases_of(STATED.cases[:3])
    ]

    figures = site_figures(CARD, MODEL, cases)

    assert figures.card_n_cases is None
    assert figures.figures["dsc"].site.value is not None
    assert figures.figures["dsc"].card is None
    assert figures.figures["dsc"].p is None
    with pytest.raises(MeasuredDiffer, match="Case 4 has other structures than case 1"):
        site_figures(CARD, MODEL, [*cases, *cases_of(STATED.cases[:1])])


def test_a_figure_that_is_undefined_has_no_p_value() -> None:
    """Images whose references hold no structure have no DSC: neither a p-value nor a difference."""
    cases = [
        case.model_copy(
            update={
                "measured": case.measured.model_copy(
                    update={
                        "structures": [
                            structure.model_copy(update={"reference_voxels": 0, "dsc": None})
                            for structure in case.measured.structures
                        ],
                        "reliability": case.measured.reliability.model_copy(
                            update={
                                "structures": [
                                    row.model_copy(update={"frequency": [0.0 if n else None for n in row.count]})
                                    for row in case.measured.reliability.structures
                                ]
                            }
                        ),
                    }
                )
            }
        )
        for case in cases_of(STATED.cases[:3])
    ]

    dsc = site_figures(CARD, MODEL, cases).figures["dsc"]

    assert (dsc.site.value, dsc.p, dsc.differs) == (None, None, False)


def test_another_models_cases_are_refused() -> None:
    """The message names the case and the expected model, not what was sent."""
    cases = [*cases_of(STATED.cases[:1]), *cases_of(STATED.cases[1:2], "secret@1")]

    with pytest.raises(MeasuredDiffer, match="Case 2 was measured with another model; expected model@0") as refusal:
        site_figures(CARD, MODEL, cases)

    assert "secret" not in refusal.value.detail
