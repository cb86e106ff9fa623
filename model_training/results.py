"""A measurement -> files to read: a table of the cases, the reliability document and its pictures."""

import csv
import math
from pathlib import Path
from typing import Final

from service.bundle.card import CaseRecord, Measurement
from service.bundle.reliability import reliability_of
from service.calibration.scores import ace, ece, mce
from service.figures import draw_reliability

COLUMNS: Final = (
    "case", "person", "structure", "reference_voxels", "predicted_voxels",
    "dsc", "ace", "ace_floor", "ece", "mce", "brier", "nll",
)  # fmt: skip
"""Of cases.csv, a row per case and structure; Brier and NLL are means over the case's voxels, the same in its rows."""


def write_results(out: Path, measurement: Measurement, structures: list[str], source: str) -> list[Path]:
    """Write cases.csv, reliability.json, reliability.png and reliability.svg to the folder and return their paths.

    Args:
        out: folder, made if missing.
        measurement: what was measured.
        structures: names of the rows 1 .. C-1 of the records.
        source: what the cases are; stands on the pictures.
    """
    out.mkdir(parents=True, exist_ok=True)
    table = out / "cases.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(row for record in measurement.cases for row in _rows(record, structures))
    reliability = reliability_of(measurement.cases, structures, source)
    document = out / "reliability.json"
    document.write_text(reliability.model_dump_json(indent=2) + "\n")
    pictures = []
    for kind in ("png", "svg"):
        pictures.append(out / f"reliability.{kind}")
        pictures[-1].write_bytes(draw_reliability(reliability, kind))
    return [table, document, *pictures]


def _rows(record: CaseRecord, structures: list[str]) -> list[dict[str, object]]:
    sums = record.sums()
    scores = {"dsc": sums.dsc, "ace": ace(sums.histogram), "ece": ece(sums.histogram), "mce": mce(sums.histogram)}
    return [
        {
            "case": record.case,
            "person": record.person,
            "structure": name,
            "reference_voxels": int(sums.reference[c]),
            "predicted_voxels": int(sums.predicted[c]),
            "ace_floor": _cell(float(sums.floor[c]) if sums.reference[c] else math.nan),
            "brier": _cell(sums.brier / sums.voxels),
            "nll": _cell(sums.nll / sums.voxels),
            **{column: _cell(float(values[c])) for column, values in scores.items()},
        }
        for c, name in enumerate(structures, start=1)
    ]


def _cell(value: float) -> str:
    """Return six decimals, or nothing for a figure that is undefined because the class is absent."""
    return "" if math.isnan(value) else f"{value:.6f}"
