"""Any folder of labelled scans, or a CSV file that lists them: what a site has, without a recipe.

A folder holds, in this order of preference:

1. ``imagesTr`` and ``labelsTr``, or ``images`` and ``labels``, with files of the same name (``_0000`` is left out);
2. a BIDS data set with masks ``*_dseg`` among its derivatives, or beside the scans;
3. scans and, beside each, ``NAME_label``, ``NAME_seg``, ``NAME_dseg`` or ``NAME_mask``.

``persons.json`` in the folder, {person: [name]}, says whose scans they are, as do BIDS subjects and the CSV's column.

The CSV file has the columns ``image`` and ``label``, paths relative to its folder, and optionally ``id`` and ``person``.
"""

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

from model_training.data.case import Case, DataError
from model_training.data.layouts.files import reject_missing
from model_training.data.layouts.msd import persons_of_cases

SUFFIXES: Final = (".nii.gz", ".nii", ".nrrd", ".mha", ".mgz", ".mgh")
"""Names of scans and label maps end in one of these."""

PERSONS: Final = "persons.json"

_UNKNOWN: Final = "nothing: each case counts as a person of its own"

_LABEL: Final = re.compile(r"_(label|labels|seg|dseg|mask)$")
_CHANNEL: Final = re.compile(r"_0000$")
_BIDS_LAST: Final = re.compile(r"_[A-Za-z0-9]+$")
_SPACE_AND_KIND: Final = re.compile(r"_(desc|label|space|res|seg)-[A-Za-z0-9]+")


@dataclass(frozen=True, slots=True)
class LabelledCases:
    """What was found.

    Args:
        cases: each with a scan and a label map.
        persons: how it is known whose scan each is.
        left_out: scans without a label map, and label maps without a scan.
    """

    cases: list[Case]
    persons: str
    left_out: list[Path]


def read_labelled(source: Path) -> LabelledCases:
    """Return the labelled cases of a folder or a CSV file, sorted by name.

    Raises:
        DataError: no pair was found, a listed file is missing, or two cases have one name.
    """
    found = _listed(source) if source.is_file() else _with_persons(_in_folder(source), source / PERSONS)
    if not found.cases:
        msg = (
            f"No scan with a label map was found in {source}. Expected images/NAME and labels/NAME, a BIDS data set with "
            "*_dseg files, NAME beside NAME_label, or a CSV file with the columns image and label."
        )
        raise DataError(msg)
    found.cases.sort(key=lambda case: case.name)
    if doubled := next((one.name for one, other in pairwise(found.cases) if one.name == other.name), None):
        msg = f"Two scans in {source} are named {doubled}. Rename one, or list them in a CSV file with the column id."
        raise DataError(msg)
    return found


def _with_persons(found: LabelledCases, file: Path) -> LabelledCases:
    if not file.is_file():
        return found
    person_of = persons_of_cases(file, [case.name for case in found.cases], str)
    return LabelledCases([replace(case, person=person_of[case.name]) for case in found.cases], PERSONS, found.left_out)


def _listed(table: Path) -> LabelledCases:
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or ()
        if not {"image", "label"} <= set(columns):
            msg = f"{table} has the columns {', '.join(columns) or 'none'}. Expected image and label, and optionally id and person."
            raise DataError(msg)
        rows = [{name: (value or "").strip() for name, value in row.items() if name} for row in reader]
    cases = []
    for row in rows:
        name = row.get("id") or _stem(Path(row["image"]))
        cases.append(Case(name, row.get("person") or name, (table.parent / row["image"],), table.parent / row["label"]))
    reject_missing(cases, table.name)
    told = "person" in columns and all(row["person"] for row in rows)
    return LabelledCases(cases, "the column person" if told else _UNKNOWN, [])


def _in_folder(root: Path) -> LabelledCases:
    for images, labels in (("imagesTr", "labelsTr"), ("images", "labels")):
        if (root / images).is_dir() and (root / labels).is_dir():
            scans = {_CHANNEL.sub("", _stem(path)): path for path in _files((root / images).rglob("*"))}
            return _paired(scans, {_stem(path): path for path in _files((root / labels).rglob("*"))})
    files = list(_files(root.rglob("*")))
    if (root / "dataset_description.json").is_file():
        masks = [path for path in files if _stem(path).endswith("_dseg")]
        scans = {
            _stem(path): path
            for path in files
            if "derivatives" not in path.relative_to(root).parts and path not in masks
        }
        return _of_bids(scans, masks)
    labels_by_name = {_LABEL.sub("", _stem(path)): path for path in files if _LABEL.search(_stem(path))}
    return _paired({_stem(path): path for path in files if path not in labels_by_name.values()}, labels_by_name)


def _of_bids(scans: dict[str, Path], masks: list[Path]) -> LabelledCases:
    """Pair each mask with the scan that its entities name; of several contrasts, with the first by name."""
    by_entities: dict[str, str] = {}
    for name in sorted(scans, reverse=True):
        by_entities[_BIDS_LAST.sub("", name)] = name
    labels = {
        by_entities.get(key := _SPACE_AND_KIND.sub("", _BIDS_LAST.sub("", _stem(mask))), key): mask for mask in masks
    }
    found = _paired(scans, labels)
    cases = [Case(case.name, _subject(case.name), case.images, case.label) for case in found.cases]
    return LabelledCases(cases, "the BIDS subjects", found.left_out)


def _paired(scans: dict[str, Path], labels: dict[str, Path]) -> LabelledCases:
    both = scans.keys() & labels.keys()
    left_out = [path for files in (scans, labels) for name, path in files.items() if name not in both]
    return LabelledCases([Case(name, name, (scans[name],), labels[name]) for name in both], _UNKNOWN, sorted(left_out))


def _subject(name: str) -> str:
    return next((part for part in name.split("_") if part.startswith("sub-")), name)


def _files(paths: Iterable[Path]) -> Iterable[Path]:
    """Yield the scans and label maps among the paths; hidden files, as archives of the Decathlon hold, are ignored."""
    return (path for path in sorted(paths) if path.name.endswith(SUFFIXES) and not path.name.startswith("."))


def _stem(path: Path) -> str:
    return next((path.name.removesuffix(suffix) for suffix in SUFFIXES if path.name.endswith(suffix)), path.stem)
