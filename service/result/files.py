"""Names of the files in a result's folder, and what can be derived from those that were kept."""

from pathlib import Path
from typing import Final

from service.errors import NoSourceSeries, ResultExpired
from service.schemas import WITHDRAWN, StatementStatus, Summary
from service.storage.local import RESULT

__all__ = ["CONFIDENCE", "FRAME", "LOGITS", "MASK", "RESULT", "SOURCE", "SUMMARY"]

MASK: Final = "mask.nii.gz"
CONFIDENCE: Final = "confidence.nii.gz"
SUMMARY: Final = "summary.json"
FRAME: Final = "frame.json"
"""Position of the logits on the scan's grid (`service.result.frame`)."""
LOGITS: Final = "logits.npy.gz"
"""Logits on the network's grid (`service.result.logits`); the retention policy erases them first."""
SOURCE: Final = "source.json.gz"
"""Headers of a DICOM scan's series, for DICOM results. They name the patient and never leave the service."""


def offers_dicom(result: Path) -> bool:
    """Return whether every file that DICOM objects need was kept; a parametric map needs the logits, too."""
    return all((result / name).is_file() for name in (SOURCE, MASK, CONFIDENCE, SUMMARY))


def status_of(result: Path) -> StatementStatus | None:
    """Return the verdict of a result's summary; None if the summary was not kept."""
    path = result / SUMMARY
    return Summary.model_validate_json(path.read_bytes()).statement.status if path.is_file() else None


def mark_of(result: Path) -> str:
    """Return what stands before every name of a result that a viewer shows: a mark if it is withdrawn, else nothing."""
    return f"{WITHDRAWN} " if status_of(result) == "withdrawn" else ""


def holds_series(result: Path) -> bool:
    """Return whether the scan of a result was a DICOM series."""
    return (result / SOURCE).is_file()


def reject_without_series(result: Path) -> None:
    """Refuse DICOM objects of a result whose scan was not a DICOM series.

    Raises:
        NoSourceSeries: there was no series.
    """
    if not holds_series(result):
        msg = "The scan was not a DICOM series, or had no Study Instance UID, so a DICOM result would belong to no study. Ask for NIfTI, or send the zip of a DICOM series."
        raise NoSourceSeries(msg)


def reject_without_logits(result: Path) -> None:
    """Refuse computations on a result whose logits are not kept.

    Raises:
        ResultExpired: there are no logits.
    """
    if not (result / LOGITS).is_file():
        msg = (
            "The logits that this is computed from are not kept: the segmentation was made without `probabilities` among "
            "its outputs, or they were erased by the retention policy. Segment the scan again."
        )
        raise ResultExpired(msg)
