"""Watchers of a training run: live progress on the terminal or in a log, and TensorBoard."""

import sys
import time
from collections.abc import Mapping, Sequence
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
    """Is told of every step and every validation."""

    def step(self, step: int, epoch: float, terms: Mapping[str, float]) -> None:
        """Handle a completed step.

        Args:
            step: its number.
            epoch: how often each image has been drawn on average.
            terms: loss terms by name.
        """

    def validated(self, step: int, scores: Mapping[str, float]) -> None:
        """Handle the scores of the validation cases after a step."""


class Watchers:
    """Several watchers as one."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        """Keep the watchers, which are told in this order."""
        self._watchers = watchers

    def step(self, step: int, epoch: float, terms: Mapping[str, float]) -> None:
        """Tell each watcher of a step."""
        for watcher in self._watchers:
            watcher.step(step, epoch, terms)

    def validated(self, step: int, scores: Mapping[str, float]) -> None:
        """Tell each watcher of a validation."""
        for watcher in self._watchers:
            watcher.validated(step, scores)


class Progress:
    """Shows step, epoch, loss terms, validation DSC and ACE and the time left; a context manager."""

    def __init__(self, steps: int, *, shown: bool = True) -> None:
        """Prepare the display.

        Args:
            steps: of the whole run.
            shown: whether this process shows anything; of several processes only one does.
        """
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
        """Start the display."""
        self._bar.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the display."""
        self._bar.stop()

    def step(self, step: int, epoch: float, terms: Mapping[str, float]) -> None:
        """Show a completed step."""
        losses = " ".join(f"{name} {value:.3f}" for name, value in terms.items())
        text = f"epoch {epoch:.1f} {losses} {self._scores}"
        self._bar.update(self._task, completed=step, description=text)
        now = time.monotonic()
        first_step, first_time = self._first = self._first or (step, now)
        if self._plain and (now - self._last_line >= LINE_EVERY_S or step == self._steps):
            self._last_line = now
            # The steps before a checkpoint took no time of this process.
            seconds = (now - first_time) / max(step - first_step, 1) * (self._steps - step)
            left = f" {seconds:.0f} s left" if step > first_step else ""
            self._console.print(f"step {step}/{self._steps} {text}{left}", highlight=False, soft_wrap=True)

    def validated(self, step: int, scores: Mapping[str, float]) -> None:
        """Show these scores from now on."""
        self._scores = f"validation {' '.join(f'{name} {value:.4f}' for name, value in scores.items())} at {step}"


class TensorBoard:
    """Writes loss terms and validation scores to event files; a resumed run continues in the same folder."""

    def __init__(self, folder: Path) -> None:
        """Open the folder for event files.

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
        """Write the scores and flush to disk."""
        self._write("validation", step, scores)
        self._writer.flush()

    def _write(self, group: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)
