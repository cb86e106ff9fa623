"""Reads mutants in one process, for `coverage run`: `benchmarks/fuzz.py` calls it and prints what they reach.

What is checked in the sandbox runs here without one, so only mutants that are not expected to end a process are read.
"""

import sys
import tempfile
from pathlib import Path

from fuzz_files import mutant, valid_files

from service.errors import CalibrantError
from service.intake.decode import check_scan, decode_scan


def main() -> None:
    """Read the valid files and the first mutants of the formats that are given, after their number."""
    mutants, *formats = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutant"
        for form in formats:
            for content in [*valid_files(form), *(mutant(form, number) for number in range(int(mutants)))]:
                path.write_bytes(content)
                try:
                    check_scan(path)
                    decode_scan(path)
                except (CalibrantError, MemoryError):
                    continue


if __name__ == "__main__":
    main()
