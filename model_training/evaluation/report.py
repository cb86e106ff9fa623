"""Writes report.html of an evaluation: one self-contained page for readers who are not programmers.

The page loads nothing and runs no scripts. Its text is in `report.html.jinja`, which escapes every value.
"""

import base64
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, StrictUndefined

from model_training.evaluation.evaluate import Evaluation
from model_training.evaluation.results import Row, rows_of
from service.bundle.card import Interval
from service.bundle.figures import CaseDiagrams, draw_distribution, draw_reliability
from service.bundle.reliability import reliability_of
from service.calibration.cohort import estimate, person_weights
from service.schemas import RESEARCH_USE_ONLY

EXTREMES: Final = 3
"""Number of worst and of best cases that are shown, by DSC and by ACE."""

_CALIBRATION: Final = {
    "ace_macro": ".3f", "ace_floor": ".3f", "ace_excess": ".3f", "ece_macro": ".4f", "mce_macro": ".3f",
    "ace_micro": ".3f", "ece_micro": ".4f", "mce_micro": ".3f",
}  # fmt: skip
"""Figures of the calibration table in the order of its columns, with their number formats."""

_DISTANCES: Final = ("nsd", "hd95_mm")
_VOLUMES: Final = ("volume_error_ml", "volume_error_percent")

_DASH, _MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True)
class Extreme:
    """A case that is shown, with the reasons, e.g. "lowest DSC"."""

    case: str
    reasons: list[str]


def write_report(file: Path, evaluation: Evaluation) -> Path:
    """Write the page and return its path.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    file.write_text(report_html(evaluation), encoding="utf-8")
    return file


def report_html(evaluation: Evaluation) -> str:
    """Return the page.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    rows = rows_of(evaluation)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=_number, interval=_interval)
    template = environment.from_string(
        files("model_training.evaluation").joinpath("report.html.jinja").read_text("utf-8")
    )
    return template.render(
        research_use_only=RESEARCH_USE_ONLY,
        evaluation=evaluation,
        population=evaluation.population,
        n_cases=len(evaluation.measurement.cases),
        n_persons=len({record.person for record in evaluation.measurement.cases}),
        scores=evaluation.measurement.scores,
        agreement=_agreement(evaluation, rows),
        calibration=_calibration(evaluation),
        reliability=list(_reliability_pictures(evaluation)),
        distributions=list(_distributions(evaluation, rows)),
        shown=list(_shown(evaluation, rows)),
    )


def extremes(rows: Sequence[Row]) -> list[Extreme]:
    """Return the cases with the lowest and highest mean DSC and ACE over their structures, worst first, each once.

    If there are few cases, the worst are chosen first: no case is both among the worst and the best by one figure.
    """
    reasons: dict[str, list[str]] = {}
    for name, worst_first in {"DSC": 1, "ACE": -1}.items():
        ranked = sorted(_case_means(rows, name.lower()).items(), key=lambda item: worst_first * item[1])
        n_worst = min(EXTREMES, (len(ranked) + 1) // 2)
        n_best = min(EXTREMES, len(ranked) - n_worst)
        worst, best = ("lowest", "highest") if worst_first > 0 else ("highest", "lowest")
        for case, _ in ranked[:n_worst]:
            reasons.setdefault(case, []).append(f"{worst} {name}")
        for case, _ in ranked[len(ranked) - n_best :][::-1]:
            reasons.setdefault(case, []).append(f"{best} {name}")
    bad = {"lowest DSC", "highest ACE"}
    return sorted((Extreme(*item) for item in reasons.items()), key=lambda extreme: not bad & set(extreme.reasons))


def over_persons(values: npt.NDArray[np.float64], weights: npt.NDArray[np.int64]) -> Interval:
    """Return the mean over the cases with a finite value, and its person-bootstrap interval.

    Args:
        values: (N,) one per case; NaN where undefined.
        weights: (1 + R, N) from `person_weights`.
    """
    finite = np.isfinite(values)
    number = weights @ finite
    total = weights @ np.where(finite, values, 0)
    return Interval.of(estimate(np.divide(total, number, out=np.full(len(weights), np.nan), where=number > 0)))


def _agreement(evaluation: Evaluation, rows: Sequence[Row]) -> list[dict[str, object]]:
    """Return the lines of the table of overlap, distances and volumes, the mean of the structures first."""
    weights = person_weights([record.sums() for record in evaluation.measurement.cases], seed=0)
    by_structure = {name: [row for row in rows if row.structure == name] for name in evaluation.structures}
    lines = [
        {"name": name, "dsc": evaluation.measurement.class_scores[name]["dsc"]}
        | _counts(structure_rows)
        | {field: over_persons(_column(structure_rows, field), weights) for field in _DISTANCES + _VOLUMES}
        for name, structure_rows in by_structure.items()
    ]
    if len(by_structure) == 1:
        return lines
    mean = {
        field: over_persons(_nanmean(np.stack([_column(of, field) for of in by_structure.values()])), weights)
        for field in _DISTANCES
    }
    return [{"name": "mean of the structures", "dsc": evaluation.measurement.scores["dsc"]} | mean, *lines]


def _column(rows: Sequence[Row], field: str) -> npt.NDArray[np.float64]:
    return np.array([getattr(row, field) for row in rows])


def _counts(rows: Sequence[Row]) -> dict[str, object]:
    """Return in how many cases the structure is present, and in how many of these it was missed entirely."""
    present = [row for row in rows if row.reference_voxels > 0]
    return {"present": len(present), "missed": sum(row.predicted_voxels == 0 for row in present)}


def _calibration(evaluation: Evaluation) -> list[tuple[str, list[tuple[Interval, str]]]]:
    """Return the lines of the table of calibration, each figure with its number format."""
    measurement = evaluation.measurement
    lines = {"mean of the structures": measurement.scores} if len(evaluation.structures) > 1 else {}
    return [
        (name, [(scores[key], form) for key, form in _CALIBRATION.items()])
        for name, scores in (lines | measurement.class_scores).items()
    ]


def _reliability_pictures(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    reliability = reliability_of(evaluation.measurement.cases, evaluation.structures, evaluation.source)
    for structure in reliability.structures:
        alone = reliability.model_copy(update={"structures": [structure]})
        yield structure.name, _data_uri(draw_reliability(alone, "svg"))


def _distributions(evaluation: Evaluation, rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    def column(field: str) -> dict[str, list[float]]:
        return {name: [getattr(row, field) for row in rows if row.structure == name] for name in evaluation.structures}

    for field, label in {"dsc": "DSC (1 is full overlap)", "ace": "ACE (0 is perfect)"}.items():
        yield label, _data_uri(draw_distribution(column(field), label, "svg"))


def _shown(evaluation: Evaluation, rows: Sequence[Row]) -> Iterator[tuple[Extreme, list[Row], str]]:
    """Yield each shown case with its rows and its diagram."""
    records = {record.case: record for record in evaluation.measurement.cases}
    diagrams = CaseDiagrams(evaluation.structures)
    for extreme in extremes(rows):
        source = f"{evaluation.source}: {extreme.case}"
        picture = diagrams.draw(reliability_of([records[extreme.case]], evaluation.structures, source), "svg")
        yield extreme, [row for row in rows if row.case == extreme.case], _data_uri(picture)


def _case_means(rows: Sequence[Row], field: str) -> dict[str, float]:
    """Return the mean over the structures for each case in which the figure is defined for any."""
    by_case: dict[str, list[float]] = {}
    for row in rows:
        if math.isfinite(value := getattr(row, field)):
            by_case.setdefault(row.case, []).append(value)
    return {case: float(np.mean(values)) for case, values in by_case.items()}


def _nanmean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the mean of the finite values over the first axis; NaN where there are none."""
    finite = np.isfinite(values)
    number = finite.sum(axis=0)
    total = np.where(finite, values, 0).sum(axis=0)
    return np.divide(total, number, out=np.full(number.shape, np.nan), where=number > 0)


def _number(value: float | None, form: str) -> str:
    """Return the number in this format, with a typographic minus sign; a dash where it is undefined."""
    return _DASH if value is None or math.isnan(value) else format(value, form).replace("-", _MINUS)


def _interval(figure: Interval, form: str) -> str:
    """Return the bounds of the figure's interval in this format; empty where they are undefined."""
    if figure.low is None or figure.high is None:
        return ""
    return f"{_number(figure.low, form)} to {_number(figure.high, form)}"


def _data_uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
