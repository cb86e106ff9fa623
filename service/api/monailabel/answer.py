"""Answers to MONAI Label's clients: the mask in the requested encoding, and its parameters.

They are never sent in chunks: the client of 3D Slicer bypasses its HTTP library and would save the chunk lengths among
the voxels.
"""

import json
import secrets
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from fastapi import Response
from pydantic import BaseModel, ConfigDict, ValidationError

from service.errors import InvalidRequest
from service.result.files import MASK, RESULT, SUMMARY, mark_of
from service.result.frame import read_frame
from service.result.outputs import read_mask
from service.result.segnrrd import encode_nrrd, encode_segmentation
from service.schemas import LINK_PREFIX, Accept, CaseResult, Job, Stage, Summary

BINARY: Final = "application/octet-stream"
"""Media type of every mask; OHIF searches a form for exactly this text."""

_LATENCIES: Final[dict[str, tuple[Stage, ...]]] = {
    "pre": ("decode", "locate", "preprocess"),
    "infer": ("infer",),
    "invert": (),
    "post": ("calibrate",),
    "write": ("encode", "store"),
}
"""Our stages by MONAI Label's names; its inversion is part of calibrate here."""


class Wish(BaseModel):
    """The client's parameters that change the answer; all others are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    result_extension: Literal[".nrrd", ".seg.nrrd", ".nii.gz"] = ".nrrd"
    result_dtype: Literal["uint8", "uint16"] = "uint8"
    """Voxel type of an .nrrd; the other two formats are always uint8."""
    result_compress: bool = True
    """Whether an .nrrd is gzipped; the other two formats always are."""
    accept: Accept = "stated"
    """Our own: `anyway` segments a scan that the model does not accept, too."""

    @classmethod
    def read(cls, params: bytes) -> "Wish":
        """Return the client's parameters from a JSON text.

        Raises:
            InvalidRequest: no JSON object, or a value that is not offered.
        """
        try:
            return cls.model_validate_json(params or b"{}")
        except ValidationError as error:
            names = ", ".join(sorted({str(detail["loc"][0]) for detail in error.errors() if detail["loc"]}))
            msg = f"params cannot be used ({names or 'the whole'}). A JSON object is expected, with result_extension .nrrd, .seg.nrrd or .nii.gz, result_dtype uint8 or uint16, result_compress true or false, accept stated or anyway."
            raise InvalidRequest(msg) from error


def encode_image(result: Path, wish: Wish) -> bytes:
    """Return the mask on the scan's grid, voxel for voxel in the order of the scan's file.

    For a DICOM series that order is column, row, slice, with the slices along row direction x column direction: the
    order in which cornerstone, OHIF's renderer, keeps a volume. OHIF reads the voxels and ignores the geometry.

    Args:
        result: folder of a finished job.
        wish: the client's parameters.
    """
    if wish.result_extension == ".nii.gz":
        return (result / MASK).read_bytes()
    mask, frame = read_mask(result), read_frame(result)
    if wish.result_extension == ".seg.nrrd":
        return encode_segmentation(mask, frame, mark_of(result))
    return encode_nrrd(mask.astype(wish.result_dtype), frame, packed=wish.result_compress)


def describe(job: Job, result: Path) -> dict[str, Any]:
    """Return the parameters of an answer: MONAI Label's own, then the calibration summary.

    `label_names` holds only the labels that occur in the mask, because 3D Slicer assigns the names in order to the values
    that it finds there; each begins with a mark if the statement is withdrawn, because that is all that the viewers show of it.
    `centroids` holds label value, i, j and k (voxels) by label.
    """
    mask = read_mask(result)
    labels = sorted(read_frame(result).config.labels[1:], key=lambda label: label.value)
    summary = Summary.model_validate_json((result / SUMMARY).read_bytes())
    mark = mark_of(result)
    voxels = {(f"{mark}{label.name}", label.value): np.argwhere(mask == label.value) for label in labels}
    centroids = {label: places.mean(axis=0).round(2) for label, places in voxels.items() if len(places)}
    seconds = CaseResult.model_validate_json((result / RESULT).read_bytes()).seconds
    latencies = {
        name: round(sum(seconds.get(stage, 0.0) for stage in stages), 3) for name, stages in _LATENCIES.items()
    }
    return {
        "label_names": dict(list(centroids)),
        "centroids": {name: [value, *centre.tolist()] for (name, value), centre in centroids.items()},
        "latencies": {**latencies, "total": round(sum(seconds.values()), 3), "transform": {}},
        "calibration": summary.model_dump(mode="json"),
        "confidence_url": job.links.confidence and LINK_PREFIX.get() + job.links.confidence,
        "job_url": job.links.self,
    }


def form_of(params: dict[str, Any], name: str, image: bytes) -> Response:
    """Return the form of parameters and mask that 3D Slicer and some versions of OHIF read.

    Args:
        params: sent without a file name, by which the clients tell them from the mask.
        name: file name under which 3D Slicer saves the mask.
        image: bytes of the mask's file.
    """
    boundary = secrets.token_hex(16)
    headers = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\nContent-Type: application/json\r\n\r\n',
        json.dumps(params),
        f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\nContent-Type: {BINARY}\r\n\r\n',
    ]
    body = "".join(headers).encode() + image + f"\r\n--{boundary}--\r\n".encode()
    return Response(body, media_type=f"multipart/form-data; boundary={boundary}")
