"""Runs the check of a scan that has arrived, within the memory that all checks may take together."""

from pathlib import Path

from starlette.concurrency import run_in_threadpool

from service.api.deps import Services
from service.intake.budget import claim_of
from service.intake.sandbox import check_sandboxed, select_sandboxed
from service.storage.local import Upload
from service.volume import Stated


async def check_scan_of(services: Services, path: Path) -> Stated:
    """Return what a file states, once a check has found no fault in it.

    Raises:
        ScanError: the file's header, geometry or length is invalid.
        ServiceBusy: too many other files are being checked.
    """
    async with services.checks.claim(await run_in_threadpool(claim_of, path)):
        return await run_in_threadpool(check_sandboxed, path)


async def select_series(services: Services, upload: Upload, series: str) -> int:
    """Write one series of a received zip over the zip, on the disk, and return its bytes.

    Raises:
        InvalidRequest: the file does not hold the series.
        ScanError: it cannot be read.
        StorageFull: no space is left.
        ServiceBusy: too many other files are being checked.
    """
    async with services.checks.claim(await run_in_threadpool(claim_of, upload.path)):
        return await run_in_threadpool(_select, upload, series)


def _select(upload: Upload, series: str) -> int:
    with upload.beside() as packed:
        select_sandboxed(upload.path, series, packed)
        return upload.replace(packed)
