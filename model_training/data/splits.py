"""Splits cases into development folds and a test set, by person: all scans of a person are in one split."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from model_training.data.case import Case, DataError

FOLDS: Final = 5
"""Number of development folds, unless the data set defines its own."""

TEST_SHARE: Final = 0.2
"""Share of the persons in the test set, unless the data set defines its own."""

TEST: Final = "test"
"""Name of the test set among the splits; the folds are ``fold1`` .. ``foldN``."""


def split_cases(root: Path, cases: Sequence[Case], test: Sequence[Case] = ()) -> dict[str, list[Case]]:
    """Return the cases by split: as ``splits.json`` in the root lists them, or drawn by person, alike on every machine.

    Args:
        root: the data set. Its ``splits.json``, if present, lists cases or persons: {folds: [[name]], test: [name]}.
        cases: every labelled case except those of the data set's own test set.
        test: that test set, if its labels are public.

    Raises:
        DataError: splits.json is malformed, a listed case is missing, or a person is in two splits.
    """
    if (root / "splits.json").is_file():
        splits = _as_listed(root / "splits.json", [*cases, *test])
    else:
        splits = _drawn(cases, test)
    _reject_shared_persons(splits)
    return splits


def _as_listed(file: Path, cases: Sequence[Case]) -> dict[str, list[Case]]:
    try:
        listed = json.loads(file.read_bytes())
        names_of = {f"fold{k}": list(names) for k, names in enumerate(listed["folds"], start=1)} | {
            TEST: list(listed[TEST])
        }
    except (ValueError, KeyError, TypeError) as error:
        msg = f"{file} cannot be used ({error!r}): expected {{folds: [[name]], test: [name]}}."
        raise DataError(msg) from error
    by_name = _by_name(cases)
    for names in names_of.values():
        if missing := next((name for name in names if name not in by_name), None):
            msg = f"{file} lists {missing}, but the data set holds no such case: restore its files or take it out of the split."
            raise DataError(msg)
    # A list may name both a person and one of their cases; the case still counts once.
    return {
        split: list(dict.fromkeys(case for name in names for case in by_name[name]))
        for split, names in names_of.items()
    }


def _by_name(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """Return the cases by their own names and by those of the persons."""
    by_name: dict[str, list[Case]] = {}
    for case in cases:
        for name in {case.name, case.person}:
            by_name.setdefault(name, []).append(case)
    return by_name


def _drawn(cases: Sequence[Case], test: Sequence[Case]) -> dict[str, list[Case]]:
    persons = sorted({case.person for case in cases})
    shuffled = [persons[i] for i in np.random.default_rng(0).permutation(len(persons))]
    held_out = 0 if test else round(TEST_SHARE * len(shuffled))
    development = shuffled[held_out:]
    if len(development) < FOLDS:
        msg = f"The data set holds {len(persons)} persons: too few for {FOLDS} folds and a test set."
        raise DataError(msg)
    split_of = dict.fromkeys(shuffled[:held_out], TEST) | {
        person: f"fold{1 + index % FOLDS}" for index, person in enumerate(development)
    }
    splits: dict[str, list[Case]] = {f"fold{k}": [] for k in range(1, FOLDS + 1)} | {TEST: list(test)}
    for case in cases:
        splits[split_of[case.person]].append(case)
    return splits


def _reject_shared_persons(splits: dict[str, list[Case]]) -> None:
    split_of: dict[str, str] = {}
    for split, members in splits.items():
        for case in members:
            if split_of.setdefault(case.person, split) != split:
                msg = f"Person {case.person} is in {split_of[case.person]} and in {split}: keep all scans of a person in one split."
                raise DataError(msg)
