"""Compares a model with the one before it on the same cases: `python benchmarks/noninferiority.py BEFORE ... --after AFTER ...`.

Each file is a calibration card, the measurement that `calibrant crossvalidate` writes, or a run of `calibrant compare`, without a
temperature; packed or not. Persons are resampled, the same for both.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from page import publish, table
from trust import PAGE

from model_training.comparison.files import read_json
from model_training.comparison.run import Run
from service.bundle.card import CalibrationCard, CaseRecord, Measurement
from service.calibration.cohort import CaseSums, cohort_draws, person_weights

LIMITS = {"dsc": -0.005, "ace_macro": 0.03, "nll": 0.03, "brier": 0.03}
"""Largest accepted loss: of DSC in points, of the others as a share."""


def sums_of(files: Sequence[Path]) -> dict[str, CaseSums]:
    """Return the sums of each case, by its name, with the reference engine."""
    return {record.case: record.sums() for file in files for record in _records_of(read_json(file))}


def _records_of(content: bytes) -> Sequence[CaseRecord]:
    fields = json.loads(content).keys()
    if "measurements" in fields:
        return CalibrationCard.model_validate_json(content).measurements[0].cases
    if "configuration" in fields:
        return Run.model_validate_json(content).cases["1.0"]
    return Measurement.model_validate_json(content).cases


def rows_of(before: dict[str, CaseSums], after: dict[str, CaseSums]) -> list[list[str]]:
    """Return a row for each figure: before, after, change with its 95 % interval, and whether it is within the limit."""
    names = sorted(before.keys() & after.keys())
    one, other = ([sums[name] for name in names] for sums in (before, after))
    weights = person_weights(one, 0)
    first, second = cohort_draws(one, weights), cohort_draws(other, weights)
    rows = []
    for name, limit in LIMITS.items():
        change = second[name] - first[name] if name == "dsc" else second[name] / first[name] - 1
        low, high = np.quantile(change[1:], [0.025, 0.975])
        within = low >= limit if name == "dsc" else high <= limit
        scale, unit = 100, "points" if name == "dsc" else "%"
        rows.append(
            [
                name,
                f"{first[name][0]:.4f}",
                f"{second[name][0]:.4f}",
                f"{scale * change[0]:+.2f} {unit} ({scale * low:+.2f} to {scale * high:+.2f})",
                f"{scale * limit:+.1f} {unit}",
                "yes" if within else "no: the interval crosses it",
            ]
        )
    return rows


def main() -> None:
    """Print the table, and write it to the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path, nargs="+")
    parser.add_argument("--after", type=Path, nargs="+", required=True)
    parser.add_argument("--title", default="Clean cases")
    parser.add_argument("--write", action="store_true", help="write the table to docs/results/trust.md")
    arguments = parser.parse_args()
    before, after = sums_of(arguments.before), sums_of(arguments.after)
    shared = before.keys() & after.keys()
    persons = len({before[name].person for name in shared})
    head = ["figure", "before", "after", "change (95 %)", "limit", "whole interval within"]
    text = f"{len(shared)} cases of {persons} persons in both.\n\n{table(head, rows_of(before, after))}"
    publish(arguments.title, text, PAGE if arguments.write else None)


if __name__ == "__main__":
    main()
