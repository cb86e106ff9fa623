"""Add up the reports of several pytest runs, and say in one line what they left out and how to get it."""

import re
import sys
from collections import Counter
from pathlib import Path

HOW = {
    "CALIBRANT_DATA": "real scans: set CALIBRANT_DATA to their folder (docs/data.md)",
    "CUDA": "a CUDA device",
}


def reasons(report: str) -> Counter[str]:
    """Return how many tests a report (`pytest -ra`) skipped for each reason."""
    counted: Counter[str] = Counter()
    for number, reason in re.findall(r"^SKIPPED \[(\d+)\] \S+?(?::\d+)?: (.*)$", report, re.MULTILINE):
        said = re.sub(r" is (absent|not installed)", "", reason)
        counted[next((how for word, how in HOW.items() if word in reason), said)] += int(number)
    return counted


def outcomes(report: str) -> Counter[str]:
    """Return the numbers of the last line of a report, such as `3 failed, 20 passed, 1 skipped in 2.1s`."""
    (*_, last) = ["", *re.findall(r"^=* ?(\d+ \w+[^=\n]*?) in [\d.]+s", report, re.MULTILINE)]
    return Counter({word: int(number) for number, word in re.findall(r"(\d+) (\w+)", last)})


def main() -> None:
    """Print the sums of the reports that are named on the command line."""
    reports = [Path(path).read_text(errors="replace") for path in sys.argv[1:]]
    total = sum((outcomes(report) for report in reports), Counter[str]())
    failed = total["failed"] + total["error"] + total["errors"]
    print(f"{total['passed']} passed, {failed} failed, {total['skipped']} skipped")
    left_out = sum((reasons(report) for report in reports), Counter[str]())
    if left_out:
        print("Left out: " + "; ".join(f"{n} that need {reason}" for reason, n in left_out.most_common()))


if __name__ == "__main__":
    main()
