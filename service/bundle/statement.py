"""The statement in every summary: what the card says about its population, or why it does not speak about this scan."""

from dataclasses import dataclass
from math import isfinite
from typing import Final, NamedTuple

from service.bundle.card import CalibrationCard, Engine, Interval, Measurement, Precision, ResolutionMeasurement
from service.calibration.shift import Deviation, ShiftVerdict
from service.schemas import Figure, OffFeature, Statement, StatementStatus

NO_SHIFT_TEST: Final = (
    "The model's card has no answers about known persons, so this answer could not be compared with any."
)
"""Why nothing was compared by a card from before the shift test."""

NO_LOCATED_TEST: Final = (
    "The answer is about parts that were located in a larger scan; the card's answers about known persons are about crops "
    "made by experts. Compared with those nothing speaks against it, but nothing was measured on located parts."
)
"""Why a located answer that is not unlike the crops' answers does not get their statement."""

LEAST_DSC: Final = 0.8
"""Below this mean DSC at a voxel size, no statement is made there: the figures would be true, and of no use."""

SHIFT: Final = "shift test"
"""Name in `Statement.not_compared` of the comparison with the answers about the card's persons."""


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


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found out about a scan and its answer.

    Args:
        reasons: why the statement is withdrawn: sentences of the gate, and the scan's own contradictions.
        not_compared: names of what the scan does not say.
        shift: what the shift test says; None if there is none.
        located: whether the answer is about parts that were located in a larger scan.
        resolution: figures at the scan's voxel size, where it is not that of the card's cases.
    """

    reasons: tuple[str, ...] = ()
    not_compared: tuple[str, ...] = ()
    shift: ShiftVerdict | None = None
    located: bool = False
    resolution: ResolutionMeasurement | None = None

    @property
    def unlike(self) -> bool:
        """Whether scan or answer differ from those that the card was measured on."""
        return bool(self.reasons) or (self.shift is not None and self.shift.shifted)


def statement_of(card: CalibrationCard, measurement: Measurement | Unmeasured, findings: Findings) -> Statement:
    """Return the one verdict on an answer: what the card says about its population, or why it does not apply.

    Args:
        card: of the bundle.
        measurement: of the engine that ran.
        findings: about this scan.
    """
    reasons = _reasons(measurement, findings)
    uncompared = _why_not_compared(card, findings)
    status: StatementStatus = "withdrawn" if reasons else "not compared" if uncompared else "holds"
    if isinstance(measurement, Measurement) and findings.resolution is not None:
        measurement = measurement.model_copy(update={"scores": findings.resolution.scores})
    text = _text(card, measurement, status, unlike=findings.unlike, at=_at(findings.resolution))
    return _quoted(card, measurement, status, text).model_copy(
        update={
            "reasons": reasons or ([uncompared] if uncompared else []),
            "not_compared": [*findings.not_compared, *([SHIFT] if status == "not compared" else [])],
            **_comparison(findings.shift),
        }
    )


def _reasons(measurement: Measurement | Unmeasured, findings: Findings) -> list[str]:
    """Return why the statement is withdrawn."""
    shifted = [_unlike(findings.shift)] if findings.shift is not None and findings.shift.shifted else []
    unmeasured = [measurement.reason] if isinstance(measurement, Unmeasured) else []
    return [*findings.reasons, *shifted, *unmeasured]


def _comparison(shift: ShiftVerdict | None) -> dict[str, object]:
    """Return the fields of the statement that say what the shift test found."""
    if shift is None:
        return {"p": None, "n_compared": None, "features": []}
    return {"p": shift.p, "n_compared": shift.n_persons, "features": [_feature(deviation) for deviation in shift.off]}


def statement_about(card: CalibrationCard) -> Statement:
    """Return what the card says about its population, for a page about the model: no scan is spoken of."""
    measurement = card.measurements[0]
    return _quoted(card, measurement, "holds", _text(card, measurement, "holds", unlike=False))


def _at(resolution: ResolutionMeasurement | None) -> str:
    if resolution is None:
        return ""
    return f", brought to voxels of {_millimetres(resolution)},"


def _millimetres(resolution: ResolutionMeasurement) -> str:
    return f"{' x '.join(f'{mm:g}' for mm in resolution.spacing_mm)} mm"


def too_coarse(resolution: ResolutionMeasurement) -> str | None:
    """Return why no statement is made at a voxel size at which the model does not do well; None if it does."""
    dsc = resolution.scores["dsc"]
    if dsc.value is not None and dsc.value >= LEAST_DSC:
        return None
    return (
        f"On the card's cases, brought to voxels of {_millimetres(resolution)}, the model reached a DSC of only "
        f"{_spelt(dsc)}; a statement needs {LEAST_DSC:.2f}."
    )


def _why_not_compared(card: CalibrationCard, findings: Findings) -> str:
    """Return why the answer was not compared with those about known persons; empty if it was."""
    if findings.shift is None:
        return NO_SHIFT_TEST
    if findings.located and card.shift_test("located") is None:
        return NO_LOCATED_TEST
    return ""


def _quoted(
    card: CalibrationCard, measurement: Measurement | Unmeasured, status: StatementStatus, text: str
) -> Statement:
    population = card.population
    figures = None
    if status != "withdrawn" and isinstance(measurement, Measurement):
        figures = {name: Figure(**score.model_dump()) for name, score in measurement.scores.items()}
    return Statement(
        status=status,
        text=text,
        reasons=[],
        dataset=population.dataset,
        split=population.split,
        protocol=population.protocol,
        n_persons=population.n_persons,
        n_cases=population.n_cases,
        date=card.date,
        engine=measurement.engine,
        precision=measurement.precision,
        device=measurement.device,
        figures=figures,
    )


def _text(
    card: CalibrationCard, measurement: Measurement | Unmeasured, status: StatementStatus, *, unlike: bool, at: str = ""
) -> str:
    population = card.population
    cases = (
        f"{population.n_cases} cases of {population.n_persons} persons "
        f"({population.dataset}, {population.split}; {card.date})"
    )
    if unlike:
        return f"Withdrawn: this scan is unlike the {cases} that the calibration card was measured on."
    if isinstance(measurement, Unmeasured):
        return f"Withdrawn: the calibration card was measured on {cases}, but not on {measurement.device}."
    scores = measurement.scores
    figures = (
        f"On {cases}{at} this model reached a DSC of {_spelt(scores['dsc'])} and an ACE of {_spelt(scores['ace_macro'])}, "
        f"of which {_spelt(scores['ace_floor'])} is the floor for images of this size (means over persons' cases with "
        "95 % intervals). This describes that population, not this image."
    )
    if status == "not compared":
        return f"Not compared: whether this answer is like those that the card was measured on is not known. {figures}"
    return figures


def _unlike(shift: ShiftVerdict) -> str:
    """Return in figures why the answer is unlike those about the card's persons."""
    off = "; ".join(_spelt_feature(deviation) for deviation in shift.off)
    return (
        f"The answer is unlike those about the card's {shift.n_persons} persons (p = {shift.p:.3f})"
        f"{': ' if off else '; no single figure lies outside their range, but they do not lie together so.'}{off}"
        f"{'.' if off else ''}"
    )


def _spelt_feature(deviation: Deviation) -> str:
    unit = f" {deviation.unit}" if deviation.unit else ""
    return f"{deviation.feature} {deviation.value:.3g}{unit} (theirs {deviation.low:.3g} to {deviation.high:.3g})"


def _feature(deviation: Deviation) -> OffFeature:
    value = deviation.value if isfinite(deviation.value) else None
    return OffFeature(name=deviation.feature, unit=deviation.unit, value=value, low=deviation.low, high=deviation.high)


def _spelt(score: Interval) -> str:
    if score.value is None or score.low is None or score.high is None:
        return "unknown"
    return f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"
