"""`/v1/segmentations/{id}/events`: the progress of a job as server-sent events."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Annotated

from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent

from service.api.deps import OwnerDep, ServicesDep
from service.api.problems import RESPONSES
from service.errors import JobNotFound
from service.schemas import Job

router = APIRouter(prefix="/v1/segmentations", tags=["segmentations"], responses=RESPONSES)


def _known(job_id: str, services: ServicesDep, owner: OwnerDep) -> Job:
    # Checked before the stream begins: afterwards, the status can no longer be 404.
    return services.jobs.find(owner.name, job_id)


@router.get("/{job_id}/events", operation_id="streamEvents", response_class=EventSourceResponse)
async def stream_events(
    job: Annotated[Job, Depends(_known)],
    services: ServicesDep,
    last_event_id: Annotated[str | None, Header(max_length=100)] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Send the job whenever it has changed, until it has finished or is erased.

    Each event holds the whole job, so that a client that reconnects has missed nothing that still matters. However many
    clients follow, the jobs are looked at once for all of them.
    """
    with suppress(JobNotFound):
        async with aclosing(services.jobs.watch.changes(job)) as changes:
            async for now in changes:
                identifier = _identifier(now)
                if identifier != last_event_id:
                    last_event_id = identifier
                    yield ServerSentEvent(data=now, event=now.state, id=identifier)


def _identifier(job: Job) -> str:
    """Return a digest of the job's state; the estimate of the remaining time is left out, because it always changes."""
    return hashlib.sha256(job.model_dump_json(exclude={"eta_s"}).encode()).hexdigest()[:16]
