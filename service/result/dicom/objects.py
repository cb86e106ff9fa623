"""The table of DICOM objects that can be made of a result; each is written as a Part-10 file (PS3.10)."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

from highdicom.base import SOPClass

from service.result.dicom.outcome import Outcome
from service.result.dicom.pageobjects import make_capture, make_document
from service.result.dicom.parametricmap import make_parametric_map
from service.result.dicom.report import make_report
from service.result.dicom.segmentation import make_bands, make_label_map, make_segmentation
from service.schemas import DicomObject

MAKERS: Final[Mapping[DicomObject, Callable[[Outcome], SOPClass]]] = {
    "seg": make_segmentation,
    "sr": make_report,
    "sc": make_capture,
    "pm": make_parametric_map,
    "bands": make_bands,
    "labelmap": make_label_map,
    "pdf": make_document,
}
"""The function that makes each object."""


def write_objects(outcome: Outcome, folder: Path, objects: Collection[DicomObject]) -> None:
    """Write objects as `<object>.dcm`; equal outcomes give equal bytes.

    Args:
        outcome: the result that they show.
        folder: for the files.
        objects: which objects.
    """
    for dicom_object in objects:
        MAKERS[dicom_object](outcome).save_as(folder / f"{dicom_object}.dcm", enforce_file_format=True)
