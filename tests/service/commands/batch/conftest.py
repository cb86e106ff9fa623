"""Fixtures of the batch: a summary, a segmenter that computes nothing, a display that records."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from service.commands.batch.case import BatchCase
from service.commands.batch.journal import Line
from service.commands.batch.results import Segmented
from service.commands.batch.segmenter import Show
from service.schemas import Statement, Structure, Summary

IDENTITY = f"tiny-model@{'0' * 64}"


class FakeSegmenter:
    """Returns the scan's bytes as the mask; a scan that begins with an error's name raises that error."""

    identity = IDENTITY
    size: int | None = 1

    def __init__(self, summary: Summary) -> None:
        self.summary = summary
        self.calls: list[tuple[bytes, str]] = []
        self.raises: dict[bytes, BaseException] = {}
        self.during: Callable[[], object] = lambda: None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def segment(self, scan: Path, key: str, show: Show) -> Segmented:
        """Record the call and answer."""
        content = scan.read_bytes()
        self.calls.append((content, key))
        show("infer")
        self.during()
        if content in self.raises:
            raise self.raises[content]
        return Segmented(b"mask of " + content, b"confidence", self.summary)


class Told:
    """A display that records its calls."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str | None, bool]] = []
        self.said: list[str] = []

    def begin(self, case: str) -> None:
        """Ignore the call."""

    def show(self, case: str, activity: str) -> None:
        """Ignore the call."""

    def end(self, case: str, line: Line | None, *, before: bool = False) -> None:
        """Record the call."""
        self.ended.append((case, line.state if line else None, before))

    def say(self, text: str) -> None:
        """Record the call."""
        self.said.append(text)


@pytest.fixture
def summary() -> Summary:
    """Return a summary of two structures, one of them empty."""
    return Summary(
        model=IDENTITY,
        structures=[
            Structure(label=1, name="front", voxels=1234, volume_ml=1.234, mean_confidence=0.8765),
            Structure(label=2, name="back", voxels=0, volume_ml=0.0, mean_confidence=None),
        ],
        foreground_confidence=0.8765,
        statement=Statement(
            status="withdrawn",
            text="Withdrawn: unlike.",
            reasons=["extent along axis 1: 9.0 mm", "spacing"],
            dataset="d",
            split="s",
            protocol="held-out",
            n_persons=2,
            n_cases=2,
            date=dt.date(2026, 1, 31),
            engine="torch",
            precision="fp32",
            figures=None,
        ),
        warnings=["Two orientations."],
    )


@pytest.fixture
def segmenter(summary: Summary) -> FakeSegmenter:
    """Return a segmenter that computes nothing."""
    return FakeSegmenter(summary)


@pytest.fixture
def told() -> Told:
    """Return a display that records its calls."""
    return Told()


@pytest.fixture
def make_cases(tmp_path: Path) -> Callable[..., list[BatchCase]]:
    """Return the function that writes a file for each name, with the name as content, and makes cases of them."""

    def make(*names: str) -> list[BatchCase]:
        folder = tmp_path / "scans"
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / f"{name}.nii").write_text(name)
        return [BatchCase.of_file(name, folder / f"{name}.nii") for name in names]

    return make


@pytest.fixture
def make_line() -> Callable[..., Line]:
    """Return the function that makes a log line."""

    def make(case: str = "a", **fields: Any) -> Line:  # noqa: ANN401 - whatever the line's field holds
        return Line.model_validate(
            {
                "case": case,
                "key": "k",
                "input_sha256": "ab" * 32,
                "model": IDENTITY,
                "state": "failed" if fields.get("problem") else "succeeded",
                "attempt": 1,
                "finished": "2026-01-31T12:00:00Z",
                "seconds": 1.0,
                **fields,
            }
        )

    return make
