"""Compares a model with the one before it on the same cases: `python benchmarks/noninferiority.py BEFORE AFTER`.

Both are calibration cards. Persons are resampled, the same for both.
"""

import argparse
from pathlib import Path

import numpy as np
from page import publish, table
from trust import PAGE

from service.bundle.card import CalibrationCard
from service.calibration.cohort import CaseSums, cohort_draws, person_weights

LIMITS = {"dsc": -0.005, "ace_macro": 0.03, "nll": 0.03, "brier": 0.03}
"""Largest accepted loss: of DSC in points, of the others as a share."""


def sums_of(card: Path) -> dict[str, CaseSums]:
    """Return the sums of each case of a card, by its name, with the reference engine."""
    records = CalibrationCard.model_validate_json(card.read_bytes()).measurements[0].cases
    return {record.case: record.sums() for record in records}


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
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
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
