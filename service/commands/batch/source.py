"""Finds the cases of a batch in a folder, a CSV file, a BIDS data set or DICOM files, and says what is left out."""

import csv
import re
from collections import defaultdict
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Final

from service.client.files import SUFFIXES, stem_of
from service.commands.batch.case import ID_PATTERN, BatchCase, FoundCases, Skipped
from service.commands.batch.dicom import find_series, is_dicom
from service.errors import SourceError

IMAGE_FOLDERS: Final = ("anat", "ct", "pet")
"""BIDS data types that hold 3-D images; the others hold time series or signals."""

_RESULTS: Final = ("_dseg", "_probseg", "_mask", "_defacemask")


def find_cases(source: Path, out: Path, pattern: str = "*") -> FoundCases:
    """Return the cases of a source, sorted by id.

    Args:
        source: a CSV file with the columns id, path (a scan, or a folder of one DICOM series) and optionally reference;
            a BIDS data set; a folder of scans, DICOM files or both; one scan; or ``pacs:NAME?...``
            (`service.commands.batch.pacs`).
        out: folder of the results, which is not searched for scans.
        pattern: pattern of the file names to take, e.g. ``*_T1w.nii.gz``.

    Raises:
        SourceError: the source cannot be used, or two scans have the same id.
    """
    if str(source).startswith("pacs:"):
        from service.commands.batch.pacs import find_pacs_cases  # DICOM's libraries take a moment to load

        outcome = find_pacs_cases(source)
    elif source.suffix.lower() == ".csv":
        outcome = read_manifest(source)
    elif source.is_file():
        outcome = FoundCases([BatchCase.of_file(_identifier(source.name), source)])
    elif (source / "dataset_description.json").is_file() and any(source.glob("sub-*/")):
        outcome = _of_bids(source)
    elif source.is_dir():
        outcome = _of_folder(source, out)
    else:
        msg = f"{source} was not found. Give a folder, a CSV file with the columns id and path, or a scan."
        raise SourceError(msg)
    chosen = FoundCases(skipped=outcome.skipped)
    for case in sorted(outcome.cases, key=lambda case: case.id):
        if any(fnmatch(path.name, pattern) for path in case.files):
            chosen.cases.append(case)
        else:
            chosen.skipped.append(Skipped(case.files[0], f"its name does not match {pattern}"))
    _reject_duplicates(chosen.cases)
    return chosen


def read_manifest(path: Path) -> FoundCases:
    """Return the cases of a CSV file; paths in it are relative to its folder.

    Raises:
        SourceError: a column is missing, or an id cannot be one.
    """
    outcome = FoundCases()
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if not {"id", "path"} <= set(rows.fieldnames or ()):
            msg = f"{path} has the columns {', '.join(rows.fieldnames or ()) or 'none'}. Expected id and path, and reference where there is one."
            raise SourceError(msg)
        for row in rows:
            identifier, scan = row["id"].strip(), path.parent / row["path"].strip()
            if not re.fullmatch(ID_PATTERN, identifier):
                msg = f"{path}, line {rows.line_num}: the id {identifier!r} cannot name files. Expected letters, digits, '.', '_' and '-', at most 128."
                raise SourceError(msg)
            reference = (row.get("reference") or "").strip()
            if scan.exists():
                outcome.cases.append(_listed(identifier, scan, path.parent / reference if reference else None))
            else:
                outcome.skipped.append(Skipped(scan, f"line {rows.line_num}: there is no such file"))
    return outcome


def _listed(identifier: str, scan: Path, reference: Path | None) -> BatchCase:
    """Return the case of a line of a manifest: a file, or a folder that holds one DICOM series."""
    case = BatchCase.of_file(identifier, scan, reference)
    if scan.is_file():
        return case
    return replace(case, files=tuple(path for path in _files(scan) if is_dicom(path)) or (scan,), is_series=True)


def _of_folder(source: Path, out: Path) -> FoundCases:
    outcome, dicom = FoundCases(), []
    for path in _files(source):
        if path.is_relative_to(out):
            continue
        if not path.name.lower().endswith(SUFFIXES):
            if is_dicom(path):
                dicom.append(path)
            else:
                outcome.skipped.append(Skipped(path, f"not a scan: expected {', '.join(SUFFIXES)} or DICOM"))
        elif stem_of(path).endswith(_RESULTS):
            outcome.skipped.append(Skipped(path, "by its name a mask or map, not a scan"))
        else:
            outcome.cases.append(BatchCase.of_file(_identifier(path.relative_to(source).as_posix()), path))
    series = find_series(dicom)
    return FoundCases(outcome.cases + series.cases, outcome.skipped + series.skipped)


def _of_bids(source: Path) -> FoundCases:
    outcome = FoundCases()
    for path in (path for subject in sorted(source.glob("sub-*/")) for path in _files(subject)):
        if not path.name.endswith((".nii", ".nii.gz")):
            continue
        place, stem = path.parent, stem_of(path)
        entities, _, suffix = stem.rpartition("_")
        if place.name not in IMAGE_FOLDERS:
            outcome.skipped.append(Skipped(path, f"in {place.name}: only {', '.join(IMAGE_FOLDERS)} hold 3-D images"))
        elif not entities.startswith("sub-") or f"_{suffix}" in _RESULTS or not re.fullmatch(ID_PATTERN, stem):
            outcome.skipped.append(Skipped(path, "not named as a raw image of BIDS"))
        else:
            folder = PurePosixPath(place.relative_to(source).as_posix())
            outcome.cases.append(BatchCase(stem, (path,), folder, f"{entities}_space-orig"))
    return outcome


def _files(folder: Path) -> list[Path]:
    """Return every file below a folder, sorted, except hidden files and those in hidden folders."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _identifier(name: str) -> str:
    """Return the id of a file: its path below the source without the extension, in the characters of an id.

    >>> _identifier("patient 1/scan.nii.gz")
    'patient-1_scan'
    """
    stem = f"{Path(name).parent.as_posix()}/{stem_of(Path(name))}".removeprefix("./")
    return re.sub(r"[^A-Za-z0-9._]+", "-", stem.replace("/", "_")).lstrip("-._")[:128] or "scan"


def _reject_duplicates(cases: list[BatchCase]) -> None:
    by_name: dict[str, list[BatchCase]] = defaultdict(list)
    for case in cases:
        by_name[case.id].append(case)
        by_name[f"{case.folder}/{case.stem}"].append(case)
    for same in by_name.values():
        if len(same) > 1:
            first, second = (case.files[0] for case in same[:2])
            msg = f"The results of {first} and {second} would have the same name. Choose with --pattern, rename one, or list ids and paths in a CSV file."
            raise SourceError(msg)
