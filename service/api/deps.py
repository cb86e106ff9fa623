"""Dependencies of the routes: the services that they use, and the caller."""

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from service.api.auth import Sessions, caller, reject_beyond_scope
from service.api.inflight import UploadsInFlight
from service.api.oidc import TokenVerifier
from service.api.rates import Rates
from service.bundle.registry import Registry
from service.errors import Forbidden
from service.intake.budget import Budget
from service.jobs.database import HURRIED
from service.jobs.pacs.arrivals import Arrivals
from service.jobs.pacs.queue import PacsJobs
from service.jobs.segmentation.queue import SegmentationJobs
from service.observability.metrics import Metrics
from service.settings import Settings
from service.storage.keys import Keys, Owner
from service.storage.local import StateDirectory


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that the routes of one application use."""

    settings: Settings
    state: StateDirectory
    registry: Registry
    jobs: SegmentationJobs
    keys: Keys | None
    sessions: Sessions
    metrics: Metrics
    dicom: PacsJobs
    arrivals: Arrivals
    checks: Budget = field(default_factory=Budget)
    uploads: UploadsInFlight = field(default_factory=lambda: UploadsInFlight.of(Settings()))
    rates: Rates = field(default_factory=lambda: Rates(Settings()))
    tokens: TokenVerifier | None = None


async def _services(request: Request) -> Services:  # async: a thread pool that is full must not delay it
    HURRIED.set(True)
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]
"""The services, as a route's argument."""


def identify(request: Request, services: ServicesDep) -> Owner:
    """Return the owner of a request, who is noted for the audit log; refuse one too many, and what the key is not for."""
    owner = caller(request, services.keys, services.sessions, services.tokens)
    request.state.owner = owner  # for the audit log
    services.rates.count_request(owner.key)
    reject_beyond_scope(owner, request)
    return owner


def address_of(request: Request) -> str:
    """Return the address that a request comes from, as far as trusted proxies say it."""
    return request.client.host if request.client else ""


def _administrator(owner: Annotated[Owner, Depends(identify)]) -> Owner:
    if not owner.admin:
        msg = "This is for administrators. Use a key that was made with --admin."
        raise Forbidden(msg)
    return owner


OwnerDep = Annotated[Owner, Depends(identify)]
"""Owner of the request; 401 without a key where keys are in use."""

AdministratorDep = Annotated[Owner, Depends(_administrator)]
"""The same, 403 unless the key is an administrator's."""
