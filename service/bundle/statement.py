"""The statement in every summary: what the card says about its population, or why it is withdrawn."""

from typing import Final, NamedTuple

from service.bundle.card import CalibrationCard, Engine, Interval, Measurement, Precision
from service.schemas import Figure, Statement

MARGIN: Final = 1.25
"""A scan may leave the range of the card's cases by this factor before the statement is withdrawn."""

FEATURES: Final = ("extent_mm_1", "extent_mm_2", "extent_mm_3", "spacing_mm_1", "spacing_mm_2", "spacing_mm_3")
"""Features by which a scan is compared: field of view and voxel size along the axes of the bundle's orientation."""


class Unmeasured(NamedTuple):
    """An engine on a kind of device on which it was never measured, so that no figure is known of its results."""

    engine: Engine
    precision: Precision
    device: str

    @property
    def reason(self) -> str:
        """Why the statement is withdrawn, and what to run."""
        return (
            f"Nothing was measured on {self.device}, the kind of device of this service; to measure it, run on it: "
            f"calibrant verify-engine BUNDLE --recipe RECIPE --data DIR --device {self.device.partition('-')[0]}."
        )


def statement_of(card: CalibrationCard, measurement: Measurement | Unmeasured, reasons: list[str]) -> Statement:
    """Return the card's statement about its population, withdrawn if there are reasons or no measurement.

    Args:
        card: of the bundle.
        measurement: of the engine that ran.
        reasons: from `reasons_to_withdraw`.
    """
    population = card.population
    cases = (
        f"{population.n_cases} cases of {population.n_persons} persons "
        f"({population.dataset}, {population.split}; {card.date})"
    )
    scores = {} if isinstance(measurement, Unmeasured) else measurement.scores
    if reasons:
        text = f"Withdrawn: this scan is unlike the {cases} that the calibration card was measured on."
    elif isinstance(measurement, Unmeasured):
        text = f"Withdrawn: the calibration card was measured on {cases}, but not on {measurement.device}."
    else:
        text = (
            f"On {cases} this model reached a DSC of {_spelt(scores['dsc'])} and an ACE of {_spelt(scores['ace_macro'])}, "
            f"of which {_spelt(scores['ace_floor'])} is the floor for images of this size (means over persons' cases with "
            "95 % intervals). This describes that population, not this image."
        )
    if isinstance(measurement, Unmeasured):
        reasons = [*reasons, measurement.reason]
    return Statement(
        status="withdrawn" if reasons else "holds",
        text=text,
        reasons=reasons,
        dataset=population.dataset,
        split=population.split,
        protocol=population.protocol,
        n_persons=population.n_persons,
        n_cases=population.n_cases,
        date=card.date,
        engine=measurement.engine,
        precision=measurement.precision,
        device=measurement.device,
        figures=None if reasons else {name: Figure(**score.model_dump()) for name, score in scores.items()},
    )


def reasons_to_withdraw(features: dict[str, float], card: CalibrationCard) -> list[str]:
    """Return a reason for each feature of a scan that lies outside the range of the card's cases by more than `MARGIN`."""
    reasons = []
    for reference in card.shift_references:
        value, low, high = features[reference.feature], min(reference.values), max(reference.values)
        if not low / MARGIN <= value <= high * MARGIN:
            name = reference.feature.replace("_mm_", " along axis ")
            reasons.append(f"{name}: {value:.1f} {reference.unit}; the card's cases span {low:.1f} to {high:.1f}.")
    return reasons


def _spelt(score: Interval) -> str:
    if score.value is None or score.low is None or score.high is None:
        return "unknown"
    return f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"
