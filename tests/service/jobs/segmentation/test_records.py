import sqlite3
import uuid
from collections.abc import Callable
from contextlib import closing

import pytest

from service.errors import (
    JobCancelled,
)
from service.jobs.segmentation.queue import SegmentationJobs
from service.jobs.segmentation.records import reject_cancelled
from tests.service.jobs.conftest import FakeExecutor, Submit


def pages(
    queue: SegmentationJobs, owner: str, limit: int, after_each: Callable[[], object] = lambda: None
) -> list[str]:
    """Return the ids of all pages in order."""
    identifiers: list[str] = []
    before = None
    while page := queue.page(owner, None, before, limit):
        identifiers += [job.id for job in page]
        before = (round(page[-1].created.timestamp() * 1000), page[-1].id)
        after_each()
    return identifiers


@pytest.mark.parametrize("limit", [1, 3, 7])
@pytest.mark.parametrize("milliseconds", [1, 0, 0.5], ids=["one each", "all in one", "two each"])
def test_pages_hold_every_job_once(
    queue: SegmentationJobs, executor: FakeExecutor, submit: Submit, limit: int, milliseconds: float
) -> None:
    """Seven jobs appear once each, newest first, even if several have one time stamp or more arrive meanwhile."""
    owner = f"pages-{uuid.uuid4().hex}"
    submit("slow")
    assert executor.entered.wait(10)
    jobs = [submit(f"{n}", owner=owner).id for n in range(7)]
    with closing(sqlite3.connect(queue.state.database, timeout=20)) as database, database:
        for n, job in enumerate(jobs):
            created = 1_700_000_000_123 + int(n * milliseconds)
            database.execute("UPDATE workflow_status SET created_at = ? WHERE workflow_uuid = ?", (created, job))

    listed = pages(queue, owner, limit, lambda: submit("new", owner=owner))

    assert listed == jobs[::-1]


def test_a_cancelled_or_unknown_workflow_is_rejected(
    queue: SegmentationJobs, executor: FakeExecutor, submit: Submit
) -> None:
    """A waiting workflow passes; a cancelled one, and one that was erased, do not."""
    submit("slow")
    assert executor.entered.wait(10)
    waiting = submit("waits").id
    reject_cancelled(waiting)

    queue.cancel("local", waiting)

    for identifier in (waiting, uuid.uuid4().hex):
        with pytest.raises(JobCancelled):
            reject_cancelled(identifier)
