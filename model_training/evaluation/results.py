"""Writes the files of an evaluation: a table of the cases, reliability documents and their pictures."""

import csv
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

from model_training.evaluation.evaluate import Evaluation
from model_training.evaluation.surfaces import SurfaceScores
from service.bundle.card import CaseRecord
from service.bundle.figures import CaseDiagrams, Format, draw_reliability
from service.bundle.reliability import reliability_of
from service.calibration.scores import ace, ece, mce

PICTURE_FORMATS: Final[tuple[Format, ...]] = ("png", "svg")
"""Every picture is written in each of these formats."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Row:
    """One structure in one case, a row of cases.csv; NaN becomes an empty cell.

    DSC and calibration are undefined where the reference lacks the structure; distances as in `SurfaceScores`.
    """

    case: str
    person: str
    structure: str
    reference_voxels: int
    predicted_voxels: int
    dsc: float
    hd95_mm: float
    nsd: float
    volume_error_ml: float
    """Predicted minus reference; defined for absent structures, too. NaN where the voxel size is unknown."""
    volume_error_percent: float
    """In per cent of the reference volume."""
    ace: float
    ace_floor: float
    ace_excess: float
    ece: float
    mce: float
    brier: float
    """Mean over the case's voxels, the same in all rows of the case."""
    nll: float
    """In nats; mean over the case's voxels, the same in all rows of the case."""


COLUMNS: Final = tuple(field.name for field in fields(Row))
"""Columns of cases.csv."""


def rows_of(evaluation: Evaluation) -> list[Row]:
    """Return a row for each structure of each case, the cases in their order."""
    return [row for record in evaluation.measurement.cases for row in _rows_of_case(record, evaluation)]


def write_results(out: Path, evaluation: Evaluation) -> list[Path]:
    """Write cases.csv, reliability.{json,png,svg} and images/CASE.{json,png,svg}; return the files and the folder.

    Args:
        out: folder, created if missing.
        evaluation: its results.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    out.mkdir(parents=True, exist_ok=True)
    table = out / "cases.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([_cell(value) for value in asdict(row).values()] for row in rows_of(evaluation))
    reliability = reliability_of(evaluation.measurement.cases, evaluation.structures, evaluation.source)
    files = [out / "reliability.json", *(out / f"reliability.{picture_format}" for picture_format in PICTURE_FORMATS)]
    files[0].write_text(reliability.model_dump_json(indent=2) + "\n")
    for picture_format, picture in zip(PICTURE_FORMATS, files[1:], strict=True):
        picture.write_bytes(draw_reliability(reliability, picture_format))
    images = out / "images"
    _write_images(images, evaluation)
    return [table, *files, images]


def _write_images(folder: Path, evaluation: Evaluation) -> None:
    folder.mkdir(exist_ok=True)
    diagrams = CaseDiagrams(evaluation.structures)
    for record in evaluation.measurement.cases:
        reliability = reliability_of([record], evaluation.structures, f"{evaluation.source}: {record.case}")
        (folder / f"{record.case}.json").write_text(reliability.model_dump_json() + "\n")
        for picture_format in PICTURE_FORMATS:
            (folder / f"{record.case}.{picture_format}").write_bytes(diagrams.draw(reliability, picture_format))


def _rows_of_case(record: CaseRecord, evaluation: Evaluation) -> list[Row]:
    sums = record.sums()
    aces, eces, mces, dsc = ace(sums.histogram), ece(sums.histogram), mce(sums.histogram), sums.dsc
    surfaces = evaluation.surfaces
    case_surfaces = (
        [SurfaceScores.undefined()] * len(evaluation.structures) if surfaces is None else surfaces[record.case]
    )
    voxel_ml = math.nan if surfaces is None else math.prod(record.spacing_mm) / 1000
    rows = []
    for c, (name, surface) in enumerate(zip(evaluation.structures, case_surfaces, strict=True), start=1):
        reference, predicted = int(sums.reference[c]), int(sums.predicted[c])
        floor = float(sums.floor[c]) if reference else math.nan
        row = Row(
            case=record.case,
            person=record.person,
            structure=name,
            reference_voxels=reference,
            predicted_voxels=predicted,
            dsc=float(dsc[c]),
            hd95_mm=surface.hd95_mm,
            nsd=surface.nsd,
            volume_error_ml=(predicted - reference) * voxel_ml,
            volume_error_percent=100 * (predicted - reference) / reference if reference else math.nan,
            ace=float(aces[c]),
            ace_floor=floor,
            ace_excess=float(aces[c]) - floor,
            ece=float(eces[c]),
            mce=float(mces[c]),
            brier=sums.brier / sums.voxels,
            nll=sums.nll / sums.voxels,
        )
        rows.append(row)
    return rows


def _cell(value: str | float) -> str | int:
    """Return figures with six decimals, undefined ones as empty text; text and counts unchanged."""
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.6f}"
