"""`/v1/segmentations/{id}/events`: the progress of a job as server-sent events."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from service.api.deps import OwnerDep, ServicesDep
from service.api.problems import RESPONSES
from service.errors import JobNotFound
from service.schemas import FINISHED, Job

router = APIRouter(prefix="/v1/segmentations", tags=["segmentations"], responses=RESPONSES)

LOOK_EVERY_S: Final = 0.2
"""Seconds between two looks at the job."""


def _known(job_id: str, services: ServicesDep, owner: OwnerDep) -> None:
    # Checked before the stream begins: afterwards, the status can no longer be 404.
    services.jobs.find(owner.name, job_id)


@router.get(
    "/{job_id}/events", operation_id="streamEvents", response_class=EventSourceResponse, dependencies=[Depends(_known)]
)
async def stream_events(
    job_id: str,
    services: ServicesDep,
    owner: OwnerDep,
    last_event_id: Annotated[str | None, Header(max_length=100)] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Send the job whenever it has changed, until it has finished or is erased.

    Each event holds the whole job, so that a client that reconnects has missed nothing that still matters.
    """
    while True:
        try:
            job = await run_in_threadpool(services.jobs.find, owner.name, job_id)
        except JobNotFound:
            return
        identifier = _identifier(job)
        if identifier != last_event_id:
            last_event_id = identifier
            yield ServerSentEvent(data=job, event=job.state, id=identifier)
        if job.state in FINISHED:
            return
        await asyncio.sleep(LOOK_EVERY_S)


def _identifier(job: Job) -> str:
    """Return a digest of the job's state; the estimate of the remaining time is left out, because it always changes."""
    return hashlib.sha256(job.model_dump_json(exclude={"eta_s"}).encode()).hexdigest()[:16]
