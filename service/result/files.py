"""Every file in the folder of a result, and what can be made of those that are there."""

from pathlib import Path
from typing import Final

from service.errors import NoSourceSeries, ResultExpired
from service.storage.local import RESULT

__all__ = ["CONFIDENCE", "FRAME", "LOGITS", "MASK", "RESULT", "SOURCE", "SUMMARY"]

MASK: Final = "mask.nii.gz"
CONFIDENCE: Final = "confidence.nii.gz"
SUMMARY: Final = "summary.json"
FRAME: Final = "frame.json"
"""How the logits lie on the scan's grid (`service.result.frame`)."""
LOGITS: Final = "logits.npy.gz"
"""Logits on the network's grid (`service.result.logits`); erased first by the retention policy."""
SOURCE: Final = "source.json.gz"
"""Headers of a DICOM scan's series, for DICOM results. It names the patient and never leaves the service."""


def offers_dicom(result: Path) -> bool:
    """Return whether all that DICOM objects are made of was kept, except the logits of a parametric map."""
    return all((result / name).is_file() for name in (SOURCE, MASK, CONFIDENCE, SUMMARY))


def holds_series(result: Path) -> bool:
    """Return whether the scan of a result was a DICOM series."""
    return (result / SOURCE).is_file()


def reject_without_series(result: Path) -> None:
    """Raise NoSourceSeries if no DICOM object can be made of a result."""
    if not holds_series(result):
        msg = "The scan was no DICOM series, or one without a Study Instance UID, so that there is no patient, study or series that a DICOM result could belong to. Take NIfTI, or send the zip of a DICOM series."
        raise NoSourceSeries(msg)


def reject_without_logits(result: Path) -> None:
    """Raise ResultExpired if nothing can be computed from a result any more."""
    if not (result / LOGITS).is_file():
        msg = (
            "The logits that this is computed from are not kept: the segmentation was made without `probabilities` among "
            "its outputs, or they were erased by the retention policy. Segment the scan again."
        )
        raise ResultExpired(msg)
