import builtins
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model_training.training import progress as progress_module
from model_training.training.progress import Progress, TensorBoard
from service.errors import SettingsError


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        """Start at a time that no machine's uptime is below."""
        self.now = 1000.0

    def monotonic(self) -> float:
        """Return the time in seconds."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock that the progress display reads."""
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def test_a_log_gets_a_line_every_ten_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """With a step per second, a log gets the first, eleventh and last step, with epoch, terms, scores and time left."""
    with Progress(13) as progress:
        for step in range(1, 14):
            clock.now += 1
            progress.step(step, step / 4, {"total": 0.5, "ace": 0.0625})
            if step == 2:
                progress.validated(step, {"dsc": 0.81234, "ace": 0.02})

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "step 1/13 epoch 0.2 total 0.500 ace 0.062 not yet validated",
        "step 11/13 epoch 2.8 total 0.500 ace 0.062 validation dsc 0.8123 ace 0.0200 at 2 2 s left",
        "step 13/13 epoch 3.2 total 0.500 ace 0.062 validation dsc 0.8123 ace 0.0200 at 2 0 s left",
    ]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal the bar shows the terms, and no plain lines are written."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with Progress(2) as progress:
        progress.step(1, 0.5, {"total": 0.5})
        progress.validated(1, {"dsc": 0.75})
        progress.step(2, 1.0, {"total": 0.25})

    written = capsys.readouterr().err
    assert "epoch 1.0 total 0.250 validation dsc 0.7500 at 1" in written
    assert "━" in written
    assert "s left" not in written


def test_a_resumed_run_counts_only_its_own_time(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Resumed at step 91 of 100 with 10 s per step, 80 s are left after two steps: the first 90 do not count."""
    with Progress(100) as progress:
        progress.step(91, 1.0, {"total": 0.5})
        clock.now += 10
        progress.step(92, 1.0, {"total": 0.5})

    assert capsys.readouterr().err.splitlines()[-1].endswith(" 80 s left")


def test_only_one_of_several_processes_shows_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process that is not shown writes neither lines nor a bar."""
    for terminal in ("", "1"):
        monkeypatch.setenv("FORCE_COLOR", terminal)
        with Progress(1, shown=False) as progress:
            progress.step(1, 1.0, {"total": 0.5})

    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_tensorboard_shows_every_term_and_score(tmp_path: Path) -> None:
    """Terms of two steps and scores of one validation are read back from the event files by name."""
    board = TensorBoard(tmp_path / "events")
    board.step(1, 0.5, {"total": 1.5, "ace": 0.25})
    board.step(2, 1.0, {"total": 1.25, "ace": 0.125})
    board.validated(2, {"dsc": 0.75, "ace": 0.0625})

    assert scalars(tmp_path / "events") == {
        "training/total": [(1, 1.5), (2, 1.25)],
        "training/ace": [(1, 0.25), (2, 0.125)],
        "training/epoch": [(1, 0.5), (2, 1.0)],
        "validation/dsc": [(2, 0.75)],
        "validation/ace": [(2, 0.0625)],
    }


def test_a_resumed_run_continues_the_events(tmp_path: Path) -> None:
    """A resumed run adds its steps to the events in the same folder."""
    for step in (1, 2):
        board = TensorBoard(tmp_path)
        board.step(step, 1.0, {"total": step / 2})
        board.validated(step, {})

    assert scalars(tmp_path)["training/total"] == [(1, 0.5), (2, 1.0)]


def test_without_tensorboard_the_message_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If TensorBoard is missing, the message says how to install it."""
    imported = builtins.__import__

    def without(name: str, *arguments: object, **keywords: object) -> object:
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return imported(name, *arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)

    with pytest.raises(SettingsError, match=r"pip install 'calibrant\[training\]'"):
        TensorBoard(tmp_path)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return step and value of every scalar in the folder's event files, by tag."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
