from pathlib import Path

import pytest

from model_training.data.case import DataError
from model_training.data.layouts.brats import read_brats


def test_every_case_brings_four_channels_in_order(tiny_brats: Path) -> None:
    """Seven cases are split by person; each has T1, T1 with contrast agent, T2 and FLAIR, in this order."""
    splits = read_brats(tiny_brats)

    assert [len(cases) for cases in splits.values()] == [2, 1, 1, 1, 1, 1]
    cases = {case.name: case for members in splits.values() for case in members}
    assert sorted(cases) == [f"BraTS2021_0000{n}" for n in range(7)]
    assert all(case.person == name for name, case in cases.items())
    folder = tiny_brats / "BraTS2021_00003"
    assert cases[folder.name].images == (
        folder / "BraTS2021_00003_t1.nii.gz",
        folder / "BraTS2021_00003_t1ce.nii.gz",
        folder / "BraTS2021_00003_t2.nii.gz",
        folder / "BraTS2021_00003_flair.nii.gz",
    )
    assert cases[folder.name].label == folder / "BraTS2021_00003_seg.nii.gz"


@pytest.mark.parametrize("suffix", ["t1", "t1ce", "t2", "flair", "seg"])
def test_a_missing_file_is_named(tiny_brats: Path, suffix: str) -> None:
    """A missing channel or label is found before training starts."""
    (tiny_brats / "BraTS2021_00004" / f"BraTS2021_00004_{suffix}.nii.gz").unlink()

    with pytest.raises(DataError, match=rf"BraTS2021_00004_{suffix}\.nii\.gz was not found, though its folder names"):
        read_brats(tiny_brats)


def test_files_beside_the_cases_are_ignored(tiny_brats: Path) -> None:
    """Tables and other folders beside the cases are ignored."""
    (tiny_brats / "name_mapping.csv").touch()
    (tiny_brats / "docs").mkdir()

    assert sum(map(len, read_brats(tiny_brats).values())) == 7


@pytest.mark.parametrize("suffix", ["t1n", "t1c"])
def test_the_layout_of_later_years_is_told_apart(tiny_brats: Path, suffix: str) -> None:
    """Data of 2023 and later are refused, because label 3 replaces 4: the message names the found and the expected layout."""
    folder = tiny_brats / "BraTS-GLI-00001-000"
    folder.mkdir()
    (folder / f"BraTS-GLI-00001-000-{suffix}.nii.gz").touch()

    with pytest.raises(
        DataError,
        match=rf"layout of BraTS 2023 and later \(BraTS-GLI-00001-000/BraTS-GLI-00001-000-{suffix}\.nii\.gz\).*"
        r"expected CASE/CASE_{t1,t1ce,t2,flair,seg}\.nii\.gz \(BraTS 2021\)",
    ):
        read_brats(tiny_brats)


def test_another_layout_is_refused(tiny_msd: Path) -> None:
    """A task of the Decathlon, whose BraTS has other labels, is refused; the message says what was expected."""
    with pytest.raises(DataError, match=r"expected CASE/CASE_{t1,t1ce,t2,flair,seg}\.nii\.gz \(BraTS 2021\)"):
        read_brats(tiny_msd)
