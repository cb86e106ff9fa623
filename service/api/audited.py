"""Notes in the audit log who changed something, read a result, or was refused."""

import re
import threading
import time
from typing import Final

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.origins import SAFE
from service.storage.audit import AuditLog, Event

_REFUSED: Final = frozenset({401, 403})
_RESULT: Final = re.compile(r"/v1/segmentations/\{job_id\}/(?!events$)")
"""Paths of routes that give out what was made from a scan."""

REFUSALS_S: Final = 1.0
"""Seconds between two lines about refusals; those in between are counted, so that nobody fills the disk with them."""


class Audited:
    """Middleware; the caller is what `service.api.deps` has found out."""

    def __init__(self, app: ASGIApp, audit: AuditLog) -> None:
        self._app = app
        self._audit = audit
        self._turn = threading.Lock()
        self._refused = float("-inf")
        self._left_out = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and note it once its status is known."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start":
                event = self._event(scope, message)
                if event is not None:
                    await run_in_threadpool(self._audit.record, event)
            await send(message)

        await self._app(scope, receive, watch)

    def _event(self, scope: Scope, answer: Message) -> Event | None:
        """Return what is to be noted of a request; None for nothing."""
        route, status = scope.get("route"), answer["status"]
        refused = status in _REFUSED
        path = getattr(route, "path", "")
        if not refused and (route is None or (scope["method"] in SAFE and not _RESULT.match(path))):
            return None
        left_out = self._count_refusal() if refused else 0
        if left_out is None:
            return None
        owner = scope.get("state", {}).get("owner")
        name = getattr(route, "operation_id", None) or getattr(route, "name", "") or "unknown"
        return Event(
            did=f"refused: {name}" if refused else name,
            who=owner.name if owner else "",
            key=owner.key if owner else "",
            job=_job_of(scope, answer),
            status=status,
            left_out=left_out,
        )

    def _count_refusal(self) -> int | None:
        """Return how many refusals were left out before this one; None if it is left out itself."""
        with self._turn:
            if time.monotonic() - self._refused < REFUSALS_S:
                self._left_out += 1
                return None
            self._refused = time.monotonic()
            left_out, self._left_out = self._left_out, 0
            return left_out


def _job_of(scope: Scope, answer: Message) -> str:
    """Return the id of the job that a request is about: in its path, or in the answer's Location."""
    job = scope.get("path_params", {}).get("job_id")
    if job is not None:
        return str(job)
    location = next((value for name, value in answer.get("headers", ()) if name.lower() == b"location"), b"")
    found = re.search(rb"/(?:segmentations|dicom/jobs|jobs)/([0-9a-f]{32,64})$", location)
    return found[1].decode() if found else ""
