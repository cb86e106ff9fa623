from pathlib import Path

import pytest

from model_training.data.case import Case, DataError
from model_training.data.layouts.files import reject_missing, reject_other_layout


def case(root: Path) -> Case:
    """Return a case of two channels and a label in a folder."""
    return Case("a1", "A", (root / "t1.nii.gz", root / "t2.nii.gz"), root / "seg.nii.gz")


@pytest.mark.parametrize("missing", ["t1.nii.gz", "t2.nii.gz", "seg.nii.gz"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    """The message names the missing channel or label, the file that lists it, and what to do."""
    for name in {"t1.nii.gz", "t2.nii.gz", "seg.nii.gz"} - {missing}:
        (tmp_path / name).touch()

    with pytest.raises(
        DataError, match=rf"{missing} was not found, though list\.json names a1: restore the file, or take the case out"
    ):
        reject_missing([case(tmp_path)], "list.json")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """A folder with the name of an image does not count as the image."""
    for name in ("t1.nii.gz", "t2.nii.gz", "seg.nii.gz"):
        (tmp_path / name).mkdir()

    with pytest.raises(DataError, match=r"t1\.nii\.gz was not found"):
        reject_missing([case(tmp_path)], "list.json")


def test_complete_cases_pass(tmp_path: Path) -> None:
    """Nothing is raised where every file is there."""
    for name in ("t1.nii.gz", "t2.nii.gz", "seg.nii.gz"):
        (tmp_path / name).touch()

    reject_missing([case(tmp_path)], "list.json")


def test_another_layout_is_refused_by_what_was_expected(tmp_path: Path) -> None:
    """The message names the folder and what should be in it; a layout that was found passes."""
    reject_other_layout(True, tmp_path, "images")

    with pytest.raises(DataError, match=rf"{tmp_path} is not .* expected images\. Give the folder .* as --data"):
        reject_other_layout(False, tmp_path, "images")
