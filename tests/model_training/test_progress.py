from types import SimpleNamespace

import pytest

from model_training import progress as progress_module
from model_training.progress import Progress


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
    """Of steps a second apart the first, the eleventh and the last are written, with terms, DSC and time left."""
    with Progress(13) as progress:
        for step in range(1, 14):
            clock.now += 1
            progress.step(step, {"total": 0.5, "ace": 0.0625})
            if step == 2:
                progress.validated(step, 0.81234)

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "step 1/13 total 0.500 ace 0.062 validation DSC - 12 s left",
        "step 11/13 total 0.500 ace 0.062 validation DSC 0.8123 at 2 2 s left",
        "step 13/13 total 0.500 ace 0.062 validation DSC 0.8123 at 2 0 s left",
    ]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal the bar holds the terms, and no plain line is written beside it."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with Progress(2) as progress:
        progress.step(1, {"total": 0.5})
        progress.validated(1, 0.75)
        progress.step(2, {"total": 0.25})

    written = capsys.readouterr().err
    assert "total 0.250 validation DSC 0.7500 at 1" in written
    assert "━" in written
    assert "s left" not in written
