"""Erases jobs, scans and logits by the operator's retention policy."""

import datetime as dt
import threading
from dataclasses import dataclass
from typing import Final

import structlog

from service.errors import CalibrantError
from service.jobs.database import HURRIED
from service.jobs.pacs.queue import PacsJobs
from service.jobs.segmentation.queue import SegmentationJobs
from service.result.files import LOGITS
from service.storage.local import StateDirectory

log = structlog.get_logger(__name__)

EVERY_S: Final = 600.0
"""Seconds between two sweeps."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How long data is kept; None means until somebody deletes it.

    Args:
        jobs: for finished jobs with their scans and results, and for scans that no job was made from.
        logits: for the logits behind probabilities and uncertainty.
        not_before: no job or scan is erased before, however old; None if that was decided long ago.
    """

    jobs: dt.timedelta | None
    logits: dt.timedelta | None
    not_before: dt.datetime | None = None


def sweep(
    jobs: SegmentationJobs, state: StateDirectory, policy: Policy, now: dt.datetime, dicom: PacsJobs | None = None
) -> int:
    """Erase what is older than the policy allows, and return the number of jobs, scans and files of logits erased."""
    removed = 0
    if policy.jobs is not None and (policy.not_before is None or policy.not_before <= now):
        removed += dicom.erase_finished(now - policy.jobs) if dicom else 0
        removed += jobs.erase_finished(now - policy.jobs)
        removed += _erase_idle_scans(jobs, state, now - policy.jobs)
    if policy.logits is not None:
        for logits in state.results.glob(f"*/{LOGITS}"):
            if _changed(logits.stat().st_mtime) < now - policy.logits:
                logits.unlink(missing_ok=True)
                removed += 1
    return removed


class Sweeper:
    """Sweeps every few minutes in a thread of its own."""

    def __init__(
        self, jobs: SegmentationJobs, state: StateDirectory, policy: Policy, dicom: PacsJobs | None = None
    ) -> None:
        self._arguments = jobs, state, policy
        self._dicom = dicom
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="calibrant-retention", daemon=True)

    def start(self) -> None:
        """Sweep now, and then periodically."""
        self._thread.start()

    def stop(self) -> None:
        """End once the running sweep is done."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        HURRIED.set(True)
        while not self._ended.is_set():
            try:
                if removed := sweep(*self._arguments, dt.datetime.now(dt.UTC), self._dicom):
                    log.info("erased by the retention policy", removed=removed)
            except (CalibrantError, OSError) as error:
                log.warning("retention sweep failed", error=type(error).__name__)
            self._ended.wait(EVERY_S)


def _erase_idle_scans(jobs: SegmentationJobs, state: StateDirectory, before: dt.datetime) -> int:
    removed = 0
    for scan in state.scans.glob("*/*"):
        owner = scan.parent.name
        if _changed(scan.stat().st_mtime) < before and not jobs.uses(owner, scan.name):
            state.forget_scan(owner, scan.name)
            removed += 1
    return removed


def _changed(timestamp: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(timestamp, dt.UTC)
