"""Builds the application: creates and connects its services, and starts and ends them with it."""

import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from starlette.concurrency import run_in_threadpool

from service import __version__
from service.api import docs, events, health, login, models, pacs, problems, reference, results, scans, segmentations
from service.api import metrics as metrics_route
from service.api.audited import Audited
from service.api.auth import Sessions
from service.api.deps import Services
from service.api.forwarded import Forwarded
from service.api.head import answer_head
from service.api.hosts import KnownHosts
from service.api.inflight import UploadsInFlight
from service.api.metrics import CountedRequests
from service.api.monailabel import idle, infer, info, session
from service.api.monailabel import login as monailabel_login
from service.api.monailabel.door import Door
from service.api.oidc import TokenVerifier
from service.api.openapi import describe
from service.api.origins import OwnOrigin
from service.api.parameters import reject_unknown
from service.api.rates import Rates
from service.api.security import SecurityHeaders
from service.bundle.proof import prove
from service.bundle.registry import DEFAULT_MODEL, SHIPPED, Registry
from service.bundle.signature import read_public_keys
from service.bundle.trust import Trust
from service.executors.on_demand import derive_dicom
from service.executors.pool import ExecutorPool
from service.intake.budget import Budget
from service.intake.sandbox import start_sandbox
from service.jobs.database import open_database
from service.jobs.pacs.arrivals import Arrivals
from service.jobs.pacs.queue import PacsJobs
from service.jobs.retention import Policy, Sweeper
from service.jobs.segmentation.bounds import Bounds
from service.jobs.segmentation.queue import SegmentationJobs
from service.observability.metrics import Metrics
from service.pacs.config import read_pacs_file
from service.schemas import RESEARCH_USE_ONLY
from service.settings import Settings
from service.storage.audit import AuditLog, Event
from service.storage.keys import Keys
from service.storage.local import StateDirectory

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
"""Host headers that a service on a loopback address answers: a web page elsewhere cannot rebind its name to it."""

_ROUTES = (segmentations, events, results, reference, scans, models, health, metrics_route, pacs)
"""Routes that take the parameters of the OpenAPI document and no others."""

_OPEN_ROUTES = (docs, login, monailabel_login, info, session, infer, idle)
"""Pages, and what the clients of MONAI Label send their own parameters to."""


def create_app(settings: Settings) -> FastAPI:
    """Return the application; the job queue and the inference processes start and end with it.

    Its `state.executor` may be started before, to see whether the devices compute.

    Raises:
        SettingsError: another service uses the state directory, the folder of bundles does not exist, or the database
            cannot be used.
    """
    services = _services(settings)
    audit = AuditLog(services.state.root)
    services.jobs.on_expiry = lambda owner, job: audit.record(Event("retention", owner, job=job))
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # service.api.docs has its own, behind the key
        title="Calibrant",
        version=__version__,
        description=f"3-D medical image segmentation that says how far it can be trusted. {RESEARCH_USE_ONLY}",
        license_info={"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        servers=[{"url": "/"}],
        lifespan=lambda app: _lifespan(app, services),
    )
    app.state.services, app.state.executor = services, services.jobs.executor
    if not settings.behind_proxy and services.keys is None:
        app.add_middleware(KnownHosts, hosts=LOOPBACK_HOSTS)
    app.add_middleware(OwnOrigin, viewers=settings.monailabel_origins)
    problems.install(app)
    app.add_middleware(Audited, audit=audit)
    app.add_middleware(CountedRequests, metrics=services.metrics)
    for module in (*_ROUTES, *_OPEN_ROUTES):
        answer_head(module.router)
        strict = [Depends(reject_unknown)] if module in _ROUTES else []
        app.include_router(module.router, dependencies=strict)
    # The middleware added last is the outermost: what counts and logs requests never sees the secret.
    app.add_middleware(Door, secret=settings.monailabel_path, origins=settings.monailabel_origins)
    app.add_middleware(Forwarded, trusted=settings.trusted_proxies, root_path=settings.root_path)
    app.add_middleware(SecurityHeaders)
    describe(app)
    return app


def _services(settings: Settings) -> Services:
    """Return the connected services, not yet started."""
    state = StateDirectory.open(settings.state_dir, settings.reserve_bytes)
    database = open_database(state, settings.postgresql_url)
    keys = Keys(settings.keys_file) if settings.keys_file else None
    folders = [SHIPPED, *([settings.bundle_dir] if settings.bundle_dir else [])]
    trust = Trust(settings.bundle_pins or {}, read_public_keys(settings.bundle_keys_file), prove)
    registry = Registry.scan(*folders, unloaded=state.unloaded, trust=trust)
    metrics = Metrics()
    pacs_file = read_pacs_file(settings.pacs_file)
    executor = ExecutorPool.of(settings, warm=registry.ready.get(DEFAULT_MODEL))
    bounds = Bounds(settings.max_jobs_per_owner, settings.max_jobs)
    jobs = SegmentationJobs(state, registry, executor, metrics, database, bounds)
    dicom = PacsJobs(jobs, state, pacs_file, derive_dicom, settings.case_deadline_s)
    checks = Budget(settings.check_bytes)
    arrivals = Arrivals(dicom, pacs_file, registry, state)
    issuer, audience = settings.oidc_issuer, settings.oidc_audience
    tokens = TokenVerifier(issuer, audience) if issuer and audience else None
    sessions, uploads = Sessions(settings.session_hours), UploadsInFlight.of(settings)
    return Services(
        *(settings, state, registry, jobs, keys, sessions, metrics, dicom, arrivals),
        checks=checks,
        uploads=uploads,
        rates=Rates(settings),
        tokens=tokens,
    )


@asynccontextmanager
async def _lifespan(app: FastAPI, services: Services) -> AsyncIterator[None]:
    jobs, dicom = services.jobs, services.dicom
    jobs.executor.start()
    start_sandbox("service.derived.dicom")
    sweeper = Sweeper(jobs, services.state, _policy(services), dicom)
    try:
        # Before the jobs: one that waits for a bundle must find it, or its reason.
        await run_in_threadpool(services.registry.prove)
        await run_in_threadpool(app.openapi)  # every request looks its parameters up there
        await run_in_threadpool(jobs.launch, dicom.register)
        await run_in_threadpool(dicom.start)
        sweeper.start()
        services.arrivals.start()
        yield
        await run_in_threadpool(services.arrivals.stop)
        await run_in_threadpool(sweeper.stop)
    finally:
        dicom.close()
        await run_in_threadpool(jobs.close)


def _policy(services: Services) -> Policy:
    settings = services.settings

    def days(number: float | None) -> dt.timedelta | None:
        return None if number is None else dt.timedelta(days=number)

    # A directory of an earlier version, which kept everything, gets as many days of notice.
    notice = days(settings.retention_days) if settings.retention_is_default else None
    not_before = services.state.first_swept(dt.datetime.now(dt.UTC)) + notice if notice else None
    return Policy(days(settings.retention_days), days(settings.logits_retention_days), not_before)
