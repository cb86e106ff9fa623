import json
from pathlib import Path

import pytest

from model_training.data.case import Case, DataError
from model_training.data.splits import split_cases


def case(name: str, person: str) -> Case:
    """Return a case without files: splitting does not look at them."""
    return Case(name, person, (Path(f"{name}.nii.gz"),), Path(f"{name}_seg.nii.gz"))


def persons(number: int) -> list[Case]:
    """Return two cases of each of `number` persons."""
    return [case(f"p{n}{side}", f"p{n}") for n in range(number) for side in "lr"]


def write(root: Path, folds: object, test: object) -> None:
    """Write splits.json."""
    (root / "splits.json").write_text(json.dumps({"folds": folds, "test": test}))


def test_a_fifth_of_the_persons_is_drawn_for_the_test_set(tmp_path: Path) -> None:
    """Two of ten persons are the test set, the other eight are dealt to five folds; both cases of a person stay together."""
    splits = split_cases(tmp_path, persons(10))

    assert {split: len(cases) for split, cases in splits.items()} == {
        "fold1": 4,
        "fold2": 4,
        "fold3": 4,
        "fold4": 2,
        "fold5": 2,
        "test": 4,
    }
    of_split = [{one.person for one in cases} for cases in splits.values()]
    assert sum(map(len, of_split)) == len(set.union(*of_split)) == 10


def test_the_draw_is_the_same_in_any_order_of_the_cases(tmp_path: Path) -> None:
    """If the files are listed in another order, the same persons are held out."""
    first, second = split_cases(tmp_path, persons(10)), split_cases(tmp_path, persons(10)[::-1])

    assert {split: set(cases) for split, cases in first.items()} == {
        split: set(cases) for split, cases in second.items()
    }
    assert {one.person for one in first["test"]} == {"p4", "p6"}


def test_a_test_set_of_the_data_set_is_kept(tmp_path: Path) -> None:
    """If the data set has a test set of its own, all other persons are in the folds."""
    own = [case("t1", "T")]

    splits = split_cases(tmp_path, persons(5), own)

    assert splits["test"] == own
    assert [len(splits[f"fold{k}"]) for k in range(1, 6)] == [2, 2, 2, 2, 2]


def test_too_few_persons_are_refused(tmp_path: Path) -> None:
    """Five persons, one of them in the test set, would leave a fold empty."""
    with pytest.raises(DataError, match=r"holds 5 persons: too few for 5 folds and a test set"):
        split_cases(tmp_path, persons(5))


def test_a_person_of_the_folds_in_the_own_test_set_is_refused(tmp_path: Path) -> None:
    """A person in a fold and in the data set's own test set is refused."""
    with pytest.raises(DataError, match=r"Person p0 is in fold\d and in test: keep all scans"):
        split_cases(tmp_path, persons(5), [case("again", "p0")])


def test_listed_splits_take_precedence(tmp_path: Path) -> None:
    """splits.json lists cases or persons in its own order; all others are left out."""
    write(tmp_path, [["p2"], ["p1r", "p1l"]], ["p0l"])

    splits = split_cases(tmp_path, persons(4))

    names = {split: [one.name for one in cases] for split, cases in splits.items()}
    assert names == {"fold1": ["p2l", "p2r"], "fold2": ["p1r", "p1l"], "test": ["p0l"]}


def test_a_listed_split_may_name_the_own_test_set(tmp_path: Path) -> None:
    """splits.json may also list cases of the data set's own test set."""
    write(tmp_path, [["p0"]], ["T"])

    assert split_cases(tmp_path, persons(1), [case("t1", "T")])["test"] == [case("t1", "T")]


def test_a_listed_case_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A case of splits.json without files is found before training starts."""
    write(tmp_path, [["p0"]], ["p9"])

    with pytest.raises(
        DataError, match=r"splits\.json lists p9, but the data set holds no such case: restore its files"
    ):
        split_cases(tmp_path, persons(2))


def test_a_person_in_two_folds_is_refused(tmp_path: Path) -> None:
    """Two scans of one person in two folds are refused."""
    write(tmp_path, [["p0l"], ["p0r"]], ["p1"])

    with pytest.raises(DataError, match=r"Person p0 is in fold1 and in fold2: keep all scans"):
        split_cases(tmp_path, persons(2))


@pytest.mark.parametrize("content", ["{", "[]", '{"folds": [["p0"]]}', '{"folds": 3, "test": []}'])
def test_splits_that_cannot_be_read_are_refused(tmp_path: Path, content: str) -> None:
    """The message names the file and the expected format."""
    (tmp_path / "splits.json").write_text(content)

    with pytest.raises(
        DataError, match=r"splits\.json cannot be used .* expected {folds: \[\[name\]\], test: \[name\]}"
    ):
        split_cases(tmp_path, persons(2))
