"""Questions about the jobs that DBOS's interface answers too slowly: asked in SQL, each by an index of its own.

DBOS owns the tables and writes them; nothing here does. Whatever a question needs grows with the answer, not with the
number of jobs.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from service.jobs.database import JobDatabase

Cursor = tuple[int, str]
"""Place of a job in the list: milliseconds of its creation, id."""

WAITING: Final = "ENQUEUED"
STARTED: Final = "PENDING"
"""Status of a workflow that waits in its queue, and of one that has left it."""

_NO_FAILURE: Final = '%"failure":null%'
"""In the output of a workflow that has succeeded."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which jobs.

    Args:
        name: DBOS's name of the workflow.
        owner: whose.
        statuses: DBOS's statuses; None for all.
        failed: whether those that ended well may be left out.
    """

    name: str
    owner: str
    statuses: Sequence[str] | None = None
    failed: bool = False


class JobTable:
    """Reads DBOS's tables."""

    def __init__(self, database: JobDatabase) -> None:
        self._database = database
        self._jobs = _table(
            database.schema,
            "workflow_status",
            *("workflow_uuid", "status", "name", "authenticated_user", "queue_name", "priority", "created_at"),
            *("inputs", "output"),
        )
        self._inputs = _table(database.schema, "workflow_input", "workflow_uuid", "inputs")
        self._outputs = _table(database.schema, "workflow_output", "workflow_uuid", "output")

    def prepare(self) -> None:
        """Create the indexes; DBOS has created its tables."""
        schema = f"{self._database.schema}." if self._database.schema else ""
        jobs, inputs, scan = f"{schema}workflow_status", f"{schema}workflow_input", self._scan_of("inputs")
        columns = "authenticated_user, name, created_at, workflow_uuid"
        self._database.index(
            [
                f"CREATE INDEX IF NOT EXISTS calibrant_newest ON {jobs} ({columns})",
                f"CREATE INDEX IF NOT EXISTS calibrant_scan ON {inputs} (({scan}))",
                f"CREATE INDEX IF NOT EXISTS calibrant_scan_then ON {jobs} (({scan})) WHERE inputs IS NOT NULL",
            ]
        )

    def in_queue(self, queue: str, status: str) -> Sequence[tuple[str, int]]:
        """Return ids and priorities of a queue's jobs of one status, in the order in which DBOS takes them."""
        jobs = self._jobs
        found = self._database.rows(
            sa.select(jobs.c.workflow_uuid, jobs.c.priority)
            .where(jobs.c.queue_name == queue, jobs.c.status == sa.literal_column(f"'{status}'"))
            .order_by(jobs.c.priority, jobs.c.created_at)
        )
        return [(identifier, priority or 0) for identifier, priority in found]

    def newest(self, wanted: Filter, before: Cursor | None, limit: int) -> list[Cursor]:
        """Return the places of the newest jobs that fit, those of one millisecond by id.

        Args:
            wanted: which jobs.
            before: only those older than this one.
            limit: at most this many.
        """
        jobs, outputs = self._jobs, self._outputs
        query = sa.select(jobs.c.created_at, jobs.c.workflow_uuid).where(
            jobs.c.authenticated_user == wanted.owner, jobs.c.name == wanted.name
        )
        if wanted.statuses is not None:
            query = query.where(jobs.c.status.in_(wanted.statuses))
        if wanted.failed:
            output = sa.func.coalesce(outputs.c.output, jobs.c.output, "")
            query = query.outerjoin(outputs, outputs.c.workflow_uuid == jobs.c.workflow_uuid)
            query = query.where(output.not_like(_NO_FAILURE))
        if before is not None:
            query = query.where(sa.tuple_(jobs.c.created_at, jobs.c.workflow_uuid) < sa.tuple_(*before))
        query = query.order_by(jobs.c.created_at.desc(), jobs.c.workflow_uuid.desc()).limit(limit)
        return [(created, identifier) for created, identifier in self._database.rows(query)]

    def uses(self, name: str, owner: str, scan: str, besides: str = "") -> bool:
        """Return whether any job of an owner was made from a scan.

        Args:
            name: DBOS's name of the workflow.
            owner: whose.
            scan: the second argument of the workflow.
            besides: id of a job that does not count.
        """
        jobs, inputs = self._jobs, self._inputs
        # Not a plain comparison: the planner would go through all jobs of the owner instead of those of the scan.
        of_owner = sa.func.coalesce(jobs.c.authenticated_user, "") == owner
        theirs = (jobs.c.name == name, of_owner, jobs.c.workflow_uuid != besides)
        now = (
            sa.select(sa.literal(1))
            .select_from(inputs.join(jobs, inputs.c.workflow_uuid == jobs.c.workflow_uuid))
            .where(sa.literal_column(self._scan_of("workflow_input.inputs")) == scan, *theirs)
            .limit(1)
        )
        # An earlier DBOS kept the arguments here.
        then = (
            sa.select(sa.literal(1))
            .where(sa.literal_column(self._scan_of("inputs")) == scan, jobs.c.inputs.is_not(None), *theirs)
            .limit(1)
        )
        return any(self._database.rows(query) for query in (now, then))

    def missing(self, identifiers: Collection[str], names: Collection[str]) -> set[str]:
        """Return those of the ids that no workflow of these names has."""
        jobs = self._jobs
        found = self._database.rows(sa.select(jobs.c.workflow_uuid).where(jobs.c.name.in_(names)))
        return set(identifiers).difference(identifier for (identifier,) in found)

    def _scan_of(self, inputs: str) -> str:
        """Return the SQL expression of the scan among a workflow's arguments."""
        if self._database.schema is None:
            return f"CASE WHEN json_valid({inputs}) THEN json_extract({inputs}, '$.positionalArgs[1]') END"
        # The only text of 64 digits between quotes; PostgreSQL indexes no cast to JSON.
        return f"substring({inputs} from '\"([0-9a-f]{{64}})\"')"


def _table(schema: str | None, name: str, *columns: str) -> sa.TableClause:
    made: list[sa.ColumnClause[Any]] = [sa.column(column) for column in columns]
    return sa.table(name, *made, schema=schema)
