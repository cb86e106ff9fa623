"""`/monailabel/infer`: segments a scan of MONAI Label's clients as an ordinary job and answers with its result."""

import math
import tempfile
from pathlib import Path
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from service.api.deps import Services, ServicesDep
from service.api.dicomresults import DICOM
from service.api.monailabel.answer import BINARY, Wish, describe, encode_image, form_of
from service.api.monailabel.door import PREFIX, ViewerDep
from service.api.monailabel.form import receive_form
from service.api.monailabel.series import fetch_scan
from service.api.results import result_of
from service.bundle.acceptance import Admission
from service.errors import from_code
from service.executors.on_demand import derive_dicom
from service.jobs.segmentation.status import WorkflowInput
from service.schemas import ALL_OUTPUTS, DicomObject, Job, Scan
from service.storage.keys import Owner

router = APIRouter(prefix=f"{PREFIX}/infer", include_in_schema=False)

_SEGMENTATION: Final[tuple[DicomObject, ...]] = ("seg",)

Content = Literal["all", "image", "json", "dicom_seg"]

Identifier = Annotated[str, Query(max_length=1000)]


@router.post("/{model}")
async def infer(  # noqa: PLR0913, PLR0917 - a request has many parts
    request: Request,
    model: str,
    services: ServicesDep,
    owner: ViewerDep,
    image: Identifier = "",
    session_id: Identifier = "",
    output: Content = "all",
) -> Response:
    """Segment the scan of a session, the file in the form, or the series at the PACS that `image` names.

    The job goes on when the client disconnects; `/v1/segmentations` shows it like any other.
    """
    bundle = services.registry.find(model)
    await run_in_threadpool(services.jobs.reject_full, owner.name)
    sent = await receive_form(request, services, owner.name, "file")
    wish = Wish.read(sent.params)
    scan = await _scan_of(services, owner, session_id, image, sent.scan)
    order = WorkflowInput(owner.name, scan.id, bundle.identity, ALL_OUTPUTS, Admission(accept=wish.accept))
    job = await _finished(services, owner, await run_in_threadpool(services.jobs.submit, order))
    result = await run_in_threadpool(result_of, services, owner, job.id)
    if output == "dicom_seg":
        return await run_in_threadpool(_answer_dicom, services, result)
    return await run_in_threadpool(_answer, job, result, wish, output)


async def _scan_of(services: Services, owner: Owner, session_id: str, image: str, sent: Scan | None) -> Scan:
    if session_id:
        return await run_in_threadpool(services.state.find_scan, owner.name, session_id)
    if sent is not None:
        return sent
    # 3D Slicer names its volume here, too, but always has a session.
    return await run_in_threadpool(fetch_scan, services.state, services.dicom.file, owner.name, image)


async def _finished(services: Services, owner: Owner, job: Job) -> Job:
    """Return the job once it has succeeded.

    Raises:
        CalibrantError: why it failed.
    """
    job = await services.jobs.wait_async(owner.name, job.id, math.inf)
    if job.problem is not None:
        raise from_code(job.problem.type, job.problem.detail)
    return job


def _answer(job: Job, result: Path, wish: Wish, output: Content) -> Response:
    name = f"{job.id}{wish.result_extension}"
    if output == "image":
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(encode_image(result, wish), media_type=BINARY, headers=headers)
    if output == "json":
        return JSONResponse(describe(job, result))
    return form_of(describe(job, result), name, encode_image(result, wish))


def _answer_dicom(services: Services, result: Path) -> Response:
    with tempfile.TemporaryDirectory(dir=services.state.incoming) as scratch:
        path = derive_dicom(result, Path(scratch), _SEGMENTATION, services.settings.case_deadline_s)[0]
        return Response(path.read_bytes(), media_type=DICOM)
