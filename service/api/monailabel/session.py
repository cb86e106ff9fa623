"""`/monailabel/session`: a scan that 3D Slicer sends once and segments any number of times.

A session is a stored scan and has its id: it needs no record of its own and survives a restart.
"""

from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request

from service.api.deps import ServicesDep
from service.api.monailabel.door import PREFIX, ViewerDep
from service.api.monailabel.form import receive_form
from service.errors import InvalidRequest, ScanNotFound
from service.schemas import Scan

router = APIRouter(prefix=f"{PREFIX}/session", include_in_schema=False)


@router.put("")
async def begin_session(request: Request, services: ServicesDep, owner: ViewerDep) -> dict[str, Any]:
    """Store the scan of the form's field `files`."""
    sent = await receive_form(request, services, owner.name, "files")
    if sent.scan is None:
        msg = "The form holds no file in its field files. Send the scan there."
        raise InvalidRequest(msg)
    return {"session_id": sent.scan.id, "session_info": _info(sent.scan)}


@router.get("/{session_id}")
def show_session(session_id: str, services: ServicesDep, owner: ViewerDep) -> dict[str, Any] | None:
    """Return a session, or null with 200 if it is gone: 3D Slicer then sends the scan again.

    It would show an error for a 404.
    """
    try:
        return _info(services.state.find_scan(owner.name, session_id))
    except ScanNotFound:
        return None


@router.delete("/{session_id}")
def end_session(session_id: str, services: ServicesDep, owner: ViewerDep) -> dict[str, Any] | None:
    """Erase the scan of a session, unless a segmentation was made from it: erasing that erases the scan, too."""
    try:
        scan = services.state.find_scan(owner.name, session_id)
        with suppress(InvalidRequest):  # a segmentation exists
            services.jobs.erase_scan(owner.name, session_id)
    except ScanNotFound:
        return None
    return _info(scan)


def _info(scan: Scan) -> dict[str, Any]:
    return {"name": scan.id, "image": scan.id, "bytes": scan.bytes, "meta": {}}
