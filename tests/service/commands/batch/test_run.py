import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service import errors
from service.commands.batch.case import BatchCase
from service.commands.batch.journal import Journal, Shard, read_lines
from service.commands.batch.run import Batch, Tally, shard_of
from tests.service.commands.batch.conftest import FakeSegmenter, Told

MakeCases = Callable[..., list[BatchCase]]


@pytest.fixture
def run(tmp_path: Path, segmenter: FakeSegmenter, told: Told) -> Callable[..., Tally]:
    """Return the function that runs a batch over cases."""

    def start(cases: list[BatchCase], **options: Any) -> Tally:  # noqa: ANN401 - of the batch
        with Journal.open(tmp_path / "out", Shard()) as journal:
            return Batch(tmp_path / "out", segmenter, journal, told, **options).run(cases)

    return start


def test_what_is_done_is_not_done_again(
    run: Callable[..., Tally],
    make_cases: MakeCases,
    segmenter: FakeSegmenter,
    tmp_path: Path,
) -> None:
    """A second run only computes cases whose scan or result has changed."""
    cases = make_cases("a", "b")
    assert run(cases).exit_code == 0
    again = run(cases)

    assert (again.before, len(segmenter.calls)) == ({"a", "b"}, 2)
    cases[0].files[0].write_text("changed")
    next((tmp_path / "out" / "b").glob("*_dseg.nii.gz")).write_text("damaged")
    assert run(cases).before == set()
    assert [content for content, _ in segmenter.calls[2:]] == [b"changed", b"b"]


def test_a_bad_scan_stops_nobody(
    run: Callable[..., Tally], make_cases: MakeCases, segmenter: FakeSegmenter, told: Told
) -> None:
    """A scan error is recorded and the other cases are done; it is only retried on request."""
    segmenter.raises[b"b"] = errors.ConstantVolume("All are 42.")
    cases = make_cases("a", "b", "c")
    tally = run(cases)

    assert tally.exit_code == 4
    (failed,) = tally.failed
    assert failed.problem is not None
    assert (failed.case, failed.problem.type, failed.problem.detail) == (
        "b",
        "/problems/constant-volume",
        "All are 42.",
    )
    assert sorted(told.ended) == [("a", "succeeded", False), ("b", "failed", False), ("c", "succeeded", False)]
    assert run(cases).exit_code == 4
    assert len(segmenter.calls) == 3
    run(cases, retry_failed=True)
    assert len(segmenter.calls) == 4
    del segmenter.raises[b"b"]
    assert run(cases, retry_failed=True).exit_code == 0


def test_every_attempt_has_a_key_of_its_own(
    run: Callable[..., Tally], make_cases: MakeCases, segmenter: FakeSegmenter
) -> None:
    """A recorded failure makes the next run submit a new job; without a record it finds the first job."""
    cases = make_cases("a")
    segmenter.raises[b"a"] = errors.ServerProblem("x", 500, problem_type="/problems/inference-crashed")
    assert run(cases).exit_code == 5
    segmenter.raises[b"a"] = errors.ServerUnreachable("x")
    with pytest.raises(errors.ServerUnreachable):
        run(cases)
    del segmenter.raises[b"a"]
    assert run(cases).exit_code == 0

    first, second, third = (key for _, key in segmenter.calls)
    assert first != second == third


@pytest.mark.parametrize(
    "error",
    [
        errors.ServerUnreachable("x"),
        errors.ServerProblem("x", 503),
        errors.ServerProblem("x", 401, problem_type="/problems/unauthorized"),
        errors.ServerProblem("x", 404, problem_type="/problems/model-not-found"),
        errors.BundleIntegrity("x"),
    ],
)
def test_what_no_other_scan_could_change_ends_the_batch(
    run: Callable[..., Tally],
    make_cases: MakeCases,
    segmenter: FakeSegmenter,
    tmp_path: Path,
    error: errors.CalibrantError,
) -> None:
    """An error that every case would meet is raised, recorded for no case, and no further case begins."""
    segmenter.raises[b"b"] = error
    with pytest.raises(type(error)):
        run(make_cases("a", "b", "c"))

    assert [line.case for line in read_lines(tmp_path / "out")] == ["a"]
    assert len(segmenter.calls) == 2


def test_a_scan_that_cannot_be_read_is_a_failure_of_its_own(run: Callable[..., Tally], make_cases: MakeCases) -> None:
    """A missing file is recorded, retried by the next run, and does not end the batch."""
    cases = make_cases("a", "b")
    cases[0].files[0].unlink()
    tally = run(cases)

    assert tally.exit_code == 4
    assert tally.failed[0].problem is not None
    assert "cannot be read (No such file or directory)" in tally.failed[0].problem.detail
    assert run(make_cases("a", "b")).exit_code == 0


def test_a_full_disk_ends_the_batch_with_a_sentence(
    run: Callable[..., Tally], make_cases: MakeCases, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A full disk ends the batch, and no case is recorded as failed."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "out" / "a"))

    cases = make_cases("a", "b")
    with monkeypatch.context() as broken:
        broken.setattr("service.commands.batch.run.write_results", fail)
        with pytest.raises(errors.SettingsError, match="No space left on device"):
            run(cases)

    assert read_lines(tmp_path / "out") == []
    assert run(cases).exit_code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_finishes_the_running_case_and_begins_no_other(
    run: Callable[..., Tally],
    make_cases: MakeCases,
    segmenter: FakeSegmenter,
    told: Told,
    number: int,
) -> None:
    """The exit code is 130; a decoder that died of the same Ctrl-C does not count as a failure of its scan."""

    def interrupt() -> None:
        heard = len(told.said)
        os.kill(os.getpid(), number)
        while len(told.said) == heard:
            time.sleep(0.001)

    segmenter.during = interrupt
    before = signal.getsignal(number)
    tally = run(make_cases("a", "b"))

    assert (tally.exit_code, list(tally.lines)) == (130, ["a"])
    assert told.said[0].startswith("Interrupted: the cases in flight are finished first.")
    assert signal.getsignal(number) is before

    segmenter.raises[b"b"] = errors.DecoderCrashed("x")
    assert list(run(make_cases("b")).lines) == []


def test_several_cases_are_in_flight_at_once(
    run: Callable[..., Tally], make_cases: MakeCases, segmenter: FakeSegmenter
) -> None:
    """With three jobs, three cases meet at a barrier, which single ones would never pass."""
    barrier = threading.Barrier(3, timeout=20)
    segmenter.during = barrier.wait

    assert run(make_cases("a", "b", "c"), jobs=3).exit_code == 0


def test_a_reference_that_does_not_fit_is_a_note_not_a_failure(
    run: Callable[..., Tally], make_cases: MakeCases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mask is written, and the missing DSC explained by a note."""

    def refuse(*_: object) -> None:
        raise errors.SourceError("Expected one grid.")  # noqa: EM101, TRY003 - a test's message

    monkeypatch.setattr("service.commands.batch.run.dsc_of", refuse)
    (case,) = make_cases("a")
    tally = run([replace(case, reference=tmp_path / "r.nii")])

    assert (tally.exit_code, tally.lines["a"].note, tally.lines["a"].dsc) == (0, "Expected one grid.", None)


def test_shards_share_out_the_cases(make_cases: MakeCases) -> None:
    """Every case is in exactly one shard, whatever the order of the cases."""
    cases = make_cases(*"hgfedcba")
    parts = [[case.id for case in shard_of(cases, Shard(i, 3))] for i in (1, 2, 3)]

    assert parts == [["a", "d", "g"], ["b", "e", "h"], ["c", "f"]]


def test_the_log_is_plain_json(
    run: Callable[..., Tally], make_cases: MakeCases, tmp_path: Path, segmenter: FakeSegmenter
) -> None:
    """A line holds case, input, model, state and the hash of every file."""
    run(make_cases("a"))
    (line,) = (json.loads(text) for text in (tmp_path / "out" / "logs" / "batch.jsonl").read_text().splitlines())

    assert (line["case"], line["state"], line["model"], line["attempt"]) == ("a", "succeeded", segmenter.identity, 1)
    assert len(line["files"]) == 5
    assert set(line["files"]) >= {line["sidecar"]}
