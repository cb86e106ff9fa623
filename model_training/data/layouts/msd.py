"""Medical Segmentation Decathlon: ``imagesTr/NAME.nii.gz`` and ``labelsTr/NAME.nii.gz``."""

import json
from collections.abc import Callable
from pathlib import Path

from model_training.data.case import Case, DataError
from model_training.data.layouts.files import reject_missing, reject_other_layout
from model_training.data.splits import split_cases

PersonOf = Callable[[str], str]
"""Name of a case -> name of its person."""


def read_msd(root: Path, person_of: PersonOf) -> dict[str, list[Case]]:
    """Return the labelled cases of a single-channel task by split.

    ``persons.json`` ({person: [case]}) in the root takes precedence over `person_of`. The hidden ``._`` files of the
    published archives are ignored.

    Raises:
        DataError: the layout is not the Decathlon's, a file is missing, or a person is in two splits.
    """
    names = sorted(
        path.name.removesuffix(".nii.gz") for path in root.glob("labelsTr/*.nii.gz") if not path.name.startswith(".")
    )
    reject_other_layout(bool(names), root, "imagesTr/NAME.nii.gz and labelsTr/NAME.nii.gz")
    persons = persons_of_cases(root / "persons.json", names, person_of)
    cases = [
        Case(name, persons[name], (root / "imagesTr" / f"{name}.nii.gz",), root / "labelsTr" / f"{name}.nii.gz")
        for name in names
    ]
    splits = split_cases(root, cases)
    reject_missing([case for split in splits.values() for case in split], "labelsTr")
    return splits


def persons_of_cases(file: Path, names: list[str], person_of: PersonOf) -> dict[str, str]:
    """Return the person of each case: as a file {person: [case]} says, or, where there is none, by their names.

    Raises:
        DataError: the file is malformed, or leaves out a case.
    """
    if not file.is_file():
        return {name: person_of(name) for name in names}
    try:
        listed = {name: person for person, members in json.loads(file.read_bytes()).items() for name in members}
    except (ValueError, TypeError, AttributeError) as error:
        msg = f"{file} cannot be used ({error!r}): expected {{person: [case]}}."
        raise DataError(msg) from error
    if missing := next((name for name in names if name not in listed), None):
        msg = f"{file} does not say whose scan {missing} is: add it, so that no person is split."
        raise DataError(msg)
    return listed
