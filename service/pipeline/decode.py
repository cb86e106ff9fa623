"""Bytes of a NIfTI file -> Volume, after everything that the header claims has been checked.

Runs in the sandbox (`service.pipeline.sandbox`) for whatever a stranger sent. NIfTI is read by nibabel: pure Python,
it neither guesses an orientation nor returns voxels that the file does not hold (docs/decisions/0003).
"""

import gzip
import io
import zlib
from pathlib import Path
from typing import Final

import nibabel as nib
import numpy as np
import numpy.typing as npt

from service.errors import (
    EmptyBody,
    InvalidAffine,
    InvalidSpacing,
    MissingOrientation,
    NonFiniteVoxels,
    PayloadTooLong,
    PayloadTruncated,
    UnrecognisedFormat,
    UnsupportedDimensions,
    UnsupportedVoxelType,
    VolumeTooLarge,
)
from service.volume import Volume

MAX_VOXELS: Final = 1 << 29
"""Most voxels of a volume, 512 x 512 x 2048."""

_GZIP_MAGIC = b"\x1f\x8b"
_HEADERS: dict[int, tuple[type[nib.Nifti1Header], bytes]] = {
    348: (nib.Nifti1Header, b"n+1\0"),
    540: (nib.Nifti2Header, b"n+2\0"),
}
_MAX_OFFSET_BYTES = 1 << 24
_AGREEMENT = 1e-3
_FORMATS = "a NIfTI file, .nii or .nii.gz with header and voxels in one file"


def decode_scan(path: Path) -> Volume:
    """Return the volume of a NIfTI-1 or NIfTI-2 file, its voxels as stored or, if it declares a scale, as float32.

    Raises:
        ScanError: the kind says what is wrong; nothing of the file's content is in the message.
    """
    header, voxels = _read(path, with_voxels=True)
    affine, warnings = _checked_affine(header)
    array = _scaled(voxels, header)
    _reject_non_finite(array)
    return Volume(array[np.newaxis], affine, header.binaryblock, warnings)


def check_scan(path: Path) -> None:
    """Raise what `decode_scan` would raise over the header, the geometry and the length of the file.

    The intensities are not looked at: a scan of NaN passes here and fails when it is decoded.
    """
    header, _ = _read(path, with_voxels=False)
    _checked_affine(header)


def _read(path: Path, *, with_voxels: bool) -> tuple[nib.Nifti1Header, bytes]:
    if path.stat().st_size == 0:
        msg = f"The body holds 0 bytes. Send {_FORMATS}."
        raise EmptyBody(msg)
    with path.open("rb") as plain:
        compressed = plain.read(2) == _GZIP_MAGIC
        plain.seek(0)
        file = gzip.GzipFile(fileobj=plain) if compressed else plain
        try:
            header = _read_header(file)
            return header, _read_voxels(file, header, with_voxels=with_voxels)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            msg = "The gzip stream is cut short or damaged. Send the whole file again; `gzip -t FILE` tells whether it is intact."
            raise PayloadTruncated(msg) from error


def _read_header(file: io.BufferedIOBase) -> nib.Nifti1Header:
    start = file.read(4)
    sizes = {int.from_bytes(start, "little"), int.from_bytes(start, "big")} & _HEADERS.keys()
    if not sizes:
        msg = f"The content is not NIfTI (its first bytes are no NIfTI header). Send {_FORMATS}."
        raise UnrecognisedFormat(msg)
    size = sizes.pop()
    kind, magic = _HEADERS[size]
    block = start + file.read(size - 4)
    if len(block) < size:
        msg = f"The file ends inside its header: {len(block)} of {size} bytes. Send the whole file again."
        raise PayloadTruncated(msg)
    header = kind(block, check=False)
    if header["magic"].tobytes()[:4].ljust(4, b"\0") != magic:
        msg = f"The header does not say that its voxels follow in the same file. Send {_FORMATS}."
        raise UnrecognisedFormat(msg)
    _reject_dimensions(header)
    _reject_voxel_type(header)
    return header


def _reject_dimensions(header: nib.Nifti1Header) -> None:
    rank = int(header["dim"][0])
    shape = [int(n) for n in header["dim"][1 : rank + 1]] if 0 < rank < len(header["dim"]) else []
    if not shape or min(shape) < 1:
        msg = "The header's dimensions are not valid (a rank outside 1 to 7, or an axis of length 0 or less). Convert the scan again."
        raise UnsupportedDimensions(msg)
    extents = " x ".join(map(str, shape))
    if len(shape) > 3 and max(shape[3:]) > 1:  # noqa: PLR2004 - three axes in space
        msg = f"A {len(shape)}-D image of {extents} was found; a 3-D volume is expected. Extract one volume and send that."
        raise UnsupportedDimensions(msg)
    if len(shape) < 3 or min(shape[:3]) < 2:  # noqa: PLR2004 - a slice is no volume
        msg = f"An image of {extents} was found; a 3-D volume with at least 2 voxels along each axis is expected. Send the whole volume, not a slice."
        raise UnsupportedDimensions(msg)
    if int(np.prod(shape, dtype=object)) > MAX_VOXELS:
        msg = (
            f"A volume of {extents} voxels was found; at most {MAX_VOXELS} voxels are accepted. Crop or downsample it."
        )
        raise VolumeTooLarge(msg)


def _reject_voxel_type(header: nib.Nifti1Header) -> None:
    try:
        dtype = header.get_data_dtype()
    except (KeyError, nib.spatialimages.HeaderDataError) as error:
        msg = f"The voxel type code {int(header['datatype'])} is not known. Convert the scan to int16 or float32."
        raise UnsupportedVoxelType(msg) from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:  # noqa: PLR2004 - bytes of float64
        msg = f"Voxels of the type code {int(header['datatype'])} (RGB, complex or extended precision) were found. Convert the scan to int16 or float32."
        raise UnsupportedVoxelType(msg)


def _read_voxels(file: io.BufferedIOBase, header: nib.Nifti1Header, *, with_voxels: bool) -> bytes:
    """Return the payload after proving that the file holds exactly what its header announces."""
    size = int(header["sizeof_hdr"])
    offset = float(header["vox_offset"])
    if not size <= offset <= _MAX_OFFSET_BYTES:
        msg = "The header says that the voxels begin inside the header or far beyond it. Convert the scan again."
        raise UnrecognisedFormat(msg)
    _read_exactly(file, int(offset) - size, keep=False)
    expected = int(np.prod(header.get_data_shape(), dtype=np.int64)) * header.get_data_dtype().itemsize
    payload = _read_exactly(file, expected, keep=with_voxels)
    if file.read(1):
        msg = f"More than the {expected} bytes of voxels that the header announces were found. Convert the scan again."
        raise PayloadTooLong(msg)
    return payload


def _read_exactly(file: io.BufferedIOBase, expected: int, *, keep: bool) -> bytes:
    kept, found = io.BytesIO(), 0
    while found < expected and (chunk := file.read(min(1 << 20, expected - found))):
        found += len(chunk)
        if keep:
            kept.write(chunk)
    if found < expected:
        msg = f"The header announces {expected} bytes of voxels; {found} were found. The file is cut short: send the whole file again."
        raise PayloadTruncated(msg)
    return kept.getvalue()


def _checked_affine(header: nib.Nifti1Header) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    spacing = header["pixdim"][1:4].astype(np.float64)
    if not np.all(np.isfinite(spacing) & (spacing > 0)):
        msg = "The header's voxel size is zero, negative or not a number. Convert the scan again from its source."
        raise InvalidSpacing(msg)
    sform, qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    if not sform and not qform:
        msg = "Both orientations of the header (qform and sform) are unset, so left and right are unknown. Convert the scan again from its source."
        raise MissingOrientation(msg)
    affine = header.get_sform() if sform else _qform(header)
    _reject_affine(affine)
    if sform and qform and not np.allclose(affine, _qform(header), atol=_AGREEMENT * float(spacing.max())):
        return affine, ("The file holds two orientations (qform and sform) that differ; the sform was used.",)
    return affine, ()


def _qform(header: nib.Nifti1Header) -> npt.NDArray[np.float64]:
    header = header.copy()
    # NIfTI-1 standard, method 2: a qfac (pixdim[0]) of 0 means 1.
    header["pixdim"][0] = header["pixdim"][0] or 1
    try:
        return np.asarray(header.get_qform(), dtype=np.float64)
    except (ValueError, nib.spatialimages.HeaderDataError) as error:
        msg = "The header's quaternion is not a rotation. Convert the scan again from its source."
        raise InvalidAffine(msg) from error


def _reject_affine(affine: npt.NDArray[np.float64]) -> None:
    if not np.isfinite(affine).all():
        msg = "The header's matrix holds values that are not finite. Convert the scan again from its source."
        raise InvalidAffine(msg)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not lengths.all():
        msg = "The header's matrix is singular: an axis has length 0. Convert the scan again from its source."
        raise InvalidAffine(msg)
    axes = affine[:3, :3] / lengths
    shear = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if shear > _AGREEMENT:
        msg = (
            f"The header's axes are not at right angles (cosine {shear:.3f}). Resample the scan to a rectangular grid."
        )
        raise InvalidAffine(msg)


def _scaled(payload: bytes, header: nib.Nifti1Header) -> npt.NDArray[np.generic]:
    stored = np.frombuffer(payload, header.get_data_dtype())
    shape = header.get_data_shape()[:3]
    array = stored.reshape(shape, order="F").astype(stored.dtype.newbyteorder("="), copy=False)
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    # NIfTI-1 standard, scl_slope: 0 (and by custom NaN) means that the stored values are the intensities.
    if slope == 0 or not np.isfinite(slope) or (slope, intercept) == (1, 0):
        return array
    scaled = np.empty(shape, np.float32, order="F")
    with np.errstate(over="ignore"):  # what becomes infinite is refused below
        for k in range(shape[2]):  # slice by slice: no float64 copy of the whole volume
            scaled[..., k] = array[..., k] * np.float64(slope) + (intercept if np.isfinite(intercept) else 0)
    return scaled


def _reject_non_finite(array: npt.NDArray[np.generic]) -> None:
    if array.dtype.kind != "f":
        return
    usable = np.abs(array) <= np.finfo(np.float32).max  # false for NaN, too; what float32 cannot hold is infinite to us
    if not usable.all():
        msg = f"{array.size - int(usable.sum())} of {array.size} voxels are NaN or infinite. Replace them, e.g. by the background's value."
        raise NonFiniteVoxels(msg)
