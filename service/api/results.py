"""`/v1/segmentations/{id}/...`: what a finished job has made."""

from pathlib import Path
from typing import Final

from fastapi import APIRouter
from fastapi.responses import FileResponse

from service.api.deps import OwnerDep, Parts, PartsDep
from service.api.problems import RESPONSES
from service.errors import ResultNotReady, ResultUnavailable
from service.pipeline.encode import CONFIDENCE, MASK, SUMMARY
from service.schemas import Summary
from service.storage.keys import Owner

router = APIRouter(prefix="/v1/segmentations/{job_id}", tags=["results"], responses=RESPONSES)

NIFTI: Final = "application/gzip"
"""Media type of the images: no registered one exists for NIfTI."""


@router.get("/mask", operation_id="getMask", response_class=FileResponse)
def get_mask(job_id: str, parts: PartsDep, owner: OwnerDep) -> FileResponse:
    """Return the mask, NIfTI (.nii.gz) on the scan's own grid, uint8 label values."""
    return _file(parts, owner, job_id, MASK)


@router.get("/confidence", operation_id="getConfidence", response_class=FileResponse)
def get_confidence(job_id: str, parts: PartsDep, owner: OwnerDep) -> FileResponse:
    """Return the confidence of the mask's label at each voxel, NIfTI (.nii.gz), in [1/C, 1] after scl_slope."""
    return _file(parts, owner, job_id, CONFIDENCE)


@router.get("/summary", operation_id="getSummary")
def get_summary(job_id: str, parts: PartsDep, owner: OwnerDep) -> Summary:
    """Return the image-level calibration summary."""
    return Summary.model_validate_json((_result(parts, owner, job_id) / SUMMARY).read_bytes())


def _file(parts: Parts, owner: Owner, job_id: str, name: str) -> FileResponse:
    return FileResponse(_result(parts, owner, job_id) / name, media_type=NIFTI, filename=name)


def _result(parts: Parts, owner: Owner, job_id: str) -> Path:
    job = parts.jobs.find(owner.name, job_id)
    if job.state in ("queued", "running"):
        msg = f"The segmentation is {job.state}. Ask for {job.links.self} until it has succeeded."
        raise ResultNotReady(msg)
    folder = parts.state.result(job_id)
    if job.problem is not None or folder is None:
        msg = f"The segmentation has {job.state}; its state says why. Mend the cause and send the scan again."
        raise ResultUnavailable(msg)
    return folder
