import json
from pathlib import Path

import pytest

from model_training.data.case import DataError
from model_training.data.layouts.msd import read_msd


def rewrite(path: Path, **fields: object) -> None:
    """Set fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_bytes()) | fields))


def test_cases_are_listed_by_split(tiny_msd: Path) -> None:
    """Folds and test set hold the cases of splits.json in its order, each with its person and files."""
    splits = read_msd(tiny_msd, str)

    names = {split: [(case.name, case.person) for case in cases] for split, cases in splits.items()}
    assert names == {
        "fold1": [("a1", "A"), ("a2", "A"), ("b1", "B")],
        "fold2": [("c1", "C")],
        "test": [("d1", "D")],
    }
    assert splits["test"][0].images == (tiny_msd / "imagesTr" / "d1.nii.gz",)
    assert splits["test"][0].label == tiny_msd / "labelsTr" / "d1.nii.gz"


def test_persons_follow_from_names_where_no_file_tells_them(tiny_msd: Path) -> None:
    """Without persons.json the recipe's rule says whose scan it is."""
    (tiny_msd / "persons.json").unlink()

    splits = read_msd(tiny_msd, lambda name: f"person {name[0]}")

    assert [case.person for case in splits["fold1"]] == ["person a", "person a", "person b"]


def test_hidden_files_of_the_archives_are_ignored(tiny_msd: Path) -> None:
    """The published archives hold hidden files ._NAME.nii.gz, which are not scans."""
    (tiny_msd / "labelsTr" / "._a1.nii.gz").write_bytes(b"\0")

    assert sum(map(len, read_msd(tiny_msd, str).values())) == 5


def test_a_person_in_a_fold_and_in_the_test_set_is_refused(tiny_msd: Path) -> None:
    """A person of persons.json in a fold and in the test set is refused."""
    rewrite(tiny_msd / "persons.json", A=["a1", "a2", "d1"], D=[])

    with pytest.raises(DataError, match="Person A is in fold1 and in test"):
        read_msd(tiny_msd, str)


def test_a_case_without_a_person_is_refused(tiny_msd: Path) -> None:
    """A case without a person is refused, because no split could be by person."""
    rewrite(tiny_msd / "persons.json", C=[])

    with pytest.raises(DataError, match=r"persons\.json does not say whose scan c1 is: add it"):
        read_msd(tiny_msd, str)


@pytest.mark.parametrize("content", ["{", "[]", '{"A": 1}'])
def test_persons_that_cannot_be_read_are_refused(tiny_msd: Path, content: str) -> None:
    """The message names the file and the expected format."""
    (tiny_msd / "persons.json").write_text(content)

    with pytest.raises(DataError, match=r"persons\.json cannot be used .* expected {person: \[case\]}"):
        read_msd(tiny_msd, str)


def test_a_missing_image_is_named(tiny_msd: Path) -> None:
    """A label without its image is found before training starts."""
    (tiny_msd / "imagesTr" / "a2.nii.gz").unlink()

    with pytest.raises(DataError, match=r"imagesTr/a2\.nii\.gz was not found, though labelsTr names a2"):
        read_msd(tiny_msd, str)


def test_a_missing_label_is_named(tiny_msd: Path) -> None:
    """A listed case without a label is found before training starts."""
    (tiny_msd / "labelsTr" / "d1.nii.gz").unlink()

    with pytest.raises(DataError, match=r"splits\.json lists d1, but the data set holds no such case"):
        read_msd(tiny_msd, str)


def test_another_layout_is_refused(tmp_path: Path) -> None:
    """A folder without labelsTr is not a task of the Decathlon; the message says what was expected."""
    with pytest.raises(DataError, match=r"expected imagesTr/NAME\.nii\.gz and labelsTr/NAME\.nii\.gz"):
        read_msd(tmp_path, str)


def test_the_hippocampus_data_are_split_by_person(real_hippocampus: Path) -> None:
    """The development folds hold 34, 37, 35, 36 and 33 cases, the test set 47, and nobody is in two of them."""
    splits = read_msd(real_hippocampus, str)

    assert {split: len(cases) for split, cases in splits.items()} == {
        "fold1": 34,
        "fold2": 37,
        "fold3": 35,
        "fold4": 36,
        "fold5": 33,
        "test": 47,
    }
    persons = [{case.person for case in cases} for cases in splits.values()]
    assert len(set.union(*persons)) == sum(map(len, persons))
