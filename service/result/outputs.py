"""The table of a result's files: their encoders, the outputs that keep them, and how the API serves them.

A new file needs its encoder and one entry here: `run_case` writes it, `bundle.zip` contains it and the API serves it.
Two files are not in the table: the logits, which are streamed to disk while the rest is computed, and `result.json`,
which is written last and lists the hashes of all others.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from service.result.files import CONFIDENCE, FRAME, MASK, SOURCE, SUMMARY, mark_of
from service.result.frame import Frame, read_frame
from service.result.mgz import encode_mgz
from service.result.nifti import encode_confidence, encode_mask, encode_source
from service.result.segnrrd import encode_segmentation
from service.result.sidecars import confidence_sidecars, mask_sidecars
from service.schemas import DicomObject, Output, Summary
from service.volume import Volume

NIFTI: Final = "application/gzip"
"""Media type of a .nii.gz: none is registered for NIfTI."""

NRRD: Final = "application/vnd.unknown.nrrd"
"""Media type of a .seg.nrrd: none is registered for NRRD either."""

MGZ: Final = "application/vnd.unknown.mgz"
"""Media type of an .mgz: none is registered for FreeSurfer's format."""

JSON: Final = "application/json"

MaskFormat = Literal["nii.gz", "seg.nrrd", "mgz", "dcm"]
"""Formats of the mask: the stored file, its conversions below, or `dcm`, a DICOM object of its own."""


@dataclass(frozen=True, slots=True, eq=False)
class FinishedCase:
    """The computed case, ready to be encoded.

    Args:
        volume: the scan.
        mask: (D, H, W) label values on the scan's grid.
        confidence: (D, H, W) in [1/C, 1] on the scan's grid.
        frame: position of the network's grid in the scan.
        summarise: returns the image-level summary; called only if the summary is kept.
    """

    volume: Volume
    mask: npt.NDArray[np.uint8]
    confidence: npt.NDArray[np.float32]
    frame: Frame
    summarise: Callable[[], Summary]


@dataclass(frozen=True, slots=True)
class Conversion:
    """Another format of a stored file, converted on request.

    Args:
        name: file name for the caller.
        media_type: of the response.
        convert: function from the folder of the result to the bytes.
    """

    name: str
    media_type: str
    convert: Callable[[Path], bytes]


@dataclass(frozen=True, slots=True)
class ResultFile:
    """One file in the folder of a result.

    Args:
        name: of the file.
        encode: returns its bytes, or None if the case has no such file.
        output: the output of a job that keeps the file; None if it is always kept.
        media_type: of the API's response; None if the file never leaves the service.
        archive_name: name in `bundle.zip`; `{image}` stands for the BIDS name of an image up to its suffix and
            `{subject}` for that of a file about the subject. None leaves the file out.
        sidecars: files beside it in `bundle.zip`, by extension.
        dicom_object: the DICOM object with the same content.
        conversions: other formats, by the value of `?format=`.
        description: of the route that serves the file under its name; mask, confidence and summary have routes of their own.
    """

    name: str
    encode: Callable[[FinishedCase], bytes | None]
    output: Output | None = None
    media_type: str | None = None
    archive_name: str | None = None
    sidecars: Callable[[Frame], dict[str, bytes]] | None = None
    dicom_object: DicomObject | None = None
    conversions: Mapping[str, Conversion] = field(default_factory=dict)
    description: str = "Return a file of the result."


def encode_files(case: FinishedCase, outputs: Collection[Output]) -> dict[str, list[bytes]]:
    """Return the content of each file of the table that is kept, by name.

    Args:
        case: to encode.
        outputs: that the job keeps.
    """
    kept = (file for file in OUTPUTS if file.output is None or file.output in outputs)
    encoded = {file.name: file.encode(case) for file in kept}
    return {name: [content] for name, content in encoded.items() if content is not None}


def result_file(name: str) -> ResultFile:
    """Return the entry of a file.

    Raises:
        KeyError: the table has no file of this name.
    """
    return {file.name: file for file in OUTPUTS}[name]


def read_mask(result: Path) -> npt.NDArray[np.uint8]:
    """Return the mask of a result, (D, H, W) label values on the scan's grid."""
    image: Any = nib.load(result / MASK)
    return np.asarray(image.dataobj)


def _json(document: BaseModel) -> bytes:
    return document.model_dump_json(indent=2).encode()


def _source(case: FinishedCase) -> bytes | None:
    return None if case.volume.source is None else encode_source(case.volume.source)


OUTPUTS: tuple[ResultFile, ...] = (
    ResultFile(
        MASK,
        lambda case: encode_mask(case.mask, case.volume.header),
        output="mask",
        media_type=NIFTI,
        archive_name="{image}_dseg.nii.gz",
        sidecars=mask_sidecars,
        dicom_object="seg",
        conversions={
            "seg.nrrd": Conversion(
                "mask.seg.nrrd",
                NRRD,
                lambda result: encode_segmentation(read_mask(result), read_frame(result), mark_of(result)),
            ),
            "mgz": Conversion("mask.mgz", MGZ, lambda result: encode_mgz(read_mask(result), read_frame(result))),
        },
    ),
    ResultFile(
        CONFIDENCE,
        lambda case: encode_confidence(case.confidence, case.volume.header, len(case.frame.config.labels)),
        output="confidence",
        media_type=NIFTI,
        archive_name="{image}_desc-confidence_probseg.nii.gz",
        sidecars=confidence_sidecars,
        dicom_object="pm",
    ),
    ResultFile(
        SUMMARY,
        lambda case: _json(case.summarise()),
        output="summary",
        media_type=JSON,
        archive_name="{subject}_summary.json",
        dicom_object="sr",
    ),
    ResultFile(FRAME, lambda case: _json(case.frame)),
    ResultFile(SOURCE, _source),
)
