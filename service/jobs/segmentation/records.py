"""What DBOS has recorded about the jobs: names, states and lists."""

from collections.abc import Iterator
from typing import Final

from dbos import DBOS, WorkflowStatus

from service.errors import JobCancelled
from service.jobs.table import Cursor, Filter, JobTable
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

_LONGEST_BATCH: Final = 1000
"""Jobs that are loaded at once if few of them fit."""


def newest_first(
    table: JobTable, owner: str, state: State | None, before: Cursor | None, batch: int
) -> Iterator[WorkflowStatus]:
    """Yield an owner's workflows, the newest first and those of one millisecond by id.

    Args:
        table: of the jobs.
        owner: whose.
        state: only those whose DBOS status may mean this state.
        before: only those older than this one.
        batch: workflows per query.
    """
    wanted = Filter(WORKFLOW, owner, STATUSES[state] if state else None, failed=state == "failed")
    while True:
        places = table.newest(wanted, before, batch)
        if places:
            identifiers = [identifier for _, identifier in places]
            loaded = {row.workflow_id: row for row in DBOS.list_workflows(workflow_ids=identifiers)}
            yield from (loaded[identifier] for identifier in identifiers if identifier in loaded)
            before = places[-1]
        if len(places) < batch:
            return
        batch = min(2 * batch, _LONGEST_BATCH)


def reject_cancelled(identifier: str) -> None:
    """Raise JobCancelled if a workflow was cancelled or erased."""
    status = DBOS.get_workflow_status(identifier)
    if status is None or status.status == "CANCELLED":
        msg = "The job was cancelled before it began."
        raise JobCancelled(msg)
