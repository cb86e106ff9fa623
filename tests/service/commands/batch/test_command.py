import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from service.commands.batch.case import BatchCase
from service.commands.batch.command import BatchRequest, run_command
from service.commands.batch.journal import Shard
from service.errors import ConstantVolume, ServerUnreachable, SourceError
from tests.service.commands.batch.conftest import FakeSegmenter

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(
    tmp_path: Path,
    segmenter: FakeSegmenter,
    make_cases: Callable[..., list[BatchCase]],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Return the function that runs the command over the scans a, b and c, and returns exit code and output."""
    make_cases("a", "b", "c")
    monkeypatch.setattr("service.commands.batch.command.Local", lambda *_: segmenter)
    monkeypatch.setattr(sys, "argv", ["/bin/calibrant", "batch", "my scans", "-o", "out"])

    def start(**options: Any) -> tuple[int, str]:  # noqa: ANN401 - of the request
        file = io.StringIO()
        request = BatchRequest(**{"source": tmp_path / "scans", "out": tmp_path / "out", "url": None, **options})
        return run_command(request, Console(file=file, width=200)), file.getvalue()

    return start


def test_a_batch_says_what_it_does_and_what_came_of_it(run: Run, tmp_path: Path, segmenter: FakeSegmenter) -> None:
    """The output has model, notice, a line per case, the totals and the tables' paths."""
    code, said = run()
    out = tmp_path / "out"

    assert code == 0
    assert said.startswith(f"3 cases; {segmenter.identity} on this machine. For research use only.")
    assert "[3/3] c: succeeded in" in said
    assert "3 of 3 cases succeeded, 0 failed, 0 are left." in said
    assert f"Tables: {out / 'cases.csv'}" in said
    assert {path.name for path in out.iterdir()} == {
        *("a", "b", "c", "logs", "cases.csv", "structures.csv"),
        *("dataset_description.json", "README.md", ".bidsignore"),
    }
    assert "(3 cases were done before)" in run()[1]


def test_a_dry_run_writes_nothing(run: Run, tmp_path: Path, segmenter: FakeSegmenter) -> None:
    """A dry run lists cases and omitted files with reasons, and does not even look for a model."""
    (tmp_path / "scans" / "notes.txt").touch()
    code, said = run(dry_run=True, shard=Shard(2, 3))

    assert (code, segmenter.calls) == (0, [])
    assert "b.nii" in said
    assert "a.nii" not in said
    assert "left out: not a scan" in said
    assert "3 cases, 1 files left out." in said
    assert not (tmp_path / "out").exists()


def test_nothing_to_do_is_an_error(run: Run) -> None:
    """The error gives the number of omitted files."""
    with pytest.raises(SourceError, match=r"3 files were left out\. --dry-run shows which and why"):
        run(pattern="*.mha")


def test_failures_are_listed_at_the_end(run: Run, segmenter: FakeSegmenter) -> None:
    """Failures are listed with title and detail."""
    segmenter.raises[b"b"] = ConstantVolume("All are 42.")
    code, said = run()

    assert code == 4
    assert "2 of 3 cases succeeded, 1 failed, 0 are left." in said
    assert "  b: The volume holds one intensity only: All are 42." in said


def test_a_batch_that_ends_early_says_how_to_go_on(
    run: Run, segmenter: FakeSegmenter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The output quotes the command to run again; the tables hold the finished cases."""
    segmenter.raises[b"b"] = ServerUnreachable("gone")
    request = BatchRequest(tmp_path / "scans", tmp_path / "out", None)
    with pytest.raises(ServerUnreachable):
        run_command(request, Console())

    assert "Go on with: calibrant batch 'my scans' -o out\n" in capsys.readouterr().out
    assert (tmp_path / "out" / "cases.csv").read_text().count("\n") == 2
    segmenter.raises.clear()
    assert "(1 cases were done before)" in run()[1]


def test_a_shard_does_its_part(run: Run, segmenter: FakeSegmenter) -> None:
    """A shard segments its part and says which."""
    _, said = run(shard=Shard(3, 3))

    assert said.startswith("1 cases, shard 3 of 3;")
    assert [content for content, _ in segmenter.calls] == [b"c"]
