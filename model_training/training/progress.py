"""Who watches a training run: live progress on the terminal or in a log, and TensorBoard."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from service.errors import SettingsError

LINE_EVERY_S = 10.0
"""Seconds between two plain lines."""


class Watcher(Protocol):
    """Hears of every step and of every look at the validation cases."""

    def step(self, step: int, epoch: float, terms: Mapping[str, float]) -> None:
        """Hear that a step is done: its number, how often each image was seen on average, the terms of its loss."""

    def validated(self, step: int, scores: Mapping[str, float]) -> None:
        """Hear what the validation cases scored after a step."""


class Progress:
    """Shows step, epoch, loss terms, validation DSC and ACE and the time left; a context manager."""

    def __init__(self, steps: int, *, shown: bool = True) -> None:
        """Prepare for a run of so many steps; of several processes only one shows anything."""
        self._steps = steps
        self._first: tuple[int, float] | None = None
        self._last_line = -LINE_EVERY_S
        self._scores = "not yet validated"
        self._console = Console(file=sys.stderr)
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        self._bar = Bar(*columns, console=self._console, disable=not (shown and self._console.is_terminal))
        self._plain = shown and not self._console.is_terminal
        self._task = self._bar.add_task("", total=steps)

    def __enter__(self) -> Self:
        """Start to draw."""
        self._bar.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop to draw."""
        self._bar.stop()

    def step(self, step: int, epoch: float, terms: Mapping[str, float]) -> None:
        """Show that a step is done."""
        losses = " ".join(f"{name} {value:.3f}" for name, value in terms.items())
        text = f"epoch {epoch:.1f} {losses} {self._scores}"
        self._bar.update(self._task, completed=step, description=text)
        now = time.monotonic()
        first_step, first_time = self._first = self._first or (step, now)
        if self._plain and (now - self._last_line >= LINE_EVERY_S or step == self._steps):
            self._last_line = now
            # A run that goes on from a checkpoint did not make its first steps in this process's time.
            seconds = (now - first_time) / max(step - first_step, 1) * (self._steps - step)
            left = f" {seconds:.0f} s left" if step > first_step else ""
            self._console.print(f"step {step}/{self._steps} {text}{left}", highlight=False, soft_wrap=True)

    def validated(self, step: int, scores: Mapping[str, float]) -> None:
        """Show what the validation cases scored from now on."""
        self._scores = f"validation {' '.join(f'{name} {value:.4f}' for name, value in scores.items())} at {step}"


class TensorBoard:
    """Writes loss terms and validation scores to an event file; a run that goes on writes on in the same folder."""

    def __init__(self, folder: Path) -> None:
        """Open the folder.

        Raises:
            SettingsError: tensorboard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            msg = "TensorBoard is not installed: pip install 'calibrant[training]'"
            raise SettingsError(msg) from error
        self._writer = SummaryWriter(folder)

    def step(self, step: int, epoch: float, terms: Mapping[str, float]) -> None:
        """Write the loss terms."""
        self._write("training", step, {**terms, "epoch": epoch})

    def validated(self, step: int, scores: Mapping[str, float]) -> None:
        """Write the scores, and everything so far to disk."""
        self._write("validation", step, scores)
        self._writer.flush()

    def _write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)
