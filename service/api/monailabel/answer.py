"""A finished job -> what MONAI Label's clients read: the mask as they asked for it, and parameters about it.

Never in chunks: the client of 3D Slicer reads the connection past its HTTP library, and would save the lengths of the
chunks among the voxels.
"""

import json
import secrets
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from fastapi import Response
from pydantic import BaseModel, ConfigDict, ValidationError

from service.errors import InvalidRequest
from service.result.files import MASK, RESULT, SUMMARY
from service.result.frame import read_frame
from service.result.outputs import read_mask
from service.result.segnrrd import encode_nrrd, encode_segmentation
from service.schemas import CaseResult, Job, Stage, Summary

BINARY: Final = "application/octet-stream"
"""Media type of every mask: OHIF looks for this very text in a form."""

_LATENCIES: Final[dict[str, tuple[Stage, ...]]] = {
    "pre": ("decode", "locate", "preprocess"),
    "infer": ("infer",),
    "invert": (),
    "post": ("calibrate",),
    "write": ("encode", "store"),
}
"""MONAI Label's words for our stages; what it inverts is part of calibrate here."""


class Wish(BaseModel):
    """Those of the clients' parameters that change the answer; the others are theirs."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    result_extension: Literal[".nrrd", ".seg.nrrd", ".nii.gz"] = ".nrrd"
    result_dtype: Literal["uint8", "uint16"] = "uint8"
    """Of an .nrrd; the other two are of uint8."""
    result_compress: bool = True
    """Whether an .nrrd is packed with gzip; the other two always are."""

    @classmethod
    def read(cls, params: bytes) -> "Wish":
        """Return the wish of JSON text.

        Raises:
            InvalidRequest: no JSON object, or a value that is not offered.
        """
        try:
            return cls.model_validate_json(params or b"{}")
        except ValidationError as error:
            names = ", ".join(sorted({str(each["loc"][0]) for each in error.errors() if each["loc"]})) or "the whole"
            msg = f"params cannot be used ({names}). A JSON object is expected, with result_extension .nrrd, .seg.nrrd or .nii.gz, result_dtype uint8 or uint16, result_compress true or false."
            raise InvalidRequest(msg) from error


def encode_image(result: Path, wish: Wish) -> bytes:
    """Return the mask on the scan's grid, voxel for voxel in the order of the scan's file.

    Of a DICOM series that order is column, row, slice, with the slices along row direction x column direction: the
    order in which cornerstone, OHIF's renderer, keeps a volume. OHIF reads the voxels and ignores the geometry.

    Args:
        result: folder of a finished job.
        wish: of the client.
    """
    if wish.result_extension == ".nii.gz":
        return (result / MASK).read_bytes()
    mask, frame = read_mask(result), read_frame(result)
    if wish.result_extension == ".seg.nrrd":
        return encode_segmentation(mask, frame)
    return encode_nrrd(mask.astype(wish.result_dtype), frame, packed=wish.result_compress)


def describe(job: Job, result: Path) -> dict[str, Any]:
    """Return the parameters of an answer: MONAI Label's own, and below them what is known about the trust in it.

    `label_names` holds the labels that the mask has, and no other: 3D Slicer gives the names, by value, to the values
    that it finds. `centroids` holds label value, i, j and k (voxels) of each.
    """
    mask = read_mask(result)
    labels = sorted(read_frame(result).config.labels[1:], key=lambda label: label.value)
    voxels = {(label.name, label.value): np.argwhere(mask == label.value) for label in labels}
    found = {label: places.mean(axis=0).round(2) for label, places in voxels.items() if len(places)}
    seconds = CaseResult.model_validate_json((result / RESULT).read_bytes()).seconds
    latencies = {
        name: round(sum(seconds.get(stage, 0.0) for stage in stages), 3) for name, stages in _LATENCIES.items()
    }
    return {
        "label_names": dict(list(found)),
        "centroids": {name: [value, *centre.tolist()] for (name, value), centre in found.items()},
        "latencies": {**latencies, "total": round(sum(seconds.values()), 3), "transform": {}},
        "calibration": Summary.model_validate_json((result / SUMMARY).read_bytes()).model_dump(mode="json"),
        "confidence_url": job.links.confidence,
        "job_url": job.links.self,
    }


def form_of(params: dict[str, Any], name: str, image: bytes) -> Response:
    """Return the form of parameters and mask that 3D Slicer and some versions of OHIF read.

    Args:
        params: without a file name, by which the clients tell them from the mask.
        name: of the file, under which 3D Slicer saves it.
        image: its bytes.
    """
    boundary = secrets.token_hex(16)
    services = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\nContent-Type: application/json\r\n\r\n',
        json.dumps(params),
        f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\nContent-Type: {BINARY}\r\n\r\n',
    ]
    body = "".join(services).encode() + image + f"\r\n--{boundary}--\r\n".encode()
    return Response(body, media_type=f"multipart/form-data; boundary={boundary}")
