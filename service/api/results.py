"""`/v1/segmentations/{id}/...`: the stored files of a finished job, and those that are derived from it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse

from service.api.deps import OwnerDep, Services, ServicesDep
from service.api.dicomresults import DICOM, answer_object, answer_zip, choose_form
from service.api.files import Answer, kept
from service.api.problems import RESPONSES
from service.errors import ResultNotReady, ResultUnavailable
from service.executors.on_demand import derive_dicom, derive_map
from service.result.bids import write_zip
from service.result.files import CONFIDENCE, MASK, SUMMARY, offers_dicom
from service.result.nifti import Content, VoxelType
from service.result.outputs import MGZ, NIFTI, NRRD, OUTPUTS, MaskFormat, ResultFile, result_file
from service.schemas import DEFAULT_OBJECTS, DicomObject, Summary
from service.storage.keys import Owner

router = APIRouter(prefix="/v1/segmentations/{job_id}", tags=["results"], responses=RESPONSES)

ZIP: Final = "application/zip"

MapFormat = Literal["nii.gz", "dcm"]
SummaryFormat = Literal["json", "dcm"]

_WITH_OWN_ROUTE: Final = (MASK, CONFIDENCE, SUMMARY)
"""Files that are offered in several formats; every other file is served under its name."""

_ALIASES: Final = {NIFTI: ("application/x-gzip", "application/octet-stream")}
"""Further media types for the same format."""

MaskFormatQuery = Annotated[MaskFormat | None, Query(alias="format", description="Takes precedence over Accept.")]
MapFormatQuery = Annotated[MapFormat | None, Query(alias="format", description="Takes precedence over Accept.")]
SummaryFormatQuery = Annotated[SummaryFormat | None, Query(alias="format", description="Takes precedence over Accept.")]
ObjectsQuery = Annotated[
    list[DicomObject] | None, Query(description="Which DICOM objects; segmentation, report and picture by default.")
]
VoxelTypeQuery = Annotated[
    VoxelType, Query(alias="dtype", description="Integers have a scl_slope of 1 over the largest integer.")
]

_Endpoint = Callable[..., Response]


def _get(path: str, operation_id: str, *media_types: str, **options: Any) -> Callable[[_Endpoint], _Endpoint]:  # noqa: ANN401 - FastAPI's own
    """Register GET and HEAD of a route that answers with a file."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    answers: dict[int | str, dict[str, Any]] = {304: {"description": "The caller already has it (If-None-Match)."}}
    if media_types:
        answers[200] = {"description": "The file", "content": dict.fromkeys(media_types, binary)}

    def register(endpoint: _Endpoint) -> _Endpoint:
        router.head(path, include_in_schema=False, response_class=FileResponse)(endpoint)
        shown: dict[str, Any] = {"response_class": FileResponse} if media_types else {}
        return router.get(path, operation_id=operation_id, responses=answers, **shown, **options)(endpoint)

    return register


@_get("/mask", "getMask", NIFTI, NRRD, MGZ, DICOM)
def get_mask(
    request: Request, job_id: str, services: ServicesDep, owner: OwnerDep, form: MaskFormatQuery = None
) -> Response:
    """Return the mask on the scan's own grid, uint8 label values: NIfTI (.nii.gz), 3D Slicer's .seg.nrrd, FreeSurfer's .mgz or DICOM SEG."""
    return _in_format(request, services, result_of(services, owner, job_id), result_file(MASK), form)


@_get("/confidence", "getConfidence", NIFTI, DICOM)
def get_confidence(
    request: Request,
    job_id: str,
    services: ServicesDep,
    owner: OwnerDep,
    voxel_type: VoxelTypeQuery = "uint8",
    form: MapFormatQuery = None,
) -> Response:
    """Return the confidence of the mask's label at each voxel: NIfTI (.nii.gz), in [1/C, 1] after scl_slope, or DICOM parametric map."""
    result = result_of(services, owner, job_id)
    file = result_file(CONFIDENCE)
    if voxel_type != "uint8" and choose_form(request, result, form, _offers(file)) != "dcm":
        return _computed(request, services, result, "confidence", voxel_type)
    return _in_format(request, services, result, file, form)


@_get("/probabilities", "getProbabilities", NIFTI)
def get_probabilities(
    request: Request, job_id: str, services: ServicesDep, owner: OwnerDep, voxel_type: VoxelTypeQuery = "float32"
) -> Response:
    """Return the calibrated probabilities, 4-D NIfTI (.nii.gz): a volume per label, in the order of the model's labels."""
    return _computed(request, services, result_of(services, owner, job_id), "probabilities", voxel_type)


@_get("/uncertainty", "getUncertainty", NIFTI)
def get_uncertainty(
    request: Request, job_id: str, services: ServicesDep, owner: OwnerDep, voxel_type: VoxelTypeQuery = "float32"
) -> Response:
    """Return the entropy of the probabilities over ln C, NIfTI (.nii.gz), in [0, 1]."""
    return _computed(request, services, result_of(services, owner, job_id), "uncertainty", voxel_type)


@_get("/summary", "getSummary", response_model=Summary)
def get_summary(
    request: Request, job_id: str, services: ServicesDep, owner: OwnerDep, form: SummaryFormatQuery = None
) -> Response:
    """Return the image-level calibration summary: JSON, or DICOM structured report."""
    return _in_format(request, services, result_of(services, owner, job_id), result_file(SUMMARY), form)


@_get("/dicom.zip", "getDicom", ZIP)
def get_dicom(
    request: Request, job_id: str, services: ServicesDep, owner: OwnerDep, objects: ObjectsQuery = None
) -> Response:
    """Return DICOM objects of a DICOM series in one zip; they belong to the study of the series."""
    chosen = tuple(dict.fromkeys(objects or DEFAULT_OBJECTS))
    return answer_zip(request, services, result_of(services, owner, job_id), chosen)


@_get("/bundle.zip", "getBundle", ZIP)
def get_bundle(request: Request, job_id: str, services: ServicesDep, owner: OwnerDep) -> Response:
    """Return mask, confidence, label table and summary in one zip, named as BIDS derivatives; for a DICOM series also DICOM objects."""
    result = result_of(services, owner, job_id)

    def write(scratch: Path) -> Path:
        out = scratch / "bundle.zip"
        made = derive_dicom(result, scratch, seconds=services.settings.case_deadline_s) if offers_dicom(result) else []
        write_zip(result, job_id, out, made)
        return out

    return Answer(request, result, "bundle.zip", ZIP).made(f"zip of {job_id}", services.state.incoming, write)


def result_of(services: Services, owner: Owner, job_id: str) -> Path:
    """Return the folder of an owner's finished job.

    Raises:
        JobNotFound: the owner has no job with this id.
        ResultNotReady: it has not finished.
        ResultUnavailable: it did not succeed.
    """
    job = services.jobs.find(owner.name, job_id)
    if job.state in ("queued", "running"):
        msg = f"The segmentation is {job.state}. Ask for {job.links.self} until it has succeeded."
        raise ResultNotReady(msg)
    folder = services.state.result(job_id)
    if job.problem is not None or folder is None:
        msg = f"The segmentation has {job.state}; its state says why. Correct the cause, then send the scan again."
        raise ResultUnavailable(msg)
    return folder


def serve_stored(file: ResultFile, media_type: str) -> None:
    """Register the route that serves a stored file under its name."""
    operation_id = f"get{''.join(word.capitalize() for word in re.split(r'[._-]', file.name))}"

    @_get(f"/{file.name}", operation_id, media_type, description=file.description)
    def get_file(request: Request, job_id: str, services: ServicesDep, owner: OwnerDep) -> Response:
        """Return a file of the result."""
        return Answer(request, result_of(services, owner, job_id), file.name, media_type).stored()


for _file in OUTPUTS:
    if _file.media_type is not None and _file.name not in _WITH_OWN_ROUTE:
        serve_stored(_file, _file.media_type)


def _in_format(request: Request, services: Services, result: Path, file: ResultFile, form: str | None) -> Response:
    """Answer with a stored file, or in the format that the caller prefers."""
    chosen = choose_form(request, result, form, _offers(file))
    if chosen == "dcm" and file.dicom_object is not None:
        return answer_object(request, services, result, file.dicom_object)
    if (conversion := file.conversions.get(chosen)) is None:
        return Answer(request, result, file.name, str(file.media_type), varies=True).stored()
    kept(result, file.name)

    def write(scratch: Path) -> Path:
        out = scratch / conversion.name
        out.write_bytes(conversion.convert(result))
        return out

    answer = Answer(request, result, conversion.name, conversion.media_type, varies=True)
    return answer.made(conversion.name, services.state.incoming, write)


def _offers(file: ResultFile) -> dict[str, str]:
    """Return the formats of a file by media type, the stored one first."""
    stored = file.name.partition(".")[2]
    media_types = (str(file.media_type), *_ALIASES.get(str(file.media_type), ()))
    offers = dict.fromkeys(media_types, stored)
    offers |= {conversion.media_type: form for form, conversion in file.conversions.items()}
    return offers | ({DICOM: "dcm"} if file.dicom_object is not None else {})


def _computed(request: Request, services: Services, result: Path, content: Content, voxel_type: VoxelType) -> Response:
    answer = Answer(request, result, f"{content}.nii.gz", NIFTI)
    return answer.made(
        f"{content} as {voxel_type}",
        services.state.incoming,
        lambda scratch: derive_map(result, scratch, content, voxel_type, services.settings.case_deadline_s),
    )
