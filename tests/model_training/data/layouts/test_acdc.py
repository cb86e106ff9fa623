import json
import shutil
from pathlib import Path

import pytest

from model_training.data.case import DataError
from model_training.data.layouts.acdc import read_acdc


def test_both_frames_of_a_patient_are_listed_together(tiny_acdc: Path) -> None:
    """Each fold holds one of five patients with end diastole and end systole; the testing folder is the test set."""
    splits = read_acdc(tiny_acdc)

    assert [len(splits[f"fold{k}"]) for k in range(1, 6)] == [2] * 5
    assert {case.person for k in range(1, 6) for case in splits[f"fold{k}"]} == {f"patient00{n}" for n in range(1, 6)}
    assert all(len({case.person for case in cases}) == 1 for cases in splits.values())
    end_diastole, end_systole = splits["test"]
    folder = tiny_acdc / "testing" / "patient101"
    assert (end_diastole.name, end_diastole.person) == ("patient101_frame01", "patient101")
    assert end_diastole.images == (folder / "patient101_frame01.nii.gz",)
    assert end_systole.label == folder / "patient101_frame12_gt.nii.gz"


def test_the_folder_database_may_lie_between(tiny_acdc: Path, tmp_path: Path) -> None:
    """The challenge's archive has a folder "database", the data set's has none: both are read."""
    shutil.move(tiny_acdc, tmp_path / "downloaded" / "database")

    assert len(read_acdc(tmp_path / "downloaded")["test"]) == 2


def test_splits_list_patients(tiny_acdc: Path) -> None:
    """A patient's name in splits.json stands for both frames."""
    shutil.rmtree(tiny_acdc / "testing")
    listed = {"folds": [["patient002"], ["patient001"]], "test": ["patient004"]}
    (tiny_acdc / "splits.json").write_text(json.dumps(listed))

    names = {split: [case.name for case in cases] for split, cases in read_acdc(tiny_acdc).items()}

    assert names == {
        "fold1": ["patient002_frame01", "patient002_frame12"],
        "fold2": ["patient001_frame01", "patient001_frame12"],
        "test": ["patient004_frame01", "patient004_frame12"],
    }


def test_frames_of_one_patient_on_two_sides_are_refused(tiny_acdc: Path) -> None:
    """End diastole in a fold and end systole in the test set show the same heart."""
    listed = {"folds": [["patient001_frame01"]], "test": ["patient001_frame12"]}
    (tiny_acdc / "splits.json").write_text(json.dumps(listed))

    with pytest.raises(DataError, match="Person patient001 is in fold1 and in test: keep all scans"):
        read_acdc(tiny_acdc)


@pytest.mark.parametrize("content", ["ED: 1\nGroup: DCM\n", "ED: 1\nES: late\n", ""])
def test_a_patient_without_frames_is_refused(tiny_acdc: Path, content: str) -> None:
    """Info.cfg must say which frames are labelled; the message names the file and the lines."""
    (tiny_acdc / "training" / "patient003" / "Info.cfg").write_text(content)

    with pytest.raises(DataError, match=r"patient003/Info\.cfg names no frame .* expected the lines ED: N and ES: N"):
        read_acdc(tiny_acdc)


@pytest.mark.parametrize("name", ["patient002_frame12.nii.gz", "patient002_frame01_gt.nii.gz"])
def test_a_missing_file_is_named(tiny_acdc: Path, name: str) -> None:
    """A missing frame that Info.cfg lists is found before training starts."""
    (tiny_acdc / "training" / "patient002" / name).unlink()

    with pytest.raises(DataError, match=rf"patient002/{name} was not found, though Info\.cfg names patient002_frame"):
        read_acdc(tiny_acdc)


def test_another_layout_is_refused(tiny_msd: Path) -> None:
    """A task of the Decathlon is not ACDC; the message says what was expected."""
    with pytest.raises(DataError, match=r"expected training/patientXXX/Info\.cfg"):
        read_acdc(tiny_msd)
