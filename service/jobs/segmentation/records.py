"""What DBOS has recorded about the jobs: names, states and lists."""

import datetime as dt
from collections.abc import Iterator
from typing import Final

from dbos import DBOS, WorkflowStatus

from service.errors import JobCancelled
from service.schemas import State

QUEUE: Final = "segmentations"
WORKFLOW: Final = "segment"
"""DBOS's name of the workflow; other jobs have other names."""

STATUSES: Final[dict[State, list[str]]] = {
    "queued": ["ENQUEUED", "DELAYED", "PENDING"],
    "running": ["PENDING"],
    "succeeded": ["SUCCESS"],
    "failed": ["SUCCESS", "ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"],
    "cancelled": ["CANCELLED"],
}
"""DBOS statuses that a job's state may have.

The workflow of a failed job succeeds: its output is the failure. A pending one may still wait for the case before it.
"""

Cursor = tuple[int, str]
"""Place of a job in the list: milliseconds of its creation, id."""


def newest_first(owner: str, state: State | None, before: Cursor | None, batch: int) -> Iterator[WorkflowStatus]:
    """Yield an owner's workflows, the newest first and those of one millisecond by id, which DBOS leaves unordered.

    Args:
        owner: whose.
        state: only those whose DBOS status may mean this state.
        before: only those older than this one.
        batch: workflows per query.
    """
    while True:
        rows = DBOS.list_workflows(
            name=WORKFLOW,
            user=owner,
            status=STATUSES[state] if state else None,
            # Up to and including that millisecond; DBOS cuts off fractions.
            end_time=dt.datetime.fromtimestamp((before[0] + 0.5) / 1000, dt.UTC).isoformat() if before else None,
            sort_desc=True,
            limit=batch,
        )
        is_last = len(rows) < batch
        rows.sort(key=_cursor, reverse=True)
        # The next batch may hold more of the oldest millisecond.
        complete = [row for row in rows if is_last or row.created_at != rows[-1].created_at]
        following = [row for row in complete if before is None or _cursor(row) < before]
        yield from following
        if is_last:
            return
        if following:
            before = _cursor(following[-1])
        else:
            batch *= 2


def reject_cancelled(identifier: str) -> None:
    """Raise JobCancelled if a workflow was cancelled or erased."""
    status = DBOS.get_workflow_status(identifier)
    if status is None or status.status == "CANCELLED":
        msg = "The job was cancelled before it began."
        raise JobCancelled(msg)


def _cursor(status: WorkflowStatus) -> Cursor:
    return status.created_at or 0, status.workflow_id
