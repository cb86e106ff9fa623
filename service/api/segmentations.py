"""`/v1/segmentations`: submit a scan, follow its job, cancel it, erase it."""

import base64
import binascii
import re
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Request, Response, status
from starlette.concurrency import run_in_threadpool

from service.api.deps import OwnerDep, ServicesDep
from service.api.gate import AcceptQuery, ContrastQuery, SuffixQuery, admission_of, reject_unaccepted, stated_by
from service.api.prefer import seconds_to_wait
from service.api.problems import RESPONSES
from service.api.upload import SCAN_BODY, SeriesQuery, receive_scan
from service.bundle.registry import DEFAULT_MODEL
from service.errors import InvalidRequest
from service.jobs.segmentation.status import WorkflowInput
from service.schemas import ALL_OUTPUTS, FINISHED, Job, Jobs, Output, Priority, State

router = APIRouter(prefix="/v1/segmentations", tags=["segmentations"], responses=RESPONSES)

PreferHeader = Annotated[
    str | None, Header(max_length=200, description="`wait=N`: the answer may take N seconds (RFC 7240).")
]

DONE: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": Job, "description": "The segmentation has finished within the seconds of `Prefer: wait=N`"}
}

RETRY_AFTER_S: Final = 1
"""Seconds that a polling client should wait."""


@router.post(
    "",
    operation_id="createSegmentation",
    status_code=status.HTTP_202_ACCEPTED,
    responses=DONE,
    openapi_extra=SCAN_BODY,
)
async def create_segmentation(  # noqa: PLR0913, PLR0917 - a request has many parts
    request: Request,
    response: Response,
    services: ServicesDep,
    owner: OwnerDep,
    scan: Annotated[str | None, Query(max_length=64, description="Id of an uploaded scan, instead of a body.")] = None,
    series: SeriesQuery = None,
    model: Annotated[str, Query(max_length=200, description="Name, or name@sha256.")] = DEFAULT_MODEL,
    outputs: Annotated[list[Output] | None, Query(description="What to keep; everything by default.")] = None,
    priority: Priority = "normal",
    accept: AcceptQuery = "stated",
    suffix: SuffixQuery = None,
    ce: ContrastQuery = None,
    prefer: PreferHeader = None,  # noqa: ARG001 - all of its lines are read
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
) -> Job:
    """Segment a scan. 202 and `Location` as soon as the scan is stored; 200 if it is done within `Prefer: wait=N`."""
    wait_s = seconds_to_wait(request.headers.getlist("prefer"), services.settings.max_wait_s)
    bundle = services.registry.find(model)
    await run_in_threadpool(services.jobs.reject_full, owner.name, idempotency_key)
    admit = partial(admission_of, accept, suffix, ce)
    if scan is None:
        stored, name = await receive_scan(
            request, services, owner.name, lambda name, stated: reject_unaccepted(bundle, admit(name), stated), series
        )
    else:
        stored, name = await run_in_threadpool(services.state.find_scan, owner.name, scan), {}
        stated = await run_in_threadpool(stated_by, services.state.scan(owner.name, scan))
        reject_unaccepted(bundle, admit(name), stated)
    chosen = tuple(name for name in ALL_OUTPUTS if name in (outputs or ALL_OUTPUTS))
    order = WorkflowInput(owner.name, stored.id, bundle.identity, chosen, admit(name))
    job = await run_in_threadpool(services.jobs.submit, order, priority=priority, idempotency_key=idempotency_key)
    if wait_s:
        job = await services.jobs.wait_async(owner.name, job.id, wait_s)
        response.headers["Preference-Applied"] = f"wait={wait_s:g}"
    response.headers["Location"] = job.links.self
    if job.state in FINISHED:
        response.status_code = status.HTTP_200_OK
    else:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return job


@router.get("", operation_id="listSegmentations")
def list_segmentations(
    services: ServicesDep,
    owner: OwnerDep,
    state: State | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=200, description="`next` of the page before.")] = None,
) -> Jobs:
    """Return the caller's jobs, the newest first."""
    jobs = services.jobs.page(owner.name, state, _before(cursor) if cursor else None, limit + 1)
    following = _cursor(jobs[limit - 1]) if len(jobs) > limit else None
    return Jobs(jobs=jobs[:limit], next=following)


@router.get("/{job_id}", operation_id="getSegmentation")
def get_segmentation(job_id: str, services: ServicesDep, owner: OwnerDep) -> Job:
    """Return the state of a job."""
    return services.jobs.find(owner.name, job_id)


@router.post("/{job_id}/cancel", operation_id="cancelSegmentation", status_code=status.HTTP_202_ACCEPTED)
def cancel_segmentation(job_id: str, services: ServicesDep, owner: OwnerDep) -> Job:
    """Stop a job, even during its computation; 409 once it has finished."""
    return services.jobs.cancel(owner.name, job_id)


@router.delete("/{job_id}", operation_id="deleteSegmentation", status_code=status.HTTP_204_NO_CONTENT)
def delete_segmentation(job_id: str, services: ServicesDep, owner: OwnerDep) -> None:
    """Stop and erase a job with its results, and its scan unless another job was made from it."""
    services.jobs.erase(owner.name, job_id)


def _cursor(job: Job) -> str:
    created = round(job.created.timestamp() * 1000)
    return base64.urlsafe_b64encode(f"{created}:{job.id}".encode()).decode()


def _before(cursor: str) -> tuple[int, str]:
    try:
        match = re.fullmatch(r"([0-9]{1,13}):([0-9a-f]{32})", base64.urlsafe_b64decode(cursor.encode()).decode())
    except (ValueError, binascii.Error):
        match = None
    if match is None:
        msg = "The cursor is not valid. Take `next` of the page before, or leave it out."
        raise InvalidRequest(msg)
    return int(match[1]), match[2]
