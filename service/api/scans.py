"""`/v1/scans`: upload a scan once and segment it any number of times."""

from fastapi import APIRouter, Request, Response, status

from service.api.deps import OwnerDep, ServicesDep
from service.api.problems import RESPONSES
from service.api.upload import SCAN_BODY, SeriesQuery, receive_scan
from service.schemas import Scan

router = APIRouter(prefix="/v1/scans", tags=["scans"], responses=RESPONSES)


@router.post("", operation_id="uploadScan", status_code=status.HTTP_201_CREATED, openapi_extra=SCAN_BODY)
async def upload_scan(
    request: Request, response: Response, services: ServicesDep, owner: OwnerDep, series: SeriesQuery = None
) -> Scan:
    """Store a scan. Its id is the SHA-256 of the file, or of the zip of the chosen series: one sent twice is stored once."""
    scan, _ = await receive_scan(request, services, owner.name, series=series)
    response.headers["Location"] = f"/v1/scans/{scan.id}"
    return scan


@router.get("/{scan_id}", operation_id="getScan")
def get_scan(scan_id: str, services: ServicesDep, owner: OwnerDep) -> Scan:
    """Return a stored scan's id and size."""
    return services.state.find_scan(owner.name, scan_id)


@router.delete("/{scan_id}", operation_id="deleteScan", status_code=status.HTTP_204_NO_CONTENT)
def delete_scan(scan_id: str, services: ServicesDep, owner: OwnerDep) -> None:
    """Erase a scan that no segmentation was made from."""
    services.jobs.erase_scan(owner.name, scan_id)
