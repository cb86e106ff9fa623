"""Shows the progress of a batch: progress bars on a terminal, one line per event elsewhere."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from service.commands.batch.journal import Line


class Display(Protocol):
    """Shows what happens to the cases; threads may share it."""

    def begin(self, case: str) -> None:
        """Show that a case begins."""

    def show(self, case: str, activity: str) -> None:
        """Show what is being done with a case."""

    def end(self, case: str, line: Line | None, *, before: bool = False) -> None:
        """Show how a case ended, perhaps in an earlier run; without a line it was interrupted."""

    def say(self, text: str) -> None:
        """Show a sentence."""


class Plain:
    """One line per event."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._done = 0
        self._turn = threading.Lock()

    def begin(self, case: str) -> None:
        """Print that a case begins."""
        self.say(f"{case}: begun")

    def show(self, case: str, activity: str) -> None:
        """Print nothing: the stages would be too many lines."""

    def end(self, case: str, line: Line | None, *, before: bool = False) -> None:
        """Print how a case ended, and how many have."""
        with self._turn:
            self._done += line is not None
            count = f"[{self._done}/{self._total}] " if line else ""
            self.say(f"{count}{case}: {outcome(line, before=before)}")

    def say(self, text: str) -> None:
        """Print a sentence."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._console.file.flush()


class Bars:
    """A bar for the batch and a row for each running case; lines about finished cases scroll above them."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._all = progress.add_task("cases", total=total)
        self._rows: dict[str, TaskID] = {}

    def begin(self, case: str) -> None:
        """Add the case's row."""
        self._rows[case] = self._progress.add_task(f"{case}: begun", total=None)

    def show(self, case: str, activity: str) -> None:
        """Change the case's row."""
        self._progress.update(self._rows[case], description=f"{case}: {activity}")

    def end(self, case: str, line: Line | None, *, before: bool = False) -> None:
        """Replace the case's row by a line above the bars."""
        if case in self._rows:
            self._progress.remove_task(self._rows.pop(case))
        if line is not None:
            self._progress.advance(self._all)
        self.say(f"{case}: {outcome(line, before=before)}")

    def say(self, text: str) -> None:
        """Print a sentence above the bars."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def display(console: Console, total: int) -> Iterator[Display]:
    """Yield the display that fits the console."""
    if not console.is_terminal:
        yield Plain(console, total)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bars(progress, total)


def outcome(line: Line | None, *, before: bool) -> str:
    """Return in a few words how a case ended."""
    if line is None:
        return "interrupted, left for the next run"
    if line.problem is None:
        verdict = " - WITHDRAWN, see the tables" if line.statement == "withdrawn" else ""
        return f"{'done before' if before else f'succeeded in {line.seconds:.1f} s'}{verdict}"
    return f"failed{' before' if before else ''}: {line.problem.title}: {line.problem.detail}"
