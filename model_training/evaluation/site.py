"""Measures a bundle on any labelled folder, as it would be served: located, judged and refused like every other scan."""

import csv
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from model_training.data.case import Case
from service.bundle.acceptance import Admission
from service.bundle.figures import draw_reliability
from service.bundle.reader import LoadedBundle
from service.bundle.reliability import reliability_of
from service.bundle.site import record_of, site_figures
from service.derived.measure import measure
from service.derived.reference import read_reference
from service.errors import CalibrantError
from service.names import parts_of
from service.pipeline.run import run_case
from service.result.files import SUMMARY
from service.result.frame import read_frame
from service.schemas import MeasuredCase, SiteFigures, Summary

HELD: Final = "held"
ALL: Final = "all"


@dataclass(frozen=True, slots=True)
class MeasuredHere:
    """A case that was measured.

    Args:
        case: scan, label map and person.
        measured: against the label map.
        reasons: why its statement is withdrawn, or was not compared.
    """

    case: Case
    measured: MeasuredCase
    reasons: Sequence[str]


@dataclass(frozen=True, slots=True)
class SiteEvaluation:
    """What was measured at a site.

    Args:
        cases: that were measured.
        failed: that were not, with the reason.
        figures: beside the card's, of all cases and of those whose statement holds, where there are any.
    """

    cases: list[MeasuredHere]
    failed: dict[str, str]
    figures: dict[str, SiteFigures]


def evaluate_site(bundle: LoadedBundle, cases: Sequence[Case], done: Callable[[Case], None]) -> SiteEvaluation:
    """Measure every case; one that cannot be read, or whose label map does not fit, is listed and the others go on.

    A scan that the bundle does not accept is measured, too: its statement is withdrawn, with the reason.

    Args:
        bundle: ready to serve.
        cases: labelled, of one channel.
        done: called after each case.
    """
    measured: list[MeasuredHere] = []
    failed: dict[str, str] = {}
    for case in cases:
        try:
            measured.append(_measured(bundle, case))
        except CalibrantError as error:
            failed[case.name] = f"{error.title}. {error.detail}"
        done(case)
    card, identity = bundle.description.card, bundle.description.identity
    held = [found.measured for found in measured if found.measured.measured.statement == "holds"]
    cohorts = {ALL: [found.measured for found in measured], HELD: held}
    figures = {name: site_figures(card, identity, members) for name, members in cohorts.items() if members}
    return SiteEvaluation(measured, failed, figures)


def write_site(out: Path, evaluation: SiteEvaluation, source: str) -> list[Path]:
    """Write cases.csv, figures.json and the reliability diagram; return the files.

    Args:
        out: folder, created if missing.
        evaluation: with at least one measured case.
        source: what was measured, printed on the diagram.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    out.mkdir(parents=True, exist_ok=True)
    table, figures, diagram = (out / name for name in ("cases.csv", "figures.json", "reliability.png"))
    rows = [row for found in evaluation.cases for row in _rows_of(found)]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    compared = {name: cohort.model_dump(mode="json") for name, cohort in evaluation.figures.items()}
    figures.write_text(json.dumps(compared, indent=2) + "\n")
    names = [structure.name for structure in evaluation.cases[0].measured.measured.structures]
    records = [record_of(found.measured.measured, found.case.name, found.case.person) for found in evaluation.cases]
    diagram.write_bytes(draw_reliability(reliability_of(records, names, source), "png"))
    return [table, figures, diagram]


def _measured(bundle: LoadedBundle, case: Case) -> MeasuredHere:
    image = case.images[0]
    admission = Admission(tuple(sorted(parts_of(image.name).items())), accept="anyway")
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder)
        run_case(image, bundle, result, lambda _stage, _done: None, ("summary", "probabilities"), admission=admission)
        classes = read_reference(case.label, read_frame(result))
        measured = measure(result, classes, bundle.description.identity)
        summary = Summary.model_validate_json((result / SUMMARY).read_bytes())
    return MeasuredHere(case, MeasuredCase(person=case.person, measured=measured), summary.statement.reasons)


def _rows_of(found: MeasuredHere) -> list[dict[str, Any]]:
    """Return a row for each structure of a case; Brier score and NLL are means over its voxels, the same in all of its rows."""
    measured = found.measured.measured
    of_case = {
        "case": found.case.name,
        "person": found.case.person,
        "statement": measured.statement,
        "reasons": " ".join(found.reasons),
    }
    whole = {"brier": measured.brier, "nll": measured.nll}
    return [
        {**of_case, "structure": structure.name, **structure.model_dump(exclude={"name"}), **whole}
        for structure in measured.structures
    ]
