"""Mask, confidence, logits and summary -> the bytes of the files that a caller receives.

NIfTI: the header of the scan is repeated field by field, so shape, affine, and the codes and values of qform and sform
are those of the input to the last bit. Only what describes the voxels, and free text, is replaced.
"""

import gzip
import io
import math

import nibabel as nib
import numpy as np
import numpy.typing as npt

from service import __version__

MASK = "mask.nii.gz"
CONFIDENCE = "confidence.nii.gz"
SUMMARY = "summary.json"
LOGITS = "logits.npy.gz"

CONFIDENCE_SLOPE = np.nextafter(np.float32(1 / 255), np.float32(0))
"""scl_slope of the confidence map: the float32 below 1/255, so that the code 255 never reads as more than 1."""

_GZIP_LEVEL = 3
_FREE_TEXT = ("descrip", "aux_file", "db_name", "intent_name", "data_type", "unused_str")


def encode_mask(mask: npt.NDArray[np.uint8], scan_header: bytes) -> bytes:
    """Return the mask as .nii.gz, uint8, with the NIfTI intent code 1002 (label), without which viewers draw no contour.

    Args:
        mask: (D, H, W) label values on the scan's grid.
        scan_header: header of the scan.
    """
    header = _header_like(scan_header, "label")
    header["cal_max"] = int(mask.max())
    return _nifti(mask, header)


def encode_confidence(confidence: npt.NDArray[np.float32], scan_header: bytes, classes: int) -> bytes:
    """Return the confidence as .nii.gz, uint8 with a slope of 1/255: readers see values in [1/C, 1], within 1/255.

    Args:
        confidence: (D, H, W) in [1/C, 1] on the scan's grid.
        scan_header: header of the scan.
        classes: C, background included.
    """
    header = _header_like(scan_header, "estimate")
    header["scl_slope"], header["scl_inter"], header["cal_max"] = CONFIDENCE_SLOPE, 0, 1
    least = math.ceil(1 / classes / float(CONFIDENCE_SLOPE))
    codes = np.clip(np.rint(confidence / CONFIDENCE_SLOPE), least, 255).astype(np.uint8)
    return _nifti(codes, header)


def encode_logits(logits: npt.NDArray[np.float16]) -> bytes:
    """Return the float16 logits on the network's grid, (C, D, H, W), as a gzipped .npy."""
    buffer = io.BytesIO()
    np.save(buffer, logits, allow_pickle=False)
    return _gzip(buffer.getvalue())


def _header_like(scan_header: bytes, intent: str) -> nib.Nifti1Header:
    kind: type[nib.Nifti1Header] = {348: nib.Nifti1Header, 540: nib.Nifti2Header}[len(scan_header)]
    header = kind(scan_header, check=False).as_byteswapped("<")
    for field in _FREE_TEXT:
        if field in header.structarr.dtype.names:
            header[field] = b""
    header["descrip"] = f"Calibrant {__version__}, research use only".encode()
    header.set_intent(intent)
    header.set_data_dtype(np.uint8)
    header["vox_offset"] = (header.sizeof_hdr + 4 + 15) // 16 * 16
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["cal_min"], header["cal_max"] = 0, 0
    return header


def _nifti(array: npt.NDArray[np.uint8], header: nib.Nifti1Header) -> bytes:
    block = header.binaryblock
    no_extensions = bytes(int(header["vox_offset"]) - len(block))
    return _gzip(block + no_extensions + array.tobytes(order="F"))


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, compresslevel=_GZIP_LEVEL, mtime=0)
