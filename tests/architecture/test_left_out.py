"""The last line of `make test` adds up what was left out, and says how to get it."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "left_out.py"

FIRST = """
SKIPPED [2] tests/a.py:3: /data/ACDC is absent: set CALIBRANT_DATA to the folder that holds ACDC
SKIPPED [1] tests/b.py: no CUDA device
============ 10 passed, 3 skipped in 1.20s ============
"""
SECOND = """
SKIPPED [1] tests/c.py:9: Orthanc is absent: apt-get install orthanc
SKIPPED [4] tests/d.py:9: /data/x is absent: set CALIBRANT_DATA to the folder that holds x
FAILED tests/e.py::test_it - assert 1 == 2
1 failed, 5 passed, 5 skipped, 2 errors in 61.00s (0:01:01)
"""


def test_reports_are_added_up(tmp_path: Path) -> None:
    """Errors count as failures; each reason stands once, the most frequent first."""
    for name, text in {"first": FIRST, "second": SECOND}.items():
        (tmp_path / name).write_text(text)

    command = [sys.executable, str(SCRIPT), str(tmp_path / "first"), str(tmp_path / "second")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert printed.splitlines() == [
        "15 passed, 3 failed, 8 skipped",
        (
            "Left out: 6 that need real scans: set CALIBRANT_DATA to their folder (docs/data.md); "
            "1 that need a CUDA device; 1 that need Orthanc: apt-get install orthanc"
        ),
    ]


def test_a_run_that_printed_nothing_counts_nothing(tmp_path: Path) -> None:
    """A run that broke off is told by the exit status, not here."""
    (tmp_path / "broken").write_text("Traceback ...")

    printed = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "broken")], capture_output=True, text=True, check=True
    ).stdout

    assert printed == "0 passed, 0 failed, 0 skipped\n"
