"""`/v1/segmentations`: send a scan, follow its job, fetch mask, confidence and summary."""

import re
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Header, Query, Request, Response, status
from fastapi.responses import FileResponse
from pydantic import StringConstraints
from starlette.concurrency import run_in_threadpool

from service.api.deps import Parts, PartsDep
from service.api.problems import RESPONSES
from service.api.upload import receive_scan
from service.bundle.registry import DEFAULT_MODEL
from service.errors import InvalidRequest, ResultNotReady, ResultUnavailable
from service.pipeline.encode import CONFIDENCE, MASK, SUMMARY
from service.schemas import Job, Summary

router = APIRouter(prefix="/v1/segmentations", tags=["segmentations"], responses=RESPONSES)

NIFTI: Final = "application/gzip"
"""Media type of the images: no registered one exists for NIfTI."""

Preference = Annotated[str, StringConstraints(max_length=200)]

RETRY_AFTER_S: Final = 1
"""What a client that polls should wait."""

_SCAN_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        "description": "The scan itself: NIfTI, .nii or .nii.gz.",
    }
}


@router.post("", operation_id="createSegmentation", status_code=status.HTTP_202_ACCEPTED, openapi_extra=_SCAN_BODY)
async def create_segmentation(
    request: Request,
    response: Response,
    parts: PartsDep,
    model: Annotated[str, Query(max_length=200)] = DEFAULT_MODEL,
    prefer: Annotated[list[Preference] | None, Header()] = None,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
) -> Job:
    """Segment a scan. 202 and `Location` as soon as the scan is safe; 200 if it is done within `Prefer: wait=N`."""
    wait_s = _seconds_to_wait(", ".join(prefer or []), parts.settings.max_wait_s)
    bundle = parts.registry.find(model)
    scan = await receive_scan(request, parts)
    job = await run_in_threadpool(parts.jobs.submit, scan, bundle.identity, idempotency_key)
    if wait_s:
        job = await run_in_threadpool(parts.jobs.wait, job.id, wait_s)
        response.headers["Preference-Applied"] = f"wait={wait_s:g}"
    response.headers["Location"] = job.links.self
    if job.state in ("succeeded", "failed"):
        response.status_code = status.HTTP_200_OK
    else:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return job


@router.get("/{job_id}", operation_id="getSegmentation")
def get_segmentation(job_id: str, parts: PartsDep) -> Job:
    """Return the state of a job."""
    return parts.jobs.find(job_id)


@router.get("/{job_id}/mask", operation_id="getMask", response_class=FileResponse)
def get_mask(job_id: str, parts: PartsDep) -> FileResponse:
    """Return the mask, NIfTI (.nii.gz) on the scan's own grid, uint8 label values."""
    return _file(parts, job_id, MASK)


@router.get("/{job_id}/confidence", operation_id="getConfidence", response_class=FileResponse)
def get_confidence(job_id: str, parts: PartsDep) -> FileResponse:
    """Return the confidence of the mask's label at each voxel, NIfTI (.nii.gz), in [1/C, 1] after scl_slope."""
    return _file(parts, job_id, CONFIDENCE)


@router.get("/{job_id}/summary", operation_id="getSummary")
def get_summary(job_id: str, parts: PartsDep) -> Summary:
    """Return the image-level calibration summary."""
    return Summary.model_validate_json((_result(parts, job_id) / SUMMARY).read_bytes())


def _file(parts: Parts, job_id: str, name: str) -> FileResponse:
    return FileResponse(_result(parts, job_id) / name, media_type=NIFTI, filename=name)


def _result(parts: Parts, job_id: str) -> Path:
    job = parts.jobs.find(job_id)
    if job.state in ("queued", "running"):
        msg = f"The segmentation is {job.state}. Ask for {job.links.self} until it has succeeded."
        raise ResultNotReady(msg)
    folder = parts.state.result(job_id)
    if job.problem is not None or folder is None:
        msg = "The segmentation failed; its state says why. Mend the cause and send the scan again."
        raise ResultUnavailable(msg)
    return folder


def _seconds_to_wait(prefer: str, longest_s: float) -> float:
    """Return N of ``Prefer: wait=N`` (RFC 7240, section 4.3), capped; other preferences are ignored, as the RFC says."""
    found = re.search(r"(?:^|[,;\s])wait=(\d{1,6})(?:$|[,;\s])", prefer)
    if found is None and "wait=" in prefer:
        msg = "Prefer: wait= must be followed by whole seconds, e.g. Prefer: wait=30."
        raise InvalidRequest(msg)
    return min(float(found[1]), longest_s) if found else 0.0
