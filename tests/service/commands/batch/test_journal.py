from collections.abc import Callable
from pathlib import Path

import pytest

from service.commands.batch.journal import Journal, Line, Shard, key_of, read_lines
from service.errors import SettingsError

MakeLine = Callable[..., Line]

PROBLEM = {"type": "/problems/constant-volume", "title": "t", "status": 422, "detail": "d"}


def test_a_line_that_was_appended_is_read_again(tmp_path: Path, make_line: MakeLine) -> None:
    """This process reads an appended line at once, the next one from the file."""
    with Journal.open(tmp_path, Shard()) as journal:
        journal.append(make_line())
        assert journal.lines_of("a", "k") == [make_line()]
    with Journal.open(tmp_path, Shard()) as journal:
        assert journal.lines_of("a", "k") == [make_line()]
        assert journal.lines_of("a", "other") == []


def test_a_half_written_line_is_no_line_and_harms_none(tmp_path: Path, make_line: MakeLine) -> None:
    """A line that a kill left incomplete does not damage the next one."""
    with Journal.open(tmp_path, Shard()) as journal:
        journal.append(make_line("a"))
    with (tmp_path / "logs" / "batch.jsonl").open("a") as log:
        log.write(make_line("b").model_dump_json()[:50])
    with Journal.open(tmp_path, Shard()) as journal:
        journal.append(make_line("c"))

    assert [line.case for line in read_lines(tmp_path)] == ["a", "c"]


def test_a_second_batch_in_one_folder_is_refused(tmp_path: Path) -> None:
    """One process at a time may write a log; another shard has its own log."""
    with (
        Journal.open(tmp_path, Shard(1, 2)),
        Journal.open(tmp_path, Shard(2, 2)),
        pytest.raises(SettingsError, match=r"Another calibrant batch writes .*batch-1-of-2\.jsonl"),
        Journal.open(tmp_path, Shard(1, 2)),
    ):
        pass


def test_logs_are_read_together_in_the_order_of_time(tmp_path: Path, make_line: MakeLine) -> None:
    """Lines of other shards count, too."""
    for index, (case, second) in enumerate([("late", 9), ("early", 1)], 1):
        with Journal.open(tmp_path, Shard(index, 2)) as journal:
            journal.append(make_line(case, finished=f"2026-01-31T12:00:0{second}Z"))

    assert [line.case for line in read_lines(tmp_path)] == ["early", "late"]


def test_a_success_counts_while_its_files_are_as_they_were(tmp_path: Path, make_line: MakeLine) -> None:
    """A case whose result was changed or removed is segmented again."""
    (tmp_path / "f").write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    with Journal.open(tmp_path, Shard()) as journal:
        assert journal.finished("a", "k", retry_failed=False) is None
        journal.append(make_line(files={"f": empty}))
        assert journal.finished("a", "k", retry_failed=True) is not None
        (tmp_path / "f").write_bytes(b"changed")
        assert journal.finished("a", "k", retry_failed=False) is None
        (tmp_path / "f").unlink()
        assert journal.finished("a", "k", retry_failed=False) is None


@pytest.mark.parametrize(
    ("kind", "version", "final"),
    [
        ("constant-volume", None, True),
        ("constant-volume", "0.0.1", False),
        ("inference-crashed", None, False),
        ("decoder-crashed", None, False),
        ("decoder-deadline", None, False),
        ("payload-too-large", None, False),
        ("nobody-knows", None, False),
    ],
)
def test_only_a_fault_of_the_scan_is_not_tried_again(
    tmp_path: Path, make_line: MakeLine, kind: str, version: str | None, *, final: bool
) -> None:
    """Scan errors are final for the same version; crashes and time limits are not."""
    line = make_line(problem=PROBLEM | {"type": f"/problems/{kind}"}, **({"version": version} if version else {}))
    with Journal.open(tmp_path, Shard()) as journal:
        journal.append(line)
        assert (journal.finished("a", "k", retry_failed=False) is not None) is final
        assert journal.finished("a", "k", retry_failed=True) is None


def test_the_key_changes_with_all_that_changes_the_result() -> None:
    """The key depends on scan, model and options, and on nothing else."""
    keys = {key_of("a", "m", {}), key_of("b", "m", {}), key_of("a", "n", {}), key_of("a", "m", {"outputs": ["mask"]})}

    assert len(keys) == 4
    assert key_of("a", "m", {"x": 1, "y": 2}) == key_of("a", "m", {"y": 2, "x": 1})


@pytest.mark.parametrize("text", ["", "1", "0/4", "5/4", "1/0", "a/b", "-1/4", "1/4/2"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    """The message gives form and range of a shard."""
    with pytest.raises(ValueError, match="expected i/n with i from 1 to n"):
        Shard.parse(text)


def test_a_shard_names_its_log() -> None:
    """The log of an unsharded batch has the plain name."""
    assert (Shard.parse("1/1").log, Shard.parse("3/4").log) == ("batch.jsonl", "batch-3-of-4.jsonl")
