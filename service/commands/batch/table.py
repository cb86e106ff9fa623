"""Writes the cohort as two tables, by case and by structure, from the logs and the sidecars alone."""

import csv
import io
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from service.commands.batch.journal import Line, read_lines
from service.commands.batch.results import Sidecar, write_whole
from service.errors import ScanNotAccepted, SettingsError
from service.schemas import RESEARCH_USE_ONLY, Structure, Summary

CASES: Final = "cases.csv"
STRUCTURES: Final = "structures.csv"

CASE_COLUMNS: Final = (
    *("id", "state", "statement", "reasons", "model", "input_sha256", "volume_ml", "mean_confidence"),
    *("p", "n_compared", "not_compared", "warnings"),
    *("problem", "detail", "note", "attempt", "seconds", "finished", "software", "mask", "research_use_only"),
)
"""Volume and mean confidence are over all structures; there is no volume if one of them is truncated.

They are those of the mask, also where `statement` says that it is withdrawn. It is `refused` for a scan that says itself that
the model is not made for it."""

_NOT_ACCEPTED: Final = f"/problems/{ScanNotAccepted.code}"

STRUCTURE_FIELDS: Final = tuple(name for name in Structure.model_fields if name != "confidence_histogram")
STRUCTURE_COLUMNS: Final = ("id", "model", "input_sha256", *STRUCTURE_FIELDS, "dsc")

Row = dict[str, Any]


def write_tables(out: Path, *, parquet: bool = False) -> list[Path]:
    """Write cases.csv and structures.csv, optionally also as Parquet, and return their paths.

    For a case that was repeated, the last line of each model counts.

    Raises:
        SettingsError: pyarrow is not installed.
    """
    latest = {(line.case, line.model.partition("@")[0]): line for line in read_lines(out)}
    lines = [line for _, line in sorted(latest.items())]
    summaries = [_summary_of(out, line) for line in lines]
    cases = [_case_row(line, summary) for line, summary in zip(lines, summaries, strict=True)]
    structures = [
        _structure_row(line, structure)
        for line, summary in zip(lines, summaries, strict=True)
        for structure in (summary.structures if summary else [])
    ]
    paths = []
    for name, columns, rows in ((CASES, CASE_COLUMNS, cases), (STRUCTURES, STRUCTURE_COLUMNS, structures)):
        paths.append(out / name)
        write_whole(paths[-1], _csv(columns, rows))
        if parquet:
            paths.append((out / name).with_suffix(".parquet"))
            write_whole(paths[-1], _parquet(columns, rows))
    return paths


def _summary_of(out: Path, line: Line) -> Summary | None:
    if not line.sidecar:
        return None
    try:
        return Sidecar.model_validate_json((out / line.sidecar).read_bytes()).Summary
    except (OSError, ValidationError):  # removed since; the log still says how the case ended
        return None


def _case_row(line: Line, summary: Summary | None) -> Row:
    row: Row = {
        "id": line.case,
        "state": line.state,
        "model": line.model,
        "input_sha256": line.input_sha256,
        "problem": line.problem.type if line.problem else None,
        "detail": line.problem.detail if line.problem else None,
        "note": line.note or None,
        "attempt": line.attempt,
        "seconds": line.seconds,
        "finished": line.finished.isoformat(timespec="seconds"),
        "software": f"Calibrant {line.version}",
        "research_use_only": RESEARCH_USE_ONLY,
    }
    if line.problem is not None and line.problem.type == _NOT_ACCEPTED:
        row |= {"statement": "refused", "reasons": line.problem.detail}
    if summary is not None:
        row |= {
            "volume_ml": _total_ml(summary),
            "mean_confidence": summary.foreground_confidence,
            "statement": summary.statement.status,
            "reasons": " ".join(summary.statement.reasons) or None,
            "p": summary.statement.p,
            "n_compared": summary.statement.n_compared,
            "not_compared": ", ".join(summary.statement.not_compared) or None,
            "warnings": " ".join(summary.warnings) or None,
            "mask": next((name for name in line.files if name.endswith("_dseg.nii.gz")), None),
        }
    return row


def _structure_row(line: Line, structure: Structure) -> Row:
    row: Row = {"id": line.case, "model": line.model, "input_sha256": line.input_sha256}
    fields = structure.model_dump(mode="json", include=set(STRUCTURE_FIELDS))
    return row | fields | {"dsc": (line.dsc or {}).get(structure.name)}


def _total_ml(summary: Summary) -> float | None:
    volumes = [structure.volume_ml for structure in summary.structures]
    known = [volume for volume in volumes if volume is not None]
    return round(sum(known), 6) if len(known) == len(volumes) else None


def _csv(columns: tuple[str, ...], rows: list[Row]) -> bytes:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def _parquet(columns: tuple[str, ...], rows: list[Row]) -> bytes:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        msg = "Parquet needs pyarrow, which is not installed: pip install 'calibrant[parquet]'"
        raise SettingsError(msg) from error
    table = pa.table({column: [row.get(column) for row in rows] for column in columns})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    return buffer.getvalue()
