"""Images that a site measured against its own references -> its figures beside the card's, and whether they differ."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from service.bundle.card import CalibrationCard, CaseRecord, Interval, Measurement
from service.calibration.cohort import cohort_scores
from service.calibration.two_cohorts import Difference, compare_cohorts
from service.errors import MeasuredDiffer
from service.schemas import Figure, Measured, MeasuredCase, SiteFigure, SiteFigures

COMPARED: Final = ("dsc", "ace_macro", "nll", "brier")
"""Figures that are tested; keys of `service.calibration.cohort.cohort_draws`."""


def site_figures(card: CalibrationCard, model: str, cases: Sequence[MeasuredCase]) -> SiteFigures:
    """Return the site's figures, and the card's where both measure the same structures.

    The card's are those of its first measurement, the reference engine; docs/engines.md bounds how far others differ.

    Args:
        card: of the model.
        model: identity of the model.
        cases: at least one, all measured with this model.

    Raises:
        MeasuredDiffer: a case was measured with another model, or has other structures than the first.
    """
    _reject_differing(model, cases)
    measured = [record_of(case.measured, str(number), case.person).sums() for number, case in enumerate(cases)]
    stated = card.measurements[0]
    names = [structure.name for structure in cases[0].measured.structures]
    known = [record.sums() for record in stated.cases] if names == list(stated.class_scores) else []
    site = {name: Interval.of(estimate) for name, estimate in cohort_scores(measured).items() if name in COMPARED}
    return SiteFigures(
        model=model,
        n_cases=len(cases),
        n_persons=len({case.person for case in cases}),
        statements=dict(Counter(case.measured.statement or "not kept" for case in cases)),
        card_n_cases=len(known) or None,
        card_n_persons=len({sums.person for sums in known}) or None,
        figures=_beside(stated, site, compare_cohorts(known, measured, COMPARED)) if known else _alone(site),
    )


def _alone(site: Mapping[str, Interval]) -> dict[str, SiteFigure]:
    return {
        name: SiteFigure(site=_figure(site[name]), card=None, difference=None, p=None, differs=None)
        for name in COMPARED
    }


def _beside(
    stated: Measurement, site: Mapping[str, Interval], tests: Mapping[str, Difference]
) -> dict[str, SiteFigure]:
    return {
        name: SiteFigure(
            site=_figure(site[name]),
            card=_figure(stated.scores[name]),
            difference=_figure(Interval.of(tests[name].difference)),
            p=None if np.isnan(tests[name].p) else tests[name].p,
            differs=tests[name].differs,
        )
        for name in COMPARED
    }


def record_of(measured: Measured, case: str, person: str) -> CaseRecord:
    """Return the sums of one measured image; its ACE floor was not computed and is NaN.

    Args:
        measured: against a reference.
        case: name of the image.
        person: whose image it is.
    """
    rows = measured.reliability.structures
    count = np.array([row.count for row in rows], np.int64)
    voxels = int(count[0].sum())
    background = np.zeros((1, count.shape[1]), np.int64)
    background[0, -1] = voxels  # no figure speaks of it, but its sum is the number of voxels
    sum_p, sum_y = (
        [[value or 0.0 for value in getattr(row, name)] for row in rows] for name in ("mean_p", "frequency")
    )
    nothing = np.zeros_like(background)
    sizes = [(row.reference_voxels, row.predicted_voxels, row.dsc or 0.0) for row in measured.structures]
    return CaseRecord(
        case=case,
        person=person,
        count=np.vstack([background, count]).tolist(),
        sum_p=np.vstack([nothing, np.array(sum_p) * count]).tolist(),
        sum_y=np.vstack([nothing, np.rint(np.array(sum_y) * count).astype(np.int64)]).tolist(),
        brier=measured.brier * voxels,
        nll=measured.nll * voxels,
        intersection=[0, *(round(dsc * (reference + predicted) / 2) for reference, predicted, dsc in sizes)],
        predicted=[0, *(predicted for _, predicted, _ in sizes)],
        ace_floor=[float("nan")] * (len(rows) + 1),
        shape=(voxels, 1, 1),
        spacing_mm=(1, 1, 1),
    )


def _reject_differing(model: str, cases: Sequence[MeasuredCase]) -> None:
    first = [structure.name for structure in cases[0].measured.structures]
    for number, case in enumerate(cases, start=1):
        if case.measured.model != model:
            msg = f"Case {number} was measured with another model; expected {model}. Segment and measure it with this one."
            raise MeasuredDiffer(msg)
        if [structure.name for structure in case.measured.structures] != first:
            msg = f"Case {number} has other structures than case 1, as whole scans and crops have. Send those of each kind apart."
            raise MeasuredDiffer(msg)


def _figure(interval: Interval) -> Figure:
    return Figure(value=interval.value, low=interval.low, high=interval.high)
