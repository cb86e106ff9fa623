"""BraTS 2021: ``CASE/CASE_{t1,t1ce,t2,flair,seg}.nii.gz``."""

from pathlib import Path
from typing import Final

from model_training.data.case import Case, DataError
from model_training.data.layouts.files import reject_missing, reject_other_layout
from model_training.data.splits import split_cases

CHANNELS: Final = ("t1", "t1ce", "t2", "flair")
"""Suffixes of the images, in the order of the network's channels."""

_LABEL = "seg"
_EXPECTED = f"CASE/CASE_{{{','.join((*CHANNELS, _LABEL))}}}.nii.gz (BraTS 2021)"


def read_brats(root: Path) -> dict[str, list[Case]]:
    """Return the cases by split. Each has four channels and shows another person.

    Raises:
        DataError: the layout is another one, e.g. that of BraTS 2023 and later; a file is missing, or splits.json is
            malformed.
    """
    _reject_later_years(root)
    cases = [_case(folder) for folder in sorted(root.iterdir()) if _is_case(folder)]
    reject_other_layout(bool(cases), root, _EXPECTED)
    reject_missing(cases, "its folder")
    return split_cases(root, cases)


def _reject_later_years(root: Path) -> None:
    if later := next(iter(sorted(root.glob("*/*-t1[nc].nii.gz"))), None):
        msg = (
            f"{root} has the layout of BraTS 2023 and later ({later.relative_to(root)}), in which label 3 is what 4 was before; "
            f"expected {_EXPECTED}. Give the folder of the 2021 data as --data."
        )
        raise DataError(msg)


def _is_case(folder: Path) -> bool:
    return any(_file(folder, suffix).exists() for suffix in (*CHANNELS, _LABEL))


def _case(folder: Path) -> Case:
    return Case(folder.name, folder.name, tuple(_file(folder, name) for name in CHANNELS), _file(folder, _LABEL))


def _file(folder: Path, suffix: str) -> Path:
    return folder / f"{folder.name}_{suffix}.nii.gz"
