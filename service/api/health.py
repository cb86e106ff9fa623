"""`/v2/health/*`: liveness and readiness, by the paths of the Open Inference Protocol.

Both only read flags and run on the event loop, so that they answer even when the thread pool is full.
"""

from fastapi import APIRouter, Response, status

from service.api.deps import ServicesDep

router = APIRouter(prefix="/v2/health", tags=["health"])


@router.get("/live", operation_id="isLive")
async def is_live() -> dict[str, bool]:
    """Return true: the process answers."""
    return {"live": True}


@router.get("/ready", operation_id="isReady", responses={503: {"description": 'Not ready: `{"ready": false}`'}})
async def is_ready(services: ServicesDep, response: Response) -> dict[str, bool]:
    """Return whether a model is in service, the inference process is alive and the database answers; 503 if not."""
    ready = bool(services.registry.ready) and services.jobs.ready
    if not ready:
        response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    return {"ready": ready}
