"""`/v1/segmentations/{id}/events`: what a job does, as it does it (server-sent events)."""

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
    # Before the answer begins: a stream that has begun has no status any more.
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

    Each event holds the whole job: one that goes on after a broken connection has missed nothing that still matters.
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
    """Return what two equal states of a job have in common; the estimate of the time left is none of it."""
    return hashlib.sha256(job.model_dump_json(exclude={"eta_s"}).encode()).hexdigest()[:16]
