"""Live progress of a training run: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LINE_EVERY_S = 10.0
"""Seconds between two plain lines."""


class Progress:
    """Shows step, loss terms, validation DSC and time left; a context manager."""

    def __init__(self, steps: int) -> None:
        """Prepare for a run of so many steps."""
        self._steps = steps
        self._started = time.monotonic()
        self._last_line = -LINE_EVERY_S
        self._dsc = "-"
        self._console = Console(file=sys.stderr)
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        self._bar = Bar(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("", total=steps)

    def __enter__(self) -> Self:
        """Start to draw."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop to draw."""
        self._bar.stop()

    def step(self, step: int, terms: dict[str, float]) -> None:
        """Show that a step is done, with the terms of its loss."""
        text = " ".join(f"{name} {value:.3f}" for name, value in terms.items()) + f" validation DSC {self._dsc}"
        self._bar.update(self._task, completed=step, description=text)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._last_line >= LINE_EVERY_S or step == self._steps):
            self._last_line = now
            left = (now - self._started) / step * (self._steps - step)
            self._console.print(f"step {step}/{self._steps} {text} {left:.0f} s left", highlight=False, soft_wrap=True)

    def validated(self, step: int, dsc: float) -> None:
        """Show the validation DSC that was reached at a step."""
        self._dsc = f"{dsc:.4f} at {step}"
