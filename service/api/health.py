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


@router.get(
    "/ready",
    operation_id="isReady",
    responses={503: {"description": 'Not ready: `{"ready": false, "why_not": "..."}`'}},
)
async def is_ready(services: ServicesDep, response: Response) -> dict[str, bool | str]:
    """Return whether a model is in service, a device has computed and the database answers; 503 and why, if not."""
    why_not = services.jobs.why_not if services.registry.ready else "No model is in service."
    if not why_not:
        return {"ready": True}
    response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    return {"ready": False, "why_not": why_not}
