import time
from collections.abc import Sequence

import pytest

from service.jobs.segmentation import line as line_module
from service.jobs.segmentation.line import Line
from service.jobs.table import STARTED, WAITING, JobTable


class FakeTable(JobTable):
    """A queue in memory that counts its readings."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int]] = []
        self.waiting: list[tuple[str, int]] = []
        self.readings = 0

    def in_queue(self, queue: str, status: str) -> Sequence[tuple[str, int]]:
        """Return the jobs of a status."""
        assert queue == "queue"
        self.readings += status == WAITING
        return self.waiting if status == WAITING else self.started


@pytest.fixture
def table() -> FakeTable:
    """Return an empty queue."""
    return FakeTable()


@pytest.fixture
def line(table: FakeTable) -> Line:
    """Return the line of the queue, which is not yet read."""
    return Line(table, "queue", (1, 2, 3))


def no(_: str) -> bool:
    """Return that no job is computed."""
    return False


def test_f4_a_long_line_is_read_once_for_all_who_ask(table: FakeTable, line: Line) -> None:
    """A thousand questions about ten thousand jobs read the database once, also while jobs join and leave."""
    table.waiting = [(f"job {n}", 2) for n in range(10_000)]

    for n in range(1000):
        assert line.ahead_of(f"job {n}", 2, no) == n
        line.join(f"new {n}", 2)
        assert line.ahead_of(f"new {n}", 2, no) == 10_000 + n
        line.leave(f"job {9000 + n}")
        assert line.status_of(f"job {9000 + n}") is None

    assert table.readings == 1


def test_a_long_line_is_read_again_after_a_second(
    table: FakeTable, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Places move up once the reading is old; what had joined is then counted by the reading alone."""
    table.waiting = [(f"job {n}", 2) for n in range(1000)]
    assert line.ahead_of("job 500", 2, no) == 500
    line.join("new", 1)
    assert line.ahead_of("new", 1, no) == 0
    table.waiting = [("new", 1), *table.waiting[1:]]
    assert line.ahead_of("job 500", 2, no) == 500

    monkeypatch.setattr(line_module, "FRESH_S", 0.0)
    time.sleep(0.01)

    assert not line.is_fresh
    assert line.ahead_of("job 500", 2, no) == 500  # one left before it, an urgent one came
    assert line.ahead_of("new", 1, no) == 0
    assert line.status_of("job 0") is None


def test_a_short_line_is_always_exact(table: FakeTable, line: Line) -> None:
    """It is read again after each change, and only then."""
    table.waiting = [("a", 2), ("b", 2)]
    assert line.ahead_of("b", 2, no) == 1
    assert line.ahead_of("b", 2, no) == 1
    assert table.readings == 1
    table.waiting = [("b", 2)]
    line.leave("a")

    assert line.ahead_of("b", 2, no) == 0
    assert table.readings == 2


def test_a_started_job_may_still_wait(table: FakeTable, line: Line) -> None:
    """Of the jobs that have left the queue, the computed ones come first; all of them come before the queue."""
    table.started = [("next", 2), ("now", 2)]
    table.waiting = [("later", 2)]

    places = {job: line.ahead_of(job, 2, lambda other: other == "now") for job in ("now", "next", "later")}

    assert places == {"now": 0, "next": 1, "later": 2}
    assert (line.status_of("next"), line.status_of("later")) == (STARTED, WAITING)
    assert len(line.reading) == 3


def test_a_job_is_in_the_line_once(table: FakeTable, line: Line) -> None:
    """A job that leaves the queue between the two queries of a reading is counted once."""
    table.started = table.waiting = [("a", 2)]

    assert (line.status_of("a"), len(line.reading)) == (STARTED, 1)
