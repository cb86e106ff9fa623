import json
from pathlib import Path

import pytest

from model_training.data.case import DataError
from model_training.data.layouts.amos import read_amos


def rewrite(root: Path, **fields: object) -> None:
    """Set fields of dataset.json."""
    file = root / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | fields))


def test_ct_is_split_into_folds_and_the_validation_list(tiny_amos: Path) -> None:
    """CT of the training list fills the folds, CT of the validation list is the test set; 500 is CT, 507 and 540 are MR."""
    splits = read_amos(tiny_amos)

    assert list(splits) == ["fold1", "fold2", "fold3", "fold4", "fold5", "test"]
    developed = [case.name for split, cases in splits.items() if split != "test" for case in cases]
    assert sorted(developed) == ["amos_0001", "amos_0002", "amos_0003", "amos_0004", "amos_0005"]
    assert [case.name for case in splits["test"]] == ["amos_0300", "amos_0500"]
    assert splits["test"][0].images == (tiny_amos / "imagesVa" / "amos_0300.nii.gz",)
    assert splits["test"][0].label == tiny_amos / "labelsVa" / "amos_0300.nii.gz"
    assert splits["test"][0].person == "amos_0300"


@pytest.mark.parametrize(
    "name", ["imagesTr/amos_0002.nii.gz", "labelsTr/amos_0002.nii.gz", "labelsVa/amos_0500.nii.gz"]
)
def test_a_missing_file_is_named(tiny_amos: Path, name: str) -> None:
    """A missing file that dataset.json lists is found before training starts."""
    (tiny_amos / name).unlink()

    with pytest.raises(DataError, match=rf"{name} was not found, though dataset\.json names amos_0\d+: restore"):
        read_amos(tiny_amos)


def test_missing_mr_scans_do_not_matter(tiny_amos: Path) -> None:
    """Training works if only the CT scans were downloaded."""
    (tiny_amos / "imagesTr" / "amos_0507.nii.gz").unlink()

    assert len(read_amos(tiny_amos)["test"]) == 2


def test_another_layout_is_refused(tiny_kits: Path) -> None:
    """A folder without dataset.json is not AMOS22; the message says what was expected."""
    with pytest.raises(DataError, match=r"expected the dataset\.json of AMOS22"):
        read_amos(tiny_kits)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"validation": None}, id="no validation list"),
        pytest.param({"training": [{"image": "./imagesTr/amos_0001.nii.gz"}]}, id="no label"),
        pytest.param({"training": ["./imagesTr/amos_0001.nii.gz"]}, id="names alone"),
    ],
)
def test_a_list_of_another_form_is_refused(tiny_amos: Path, fields: dict[str, object]) -> None:
    """A dataset.json with other lists or entries is refused."""
    rewrite(tiny_amos, **fields)

    with pytest.raises(DataError, match=r"dataset\.json cannot be used .* expected {training: \[{image, label}\]"):
        read_amos(tiny_amos)


def test_a_file_that_is_not_json_is_refused(tiny_amos: Path) -> None:
    """A damaged dataset.json is named."""
    (tiny_amos / "dataset.json").write_text("{")

    with pytest.raises(DataError, match=r"dataset\.json cannot be used"):
        read_amos(tiny_amos)


def test_names_without_a_number_are_refused(tiny_amos: Path) -> None:
    """Renamed files are refused, because their numbers tell CT from MR."""
    rewrite(tiny_amos, training=[{"image": "./imagesTr/liver.nii.gz", "label": "./labelsTr/liver.nii.gz"}])

    with pytest.raises(DataError, match=r"lists \./imagesTr/liver\.nii\.gz: expected amos_XXXX\.nii\.gz"):
        read_amos(tiny_amos)


@pytest.mark.parametrize("emptied", ["training", "validation"])
def test_a_list_without_ct_is_refused(tiny_amos: Path, emptied: str) -> None:
    """Without a CT in either list there is nothing to train on, or no test set."""
    rewrite(tiny_amos, **{emptied: []})

    with pytest.raises(DataError, match=r"expected CT scans \(amos_0001 to amos_0500\) in both lists"):
        read_amos(tiny_amos)
