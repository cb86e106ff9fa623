"""The table that a mode of the kit prints: row by row as it goes, and whole at the end."""

import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple


class Finding(NamedTuple):
    """What a row says."""

    text: str
    passed: bool | None = None
    """None if the row only states a figure."""


class Report:
    """Rows, printed at once and kept, also in a file, so that a run that is cut off leaves what it found."""

    def __init__(self, mode: str, folder: Path | None) -> None:
        """Start an empty table.

        Args:
            mode: check, bench or soak.
            folder: for the file `gpu-day-MODE.txt`; None for no file.
        """
        self._file = None if folder is None else folder / f"gpu-day-{mode}.txt"
        if self._file is not None:
            self._file.write_text("")
        self._rows: list[tuple[str, Finding]] = []
        self._started = time.monotonic()
        self.skipped = 0
        """Tests that a test run left out."""
        self.counted = [0, 0]
        """Tests that passed and failed."""

    def row(self, name: str, work: Callable[[], Finding]) -> None:
        """Do the work and add what it found; an error is a failure of this row alone."""
        try:
            finding = work()
        except Exception as error:  # noqa: BLE001 - one row must not end the others; the kit computes phantoms only
            self.say(traceback.format_exc())
            finding = Finding(
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", passed=False
            )
        self._rows.append((name, finding))
        self.say(f"[{time.monotonic() - self._started:5.0f} s] {_line(name, finding)}")

    def part(self, name: str, work: Callable[[], None]) -> None:
        """Do work that adds rows itself; an error outside them becomes a row that failed."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - as above
            self.row(name, partial(_raise, error))

    def say(self, text: str) -> None:
        """Print a line and write it to the file."""
        print(text, flush=True)
        if self._file is not None:
            with self._file.open("a") as file:
                file.write(text + "\n")

    def end(self) -> int:
        """Print the whole table and, last, the numbers; return the exit code, 0 if nothing failed and nothing was skipped."""
        self.say("")
        for name, finding in self._rows:
            self.say(_line(name, finding))
        checks = [finding.passed for _, finding in self._rows if finding.passed is not None]
        passed, failed = self.counted[0] + checks.count(True), self.counted[1] + checks.count(False)
        self.say(f"{time.monotonic() - self._started:.0f} s")
        self.say(f"{passed} passed, {failed} failed, {self.skipped} skipped")
        return int(bool(failed or self.skipped))


def _raise(error: Exception) -> Finding:
    raise error


def _line(name: str, finding: Finding) -> str:
    verdict = {None: "      ", True: "passed", False: "FAILED"}[finding.passed]
    return f"{verdict}  {name:<34}  {finding.text}"
