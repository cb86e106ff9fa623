"""`/v1/dicom`: jobs that pull a series from a PACS and store the results in a PACS, dead letters, tests of a PACS."""

import hmac
from typing import Annotated, Final, Self

from fastapi import APIRouter, Header, Query, Request, Response, status
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from starlette.concurrency import run_in_threadpool

from service.api.deps import AdministratorDep, OwnerDep, Services, ServicesDep
from service.api.document import described, receive_document
from service.api.problems import RESPONSES
from service.bundle.registry import DEFAULT_MODEL
from service.errors import PacsNotFound, Unauthorized
from service.jobs.pacs.series import PacsRequest
from service.pacs.check import examine_pacs
from service.pacs.config import PacsName
from service.pacs.schemas import ArrivedSeries, DicomJob, DicomJobList, PacsHealth, PacsNames
from service.pacs.selection import Selection
from service.schemas import DEFAULT_OBJECTS, Accept, DicomObject

router = APIRouter(prefix="/v1", tags=["dicom"], responses=RESPONSES)

Uid = Annotated[str, StringConstraints(pattern=r"^[0-9.]{1,64}$")]
JobId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]

SECRET_HEADER: Final = "X-Calibrant-Secret"  # noqa: S105 - the name of a header


class DicomRequest(BaseModel):
    """The series to segment, and where its results go."""

    model_config = ConfigDict(extra="forbid")

    pacs: PacsName
    study: Uid | None = None
    series: Uid | None = None
    """With it, the Study Instance UID may be left out."""
    select: Selection = Selection()
    """Instead of `series`: selects a series of the study. Exactly one must fit."""
    model: Annotated[str, Field(max_length=200)] = DEFAULT_MODEL
    objects: Annotated[list[DicomObject], Field(min_length=1)] = list(DEFAULT_OBJECTS)
    destination: PacsName | None = None
    """PACS that the results go to; by default the one that the series comes from."""
    accept: Accept = "stated"
    """`anyway`: also a series that says that the model is not made for it; its result is withdrawn."""

    @model_validator(mode="after")
    def _reject_nothing(self) -> Self:
        if self.study is None and self.series is None:
            msg = "expected study or series"
            raise ValueError(msg)
        return self


@router.post(
    "/dicom/jobs",
    operation_id="createDicomJob",
    status_code=status.HTTP_202_ACCEPTED,
    openapi_extra=described(DicomRequest),
)
async def create_dicom_job(
    request: Request,
    response: Response,
    services: ServicesDep,
    owner: OwnerDep,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
) -> DicomJob:
    """Segment a series of a PACS and store the results in a PACS; the same series with the same images is the same job."""
    await run_in_threadpool(services.jobs.reject_full, owner.name)
    body = await receive_document(request, DicomRequest)
    order = PacsRequest(
        owner=owner.name,
        pacs=body.pacs,
        study=body.study,
        series=body.series,
        select=body.select,
        model=services.registry.find(body.model).identity,
        objects=tuple(dict.fromkeys(body.objects)),
        destination=body.destination or body.pacs,
        accept=body.accept,
    )
    job = await run_in_threadpool(services.dicom.submit, order, idempotency_key)
    response.headers["Location"] = job.links.self
    return job


@router.get("/dicom/jobs", operation_id="listDicomJobs")
def list_dicom_jobs(
    services: ServicesDep, owner: OwnerDep, limit: Annotated[int, Query(ge=1, le=200)] = 50
) -> DicomJobList:
    """Return the caller's DICOM jobs, the newest first."""
    return DicomJobList(jobs=services.dicom.page(owner.name, limit))


@router.get("/dicom/jobs/{job_id}", operation_id="getDicomJob")
def get_dicom_job(job_id: JobId, services: ServicesDep, owner: OwnerDep) -> DicomJob:
    """Return the state of a job and of its objects."""
    return services.dicom.find(owner.name, job_id)


@router.post("/dicom/jobs/{job_id}/cancel", operation_id="cancelDicomJob", status_code=status.HTTP_202_ACCEPTED)
def cancel_dicom_job(job_id: JobId, services: ServicesDep, owner: OwnerDep) -> DicomJob:
    """Stop a job, even while it waits for a PACS; objects that are stored there stay."""
    return services.dicom.cancel(owner.name, job_id)


@router.delete("/dicom/jobs/{job_id}", operation_id="deleteDicomJob", status_code=status.HTTP_204_NO_CONTENT)
def delete_dicom_job(job_id: JobId, services: ServicesDep, owner: OwnerDep) -> None:
    """Erase a job with its scan, results and objects; the PACS keeps what is stored there."""
    services.dicom.erase(owner.name, job_id)


@router.get("/dicom/deadletters", operation_id="listDeadLetters")
def list_dead_letters(services: ServicesDep, owner: OwnerDep) -> DicomJobList:
    """Return the caller's jobs with objects that could not be delivered, and the reasons."""
    return DicomJobList(jobs=services.dicom.dead_letters(owner.name))


@router.post("/dicom/deadletters/{job_id}/retry", operation_id="retryDeadLetter", status_code=status.HTTP_202_ACCEPTED)
def retry_dead_letter(job_id: JobId, services: ServicesDep, owner: OwnerDep) -> DicomJob:
    """Send the undelivered objects of a job again; stored ones are not repeated."""
    return services.dicom.retry(owner.name, job_id)


@router.get("/dicom/pacs", operation_id="listPacs")
def list_pacs(services: ServicesDep, owner: OwnerDep) -> PacsNames:  # noqa: ARG001 - requires a key
    """Return the names of the configured PACS; their addresses are not shown."""
    return PacsNames(pacs=list(services.dicom.file.pacs))


@router.post("/dicom/pacs/{name}/test", operation_id="testPacs")
def examine(name: PacsName, services: ServicesDep, owner: AdministratorDep) -> PacsHealth:  # noqa: ARG001 - as above
    """Test whether a PACS answers, and can be queried, read and written; nothing is stored. For administrators."""
    checks = examine_pacs(services.dicom.file.find(name))
    ok = all(check.ok for check in checks)
    return PacsHealth(pacs=name, ok=ok, circuit=services.dicom.breaker(name).state, checks=checks)


@router.post(
    "/hooks/orthanc",
    operation_id="tellOfSeries",
    status_code=status.HTTP_202_ACCEPTED,
    openapi_extra=described(ArrivedSeries),
)
async def tell_of_series(
    request: Request,
    services: ServicesDep,
    x_calibrant_secret: Annotated[str, Header(max_length=200)] = "",
) -> None:
    """Record that Orthanc reports a stable series; it is fetched later if a rule matches."""
    pacs = _sender(services, x_calibrant_secret)
    arrived = await receive_document(request, ArrivedSeries)
    await run_in_threadpool(services.arrivals.note, pacs, arrived.series)


def _sender(services: Services, secret: str) -> str:
    """Return the PACS that the secret belongs to."""
    hook = services.dicom.file.webhook
    if hook is None:
        msg = "No [webhook] is configured. Orthanc's changes can be followed without one: see docs/pacs.md."
        raise PacsNotFound(msg)
    if not hmac.compare_digest(hook.secret.read().encode(), secret.encode()):
        msg = f"The shared secret is missing or wrong. Send it in the header {SECRET_HEADER}."
        raise Unauthorized(msg)
    return hook.pacs
