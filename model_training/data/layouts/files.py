"""Checks that every layout shares: the files that it names exist."""

from collections.abc import Iterable
from pathlib import Path

from model_training.data.case import Case, DataError


def reject_missing(cases: Iterable[Case], said_by: str) -> None:
    """Raise for the first missing file of a case.

    Args:
        cases: the cases that the data set should hold.
        said_by: the file that lists them, e.g. ``dataset.json``.

    Raises:
        DataError: names the file, and what to do.
    """
    for case in cases:
        for path in (*case.images, case.label):
            if not path.is_file():
                msg = (
                    f"{path} was not found, though {said_by} names {case.name}: restore the file, or take the case out."
                )
                raise DataError(msg)


def reject_other_layout(found: bool, root: Path, expected: str) -> None:  # noqa: FBT001 - reads as a sentence
    """Raise unless the files that mark the layout were found.

    Raises:
        DataError: names the folder and what was expected in it.
    """
    if not found:
        msg = f"{root} is not the data set that this recipe reads: expected {expected}. Give the folder that holds them as --data."
        raise DataError(msg)
