"""`/v1/segmentations/{id}/reference`: measures a result against a reference mask, which is not kept."""

import shutil
import tempfile
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from service.api.deps import OwnerDep, Services, ServicesDep
from service.api.problems import RESPONSES
from service.api.results import result_of
from service.api.upload import SCAN_BODY, admitted, receive_file
from service.derived.reference import read_reference
from service.executors.on_demand import derive_measured
from service.result.files import RESULT, reject_without_logits
from service.result.frame import read_frame
from service.schemas import CaseResult, Measured
from service.storage.local import Upload

router = APIRouter(prefix="/v1/segmentations/{job_id}/reference", tags=["results"], responses=RESPONSES)


@router.post("", operation_id="measureAgainstReference", openapi_extra=SCAN_BODY)
async def measure_against_reference(request: Request, job_id: str, services: ServicesDep, owner: OwnerDep) -> Measured:
    """Measure DSC, HD95, ACE, ECE and MCE of this image against a mask on its grid, with the reliability histogram."""
    result = await run_in_threadpool(result_of, services, owner, job_id)
    reject_without_logits(result)
    with admitted(request, services, owner.name) as place, Upload(services.state, owner.name) as upload:
        await receive_file(request, upload, services.settings.max_upload_bytes, place)
        return await run_in_threadpool(_measured, services, result, upload.path)


def _measured(services: Services, result: Path, reference: Path) -> Measured:
    classes = read_reference(reference, read_frame(result))
    model = CaseResult.model_validate_json((result / RESULT).read_bytes()).model
    scratch = Path(tempfile.mkdtemp(dir=services.state.incoming))
    try:
        return derive_measured(result, scratch, classes, model, services.settings.case_deadline_s)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
