from pathlib import Path

import pytest

from model_training.data.case import DataError
from model_training.data.layouts.kits import read_kits


def test_every_case_is_in_one_split(tiny_kits: Path) -> None:
    """One of seven cases is the test set, six fill the folds; each shows another person."""
    splits = read_kits(tiny_kits)

    assert {split: len(cases) for split, cases in splits.items()} == {
        "fold1": 2,
        "fold2": 1,
        "fold3": 1,
        "fold4": 1,
        "fold5": 1,
        "test": 1,
    }
    cases = [case for members in splits.values() for case in members]
    assert sorted(case.person for case in cases) == [f"case_0000{n}" for n in range(7)]
    first = next(case for case in cases if case.name == "case_00000")
    assert first.images == (tiny_kits / "dataset" / "case_00000" / "imaging.nii.gz",)
    assert first.label == tiny_kits / "dataset" / "case_00000" / "segmentation.nii.gz"


@pytest.mark.parametrize("name", ["case_00003/imaging.nii.gz", "case_00003/segmentation.nii.gz"])
def test_a_missing_file_is_named(tiny_kits: Path, name: str) -> None:
    """A missing scan or label is found before training starts."""
    (tiny_kits / "dataset" / name).unlink()

    with pytest.raises(DataError, match=rf"{name} was not found, though its folder names case_00003: restore"):
        read_kits(tiny_kits)


def test_a_repository_without_scans_is_refused(tiny_kits: Path) -> None:
    """A fresh clone holds the segmentations only; the message says which command fetches the scans."""
    for scan in tiny_kits.glob("dataset/*/imaging.nii.gz"):
        scan.unlink()

    with pytest.raises(DataError, match=r"holds no scan .* Run kits23_download_data there"):
        read_kits(tiny_kits)


def test_another_layout_is_refused(tiny_kits: Path, tiny_brats: Path) -> None:
    """Another data set and the folder of cases itself are refused; the message says what was expected."""
    for root in (tiny_brats, tiny_kits / "dataset"):
        with pytest.raises(DataError, match=r"expected dataset/case_XXXXX/imaging\.nii\.gz and segmentation\.nii\.gz"):
            read_kits(root)
