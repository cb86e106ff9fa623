import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from model_training.data.case import DataError
from model_training.data.layouts.labelled import read_labelled


def touch(root: Path, *names: str) -> Path:
    """Make empty files and return the folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


LAYOUTS = {
    "Decathlon": (["imagesTr/a.nii.gz", "imagesTr/._a.nii.gz", "labelsTr/a.nii.gz"], "a", "a"),
    "nnU-Net": (["imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"], "a", "a"),
    "two folders": (["images/a.nrrd", "labels/a.nii.gz"], "a", "a"),
    "side by side": (["one/a.mha", "one/a_seg.mha"], "a", "a"),
    "BIDS": (
        [
            "dataset_description.json",
            "sub-1/anat/sub-1_T1w.nii.gz",
            "derivatives/experts/sub-1/anat/sub-1_space-T1w_desc-manual_dseg.nii.gz",
        ],
        "sub-1_T1w",
        "sub-1",
    ),
}


@pytest.mark.parametrize(("files", "name", "person"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_pair_is_found(tmp_path: Path, files: Sequence[str], name: str, person: str) -> None:
    """In each layout the scan meets its label map, and nothing is left out."""
    found = read_labelled(touch(tmp_path, *files))

    (case,) = found.cases
    assert (case.name, case.person, found.left_out) == (name, person, [])
    relative = [path.relative_to(tmp_path).as_posix() for path in (case.images[0], case.label)]
    assert relative == [file for file in files if not file.endswith(".json") and "._" not in file]


def test_what_has_no_partner_is_told(tmp_path: Path) -> None:
    """A scan without a label map and a label map without a scan are listed, and the others are used."""
    touch(tmp_path, "images/a.nii", "labels/a.nii", "images/b.nii", "labels/c.nii")

    found = read_labelled(tmp_path)

    assert [case.name for case in found.cases] == ["a"]
    assert [path.name for path in found.left_out] == ["b.nii", "c.nii"]
    assert "each case counts as a person" in found.persons


def test_a_csv_file_says_whose_scans_they_are(tmp_path: Path) -> None:
    """Paths are relative to the file; the person is that of the column."""
    touch(tmp_path, "x/1.nii.gz", "y/1.nii.gz", "x/2.nii.gz", "y/2.nii.gz")
    table = tmp_path / "cases.csv"
    table.write_text("image,label,person\nx/1.nii.gz,y/1.nii.gz,P\nx/2.nii.gz,y/2.nii.gz,P\n")

    found = read_labelled(table)

    assert [(case.name, case.person) for case in found.cases] == [("1", "P"), ("2", "P")]
    assert found.persons == "the column person"


def test_persons_json_says_whose_scans_they_are(tmp_path: Path) -> None:
    """As in the data sets of the recipes."""
    touch(tmp_path, "images/a.nii", "labels/a.nii", "images/b.nii", "labels/b.nii")
    (tmp_path / "persons.json").write_text(json.dumps({"P": ["a", "b"]}))

    assert {case.person for case in read_labelled(tmp_path).cases} == {"P"}


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    """An empty folder, a table with other columns, a listed file that is missing, and two cases of one name."""
    table = tmp_path / "cases.csv"
    with pytest.raises(DataError, match="No scan with a label map was found"):
        read_labelled(tmp_path)
    table.write_text("scan,mask\n")
    with pytest.raises(DataError, match=r"has the columns scan, mask\. Expected image and label"):
        read_labelled(table)
    table.write_text("image,label\nno.nii,none.nii\n")
    with pytest.raises(DataError, match=r"no\.nii was not found, though cases\.csv names no"):
        read_labelled(table)
    touch(tmp_path, "a.nii", "b.nii")
    table.write_text("id,image,label\nq,a.nii,b.nii\nq,b.nii,a.nii\n")
    with pytest.raises(DataError, match="are named q"):
        read_labelled(table)
