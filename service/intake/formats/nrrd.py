"""NRRD with its voxels in the same file -> Volume. The header is read here, not by ITK (docs/decisions/0007).

The format: http://teem.sourceforge.net/nrrd/format.html, versions 1 to 5, as far as ITK, 3D Slicer and pynrrd use it
for one volume.
"""

import re
from collections.abc import Iterator
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from isal import igzip

from service.errors import (
    InvalidHeader,
    InvalidSpacing,
    MissingOrientation,
    UnrecognisedFormat,
    UnsafeHeader,
    UnsupportedCompression,
    UnsupportedDimensions,
    UnsupportedVoxelType,
)
from service.intake.formats.geometry import bytes_of, checked_affine, lps_to_ras, reject_bomb, reject_shape
from service.intake.formats.layout import Layout, check_volume, read_sizes, read_volume
from service.intake.formats.payload import Readable
from service.intake.formats.textheader import Fields, read_lines
from service.volume import Volume

_MAGIC = re.compile(r"NRRD000[1-5]")
_READ = {"type", "dimension", "sizes", "encoding", "endian", "space", "space directions", "space origin", "space units"}
_WITHOUT_MEANING_HERE = {
    *("kinds", "centers", "centerings", "content", "labels", "units", "thicknesses", "spacings"),
    *("min", "max", "old min", "old max", "oldmin", "oldmax", "sample units", "sampleunits", "number"),
    *("measurement frame", "space dimension"),
}
_ELSEWHERE = {"data file", "datafile", "byte skip", "byteskip", "line skip", "lineskip"}
_SPATIAL_KINDS = {"domain", "space", "none", "???"}
_MILLIMETRES = {'"mm"', "mm", '""', "???"}
_TO_RAS = {
    **dict.fromkeys(["right-anterior-superior", "ras"], np.eye(4)),
    **dict.fromkeys(["left-anterior-superior", "las"], np.diag([-1.0, 1.0, 1.0, 1.0])),
    **dict.fromkeys(["left-posterior-superior", "lps"], lps_to_ras(np.eye(4))),
}
_DTYPES = {
    **dict.fromkeys(["signed char", "int8", "int8_t"], "i1"),
    **dict.fromkeys(["uchar", "unsigned char", "uint8", "uint8_t"], "u1"),
    **dict.fromkeys(["short", "short int", "signed short", "signed short int", "int16", "int16_t"], "i2"),
    **dict.fromkeys(["ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"], "u2"),
    **dict.fromkeys(["int", "signed int", "int32", "int32_t"], "i4"),
    **dict.fromkeys(["uint", "unsigned int", "uint32", "uint32_t"], "u4"),
    **dict.fromkeys(
        ["longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"],
        "i8",
    ),
    **dict.fromkeys(
        ["ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"],
        "u8",
    ),
    "float": "f4",
    "double": "f8",
}
_BYTE_ORDERS: dict[str, Literal["<", ">"]] = {"little": "<", "big": ">"}


def recognise(start: bytes) -> bool:
    """Return whether the first bytes of a file are those of NRRD."""
    return start.startswith(b"NRRD")


def decode(file: BinaryIO) -> Volume:
    """Return the volume of an NRRD file, its voxels as stored.

    Raises:
        ScanError: its class says what is wrong; the message holds nothing of the file's content.
    """
    return read_volume(_layout(file))


def check(file: BinaryIO) -> None:
    """Raise what `decode` would raise."""
    check_volume(_layout(file))


def _layout(file: BinaryIO) -> Layout:
    fields = Fields(_fields(file))
    shape, axes = _shape_and_axes(fields)
    payload = _payload(file, fields)
    if payload is not file:
        reject_bomb(shape, bytes_of(file))
    return Layout(shape, _dtype(fields), _affine(fields, shape, axes), payload)


def _fields(file: BinaryIO) -> Iterator[tuple[str, str]]:
    lines = read_lines(file, lambda line: not line)
    if not _MAGIC.fullmatch(next(lines)):
        msg = "The first line is not that of NRRD, version 1 to 5. Convert the scan again."
        raise UnrecognisedFormat(msg)
    for line in lines:
        name, colon, text = line.partition(":")
        name = name.strip().lower()
        # Comments, the empty line at the end and a writer's own keys have no meaning here.
        if line.startswith("#") or not line or text.startswith("="):
            continue
        if name in _ELSEWHERE:
            msg = "The header says that its voxels lie elsewhere (data file, or lines or bytes to skip). Save header and voxels in one .nrrd file."
            raise UnsafeHeader(msg)
        if not colon or name not in _READ | _WITHOUT_MEANING_HERE:
            msg = "The header holds a line that is not a field of a 3-D volume in one file. Convert the scan again."
            raise UnsafeHeader(msg)
        yield name, text


def _shape_and_axes(fields: Fields) -> tuple[list[int], list[list[float]]]:
    """Return the sizes and the directions of the three axes in space; axes of one voxel outside space are dropped."""
    rank = fields.integers("dimension", 1)[0]
    sizes = read_sizes(fields, "sizes", rank)
    if "space directions" not in fields:
        raise _unplaced()
    directions = fields.vectors_or_none("space directions", rank)
    in_space = [axis for axis, direction in enumerate(directions) if direction is not None]
    kinds = fields.word("kinds").split() if "kinds" in fields else []
    odd = {kinds[axis] for axis in in_space if axis < len(kinds)} - _SPATIAL_KINDS
    outside = [size for axis, size in enumerate(sizes) if axis not in in_space]
    if len(in_space) != 3 or odd or max(outside, default=1) > 1:  # noqa: PLR2004 - three axes in space
        extents = " x ".join(map(str, sizes))
        msg = f"{rank} axes were found ({extents}), or axes that do not lie in space (a vector, a colour, a list); a 3-D volume is expected. Extract one volume and send that."
        raise UnsupportedDimensions(msg)
    shape = [sizes[axis] for axis in in_space]
    reject_shape(shape)
    return shape, [direction for direction in directions if direction is not None]


def _dtype(fields: Fields) -> np.dtype[np.generic]:
    code = _DTYPES.get(fields.word("type"))
    if code is None:
        msg = "The voxel type is not an integer of 8 to 64 bits, float or double. Convert the scan to short or float."
        raise UnsupportedVoxelType(msg)
    if code.endswith("1"):
        return np.dtype(code)
    order = _BYTE_ORDERS.get(fields.word("endian"))
    if order is None:
        msg = "The header's field 'endian' is neither little nor big. Convert the scan again."
        raise InvalidHeader(msg)
    return np.dtype(code).newbyteorder(order)


def _affine(fields: Fields, shape: list[int], axes: list[list[float]]) -> npt.NDArray[np.float64]:
    to_ras = _TO_RAS.get(fields.word("space")) if "space" in fields else None
    if to_ras is None or "space origin" not in fields:
        raise _unplaced()
    if "spacings" in fields:
        msg = "The header holds both spacings and space directions, which the format forbids. Convert the scan again."
        raise InvalidHeader(msg)
    units = {word for name in ("space units", "units") if name in fields for word in fields.word(name).split()}
    if units - _MILLIMETRES:
        msg = "The header's units are not millimetres. Convert the scan again with voxel sizes in mm."
        raise InvalidSpacing(msg)
    affine: npt.NDArray[np.float64] = to_ras @ checked_affine(
        np.transpose(axes), fields.vectors("space origin", 1)[0], shape
    )
    return affine


def _unplaced() -> MissingOrientation:
    msg = "The header does not place the voxels in the patient: space (left-posterior-superior, right-anterior-superior or left-anterior-superior), space directions and space origin are expected. Convert the scan again from its source."
    return MissingOrientation(msg)


def _payload(file: BinaryIO, fields: Fields) -> Readable:
    encoding = fields.word("encoding")
    if encoding == "raw":
        return file
    if encoding in ("gzip", "gz"):
        return igzip.IGzipFile(fileobj=file)
    msg = "The header's encoding is neither raw nor gzip. Save the scan with one of these."
    raise UnsupportedCompression(msg)
