"""AMOS 2022: ``dataset.json`` beside ``imagesTr``, ``labelsTr``, ``imagesVa`` and ``labelsVa``, scans ``amos_XXXX.nii.gz``.

CT and MR scans are mixed and differ in their numbers only. The data set's readme counts 500 CT and 100 MR scans and says
that "id numbers less than 500 belong to CT data"; the numbers run from 1 to 600, so 500 is the last CT scan.
"""

import json
import re
from pathlib import Path
from typing import Final

from model_training.data.case import Case, DataError
from model_training.data.layouts.files import reject_missing, reject_other_layout
from model_training.data.splits import split_cases

LAST_CT: Final = 500
"""Number of the last CT scan."""

_LISTS = ("training", "validation")


def read_amos(root: Path) -> dict[str, list[Case]]:
    """Return the labelled CT scans by split: the training list as folds, the validation list as the test set.

    Each scan shows another person.

    Raises:
        DataError: the layout is not AMOS22's, a file is missing, or splits.json is malformed.
    """
    file = root / "dataset.json"
    reject_other_layout(file.is_file(), root, "the dataset.json of AMOS22 beside imagesTr and labelsTr")
    development, test = (
        [_case(root, *entry) for entry in entries if _is_ct(file, entry[0])] for entries in _read(file)
    )
    reject_other_layout(bool(development and test), root, f"CT scans (amos_0001 to amos_0{LAST_CT}) in both lists")
    reject_missing([*development, *test], file.name)
    return split_cases(root, development, test)


def _read(file: Path) -> list[list[tuple[str, str]]]:
    """Return image and label path of every entry, for both lists."""
    try:
        lists = json.loads(file.read_bytes())
        return [[(str(entry["image"]), str(entry["label"])) for entry in lists[name]] for name in _LISTS]
    except (ValueError, KeyError, TypeError) as error:
        msg = f"{file} cannot be used ({error!r}): expected {{training: [{{image, label}}], validation: [{{image, label}}]}}, as AMOS22 comes."
        raise DataError(msg) from error


def _is_ct(file: Path, image: str) -> bool:
    name = re.fullmatch(r"amos_(\d{4})\.nii\.gz", Path(image).name)
    if name is None:
        msg = f"{file} lists {image}: expected amos_XXXX.nii.gz, whose number tells CT from MR. Restore the genuine names."
        raise DataError(msg)
    return int(name[1]) <= LAST_CT


def _case(root: Path, image: str, label: str) -> Case:
    name = Path(image).name.removesuffix(".nii.gz")
    return Case(name, name, (root / image,), root / label)
