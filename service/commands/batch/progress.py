"""What a batch shows while it runs: a bar per scan on a terminal, one line per event elsewhere."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from service.commands.batch.journal import Line


class Display(Protocol):
    """Is told what happens; threads may share it."""

    def begin(self, case: str) -> None:
        """A case is begun."""

    def show(self, case: str, doing: str) -> None:
        """A case has come further."""

    def end(self, case: str, line: Line | None, *, before: bool = False) -> None:
        """A case is done as the line says, perhaps by an earlier run; without a line it was interrupted."""

    def say(self, text: str) -> None:
        """Say a sentence."""


class Plain:
    """One line per event."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._done = 0
        self._turn = threading.Lock()

    def begin(self, case: str) -> None:
        """Say that a case is begun."""
        self.say(f"{case}: begun")

    def show(self, case: str, doing: str) -> None:
        """Say nothing: stages would be many lines."""

    def end(self, case: str, line: Line | None, *, before: bool = False) -> None:
        """Say how a case ended, and how many have."""
        with self._turn:
            self._done += line is not None
            counted = f"[{self._done}/{self._total}] " if line else ""
            self.say(f"{counted}{case}: {outcome(line, before=before)}")

    def say(self, text: str) -> None:
        """Say a sentence."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._console.file.flush()


class Bars:
    """A bar for the batch and a row for each running case; what is done scrolls away above."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._all = progress.add_task("cases", total=total)
        self._rows: dict[str, TaskID] = {}

    def begin(self, case: str) -> None:
        """Add the case's row."""
        self._rows[case] = self._progress.add_task(f"{case}: begun", total=None)

    def show(self, case: str, doing: str) -> None:
        """Change the case's row."""
        self._progress.update(self._rows[case], description=f"{case}: {doing}")

    def end(self, case: str, line: Line | None, *, before: bool = False) -> None:
        """Turn the case's row into a line above the bars."""
        if case in self._rows:
            self._progress.remove_task(self._rows.pop(case))
        if line is not None:
            self._progress.advance(self._all)
        self.say(f"{case}: {outcome(line, before=before)}")

    def say(self, text: str) -> None:
        """Say a sentence above the bars."""
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
    """Say in a few words how a case ended."""
    if line is None:
        return "interrupted, left for the next run"
    if line.problem is None:
        return "done before" if before else f"succeeded in {line.seconds:.1f} s"
    return f"failed{' before' if before else ''}: {line.problem.title}: {line.problem.detail}"
