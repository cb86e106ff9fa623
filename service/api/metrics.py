"""`/metrics` for Prometheus, and the middleware that counts requests."""

import shutil
import time

import structlog
from fastapi import APIRouter, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.deps import OwnerDep, ServicesDep
from service.api.problems import RESPONSES
from service.observability.metrics import CONTENT_TYPE, Metrics

log = structlog.get_logger(__name__)

router = APIRouter(tags=["health"], responses=RESPONSES)


@router.get("/metrics", operation_id="getMetrics", response_class=Response)
def get_metrics(services: ServicesDep, _: OwnerDep) -> Response:
    """Return the metrics in Prometheus's text format."""
    ready = bool(services.registry.ready) and not services.jobs.why_not
    free_bytes = shutil.disk_usage(services.settings.state_dir).free
    text = services.metrics.text(services.jobs.count(), ready=ready, free_bytes=free_bytes)
    return Response(text, media_type=CONTENT_TYPE)


class CountedRequests:
    """Counts and logs each request by its route, because the path itself may hold what a user sent."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, seconds = time.monotonic(), 500, 0.0

        async def watch(message: Message) -> None:
            nonlocal status, seconds
            if message["type"] == "http.response.start":
                status, seconds = message["status"], time.monotonic() - started
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.request_answered(method, route, status, seconds)
            log.info("request", method=method, route=route, status=status, milliseconds=round(1000 * seconds, 1))


_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
