"""Mask and maps -> NIfTI files with the header of the scan.

The scan's header is repeated field by field: shape, affine, and codes and values of qform and sform equal the input's
to the last bit. Only the fields that describe the voxels, and free text, are replaced.
"""

import math
from typing import Final, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip

from service import __version__

Content = Literal["probabilities", "uncertainty", "confidence"]
"""Content of a map: p of each class, entropy of p divided by ln C, or the largest p."""

VoxelType = Literal["uint8", "uint16", "float32"]
"""Storage of a value in [0, 1]: as float, or as an integer whose scl_slope is 1 over the largest integer."""

SLOPES: Final[dict[VoxelType, np.float32]] = {
    "uint8": np.nextafter(np.float32(1 / 255), np.float32(0)),
    "uint16": np.nextafter(np.float32(1 / 65535), np.float32(0)),
    "float32": np.float32(1),
}
"""scl_slope of a map: the float32 just below 1/255 (1/65535), so that the largest integer never reads as more than 1."""

_GZIP_LEVEL: Final = 1
"""isal's levels are 0 to 3; higher ones take longer and save almost nothing here."""

_FREE_TEXT = ("descrip", "aux_file", "db_name", "intent_name", "data_type", "unused_str")


def encode_mask(mask: npt.NDArray[np.uint8], scan_header: bytes) -> bytes:
    """Return the mask as .nii.gz, uint8. Its intent code is 1002 (label): without it viewers draw no contours.

    Args:
        mask: (D, H, W) label values on the scan's grid.
        scan_header: header of the scan.
    """
    header = _header_like(scan_header, "label")
    header["cal_max"] = int(mask.max())
    return _gzip(_block(header) + mask.tobytes(order="F"))


def encode_confidence(confidence: npt.NDArray[np.float32], scan_header: bytes, classes: int) -> bytes:
    """Return the confidence as .nii.gz, uint8 with a slope of 1/255: readers see values in [1/C, 1], exact to 1/255.

    Args:
        confidence: (D, H, W) in [1/C, 1] on the scan's grid.
        scan_header: header of the scan.
        classes: C, background included.
    """
    codes = np.empty(confidence.shape, np.uint8, order="F")
    # Slice by slice, to avoid float32 copies of the whole volume.
    for plane, values in zip(np.moveaxis(codes, -1, 0), np.moveaxis(confidence, -1, 0), strict=True):
        plane[...] = to_codes(values, "uint8", least=1 / classes)
    return _gzip(map_header(scan_header, "uint8") + codes.tobytes(order="F"))


def to_codes(
    values: npt.NDArray[np.float32], voxel_type: VoxelType, *, least: float = 0.0
) -> npt.NDArray[np.uint8 | np.uint16 | np.float32]:
    """Quantise values of [least, 1] for storage; after scl_slope they are in [least, 1], exact to one step.

    Args:
        values: any shape; rounding errors may have moved them slightly outside.
        voxel_type: of the file.
        least: lower bound of the stored integers; float32 values are stored unchanged.
    """
    if voxel_type == "float32":
        return values.astype(np.float32, copy=False)
    slope = SLOPES[voxel_type]
    lowest = math.ceil(least / float(slope))
    return np.clip(np.rint(values / slope), lowest, np.iinfo(voxel_type).max).astype(voxel_type)


def map_header(scan_header: bytes, voxel_type: VoxelType, volumes: int = 1) -> bytes:
    """Return everything before the voxels of a .nii with values in [0, 1]; its intent code is 1001 (estimate).

    Args:
        scan_header: header of the scan.
        voxel_type: of the voxels, which are little-endian.
        volumes: length of the fourth axis.
    """
    header = _header_like(scan_header, "estimate", voxel_type)
    header["scl_slope"], header["scl_inter"], header["cal_max"] = SLOPES[voxel_type], 0, 1
    if volumes > 1:
        header["dim"][0], header["dim"][4:] = 4, (volumes, 1, 1, 1)
    return _block(header)


def without_free_text(scan_header: bytes) -> bytes:
    """Return the header of a scan, little-endian, without the free-text fields that may name a patient."""
    header = _scan_header(scan_header)
    return bytes(header.binaryblock)


def encode_source(source: str) -> bytes:
    """Return the kept headers of a DICOM series, gzipped."""
    return _gzip(source.encode())


def _header_like(scan_header: bytes, intent: str, voxel_type: VoxelType = "uint8") -> nib.Nifti1Header:
    header = _scan_header(scan_header)
    header["descrip"] = f"Calibrant {__version__}, research use only".encode()
    header.set_intent(intent)
    header.set_data_dtype(np.dtype(voxel_type))
    header["vox_offset"] = (header.sizeof_hdr + 4 + 15) // 16 * 16
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["cal_min"], header["cal_max"] = 0, 0
    return header


def _scan_header(scan_header: bytes) -> nib.Nifti1Header:
    header_type: type[nib.Nifti1Header] = {348: nib.Nifti1Header, 540: nib.Nifti2Header}[len(scan_header)]
    header = header_type(scan_header, check=False).as_byteswapped("<")
    for field in _FREE_TEXT:
        if field in header.structarr.dtype.names:
            header[field] = b""
    return header


def _block(header: nib.Nifti1Header) -> bytes:
    block: bytes = header.binaryblock
    no_extensions = bytes(int(header["vox_offset"]) - len(block))
    return block + no_extensions


def _gzip(content: bytes) -> bytes:
    return igzip.compress(content, _GZIP_LEVEL, mtime=0)
