"""MetaImage, .mha with its voxels in the same file -> Volume.

The header is read here, not by MetaIO, which has open heap overflows (docs/decisions/0007).
Fields mean what they mean to ITK: TransformMatrix holds the directions of the three axes one after another, in LPS.
It overrides AnatomicalOrientation, which ITK treats as a comment; CenterOfRotation is not used. The format:
https://itk.org/Wiki/ITK/MetaIO/Documentation
"""

import re
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from service.errors import (
    InvalidAffine,
    InvalidHeader,
    InvalidSpacing,
    MissingOrientation,
    UnsafeHeader,
    UnsupportedVoxelType,
)
from service.intake.formats.geometry import (
    AGREEMENT,
    bytes_of,
    checked_affine,
    lps_to_ras,
    reject_bomb,
    reject_shape,
    reject_spacing,
)
from service.intake.formats.layout import Layout, check_volume, read_sizes, read_volume
from service.intake.formats.payload import ZlibFile
from service.intake.formats.textheader import Fields, read_lines
from service.volume import Volume

_START = re.compile(rb"\s*(ObjectType|ObjectSubType|NDims|Comment)\s*[=:]")
_SYNONYMS = {
    **dict.fromkeys(["orientation", "rotation"], "transformmatrix"),
    **dict.fromkeys(["origin", "position"], "offset"),
    "elementbyteordermsb": "binarydatabyteordermsb",
}
_READ = {
    *("objecttype", "ndims", "dimsize", "binarydata", "binarydatabyteordermsb", "compresseddata"),
    *("transformmatrix", "offset", "elementspacing", "elementnumberofchannels", "elementtype", "elementdatafile"),
    "distanceunits",
}
# Fields that MetaIO obeys and this reader refuses: they move the voxels or change what they mean.
_REFUSED = {"headersize", "elementtointensityfunctionslope", "elementtointensityfunctionoffset"}
_DTYPES = {
    "met_char": "i1",
    "met_uchar": "u1",
    "met_short": "i2",
    "met_ushort": "u2",
    "met_int": "i4",
    "met_uint": "u4",
    "met_long": "i4",  # on every machine: MET_ValueTypeSize in MetaIO's metaTypes.h
    "met_ulong": "u4",
    "met_long_long": "i8",
    "met_ulong_long": "u8",
    "met_float": "f4",
    "met_double": "f8",
}


def recognise(start: bytes) -> bool:
    """Return whether the first bytes of a file are a field with which MetaImage headers begin."""
    return _START.match(start) is not None


def decode(file: BinaryIO) -> Volume:
    """Return the volume of an .mha file, its voxels as stored.

    Raises:
        ScanError: its class says what is wrong; the message holds nothing of the file's content.
    """
    return read_volume(_layout(file))


def check(file: BinaryIO) -> None:
    """Raise what `decode` would raise."""
    check_volume(_layout(file))


def _layout(file: BinaryIO) -> Layout:
    fields = Fields(_fields(file))
    _reject_foreign(fields)
    shape, dtype = _shape(fields), _dtype(fields)
    affine = _affine(fields, shape)
    compressed = _flag(fields, "compresseddata", default=False)
    if compressed:
        reject_bomb(shape, bytes_of(file))
    return Layout(shape, dtype, affine, ZlibFile(file) if compressed else file)


def _fields(file: BinaryIO) -> Iterator[tuple[str, str]]:
    for line in read_lines(file, lambda line: _field(line)[0] == "elementdatafile"):
        name, text = _field(line)
        if name in _REFUSED:
            msg = "The header says that its voxels lie elsewhere or are scaled (HeaderSize, ElementToIntensityFunction). Convert the scan again."
            raise UnsafeHeader(msg)
        if name in _READ:  # ITK copies the fields of the scan's original format into the header; they mean nothing here
            yield name, text


def _field(line: str) -> tuple[str, str]:
    name, *text = re.split("[=:]", line, maxsplit=1)
    name = name.strip().lower()
    return _SYNONYMS.get(name, name), text[0] if text else ""


def _reject_foreign(fields: Fields) -> None:
    """Refuse headers whose voxels lie in other files, are text, or are not an image."""
    if fields.text("elementdatafile") != "LOCAL":
        msg = "The header says that its voxels lie in other files. Save header and voxels in one .mha file (ElementDataFile = LOCAL)."
        raise UnsafeHeader(msg)
    if fields.word("objecttype") != "image" or not _flag(fields, "binarydata", default=True):
        msg = "The header does not describe an image with binary voxels. Convert the scan again."
        raise InvalidHeader(msg)


def _flag(fields: Fields, name: str, *, default: bool) -> bool:
    if name not in fields:
        return default
    word = fields.word(name)
    if word not in ("true", "false"):
        msg = f"The header's field '{name}' is neither True nor False. Convert the scan again."
        raise InvalidHeader(msg)
    return word == "true"


def _shape(fields: Fields) -> list[int]:
    """Return the three sizes; further axes of one voxel are dropped."""
    sizes = read_sizes(fields, "dimsize", _rank(fields))
    reject_shape(sizes)
    return sizes[:3]


def _rank(fields: Fields) -> int:
    return fields.integers("ndims", 1)[0]


def _dtype(fields: Fields) -> np.dtype[np.generic]:
    code = _DTYPES.get(fields.word("elementtype"))
    channels = fields.integers("elementnumberofchannels", 1)[0] if "elementnumberofchannels" in fields else 1
    if code is None or channels != 1:
        msg = "The voxels are not single numbers of a known type (integers of 8 to 64 bits, float or double). Convert the scan to MET_SHORT or MET_FLOAT with one channel."
        raise UnsupportedVoxelType(msg)
    big = _flag(fields, "binarydatabyteordermsb", default=False)
    return np.dtype(code).newbyteorder(">" if big else "<")


def _affine(fields: Fields, shape: list[int]) -> npt.NDArray[np.float64]:
    if "distanceunits" in fields and fields.word("distanceunits") != "mm":
        msg = "The header's units are not millimetres. Convert the scan again with voxel sizes in mm."
        raise InvalidSpacing(msg)
    if "transformmatrix" not in fields or "offset" not in fields:
        msg = "The header does not place the voxels in the patient: TransformMatrix and Offset are expected. Convert the scan again from its source."
        raise MissingOrientation(msg)
    rank = _rank(fields)
    spacing = np.array(fields.numbers("elementspacing", rank)[:3])
    reject_spacing(spacing)
    matrix = np.array(fields.numbers("transformmatrix", rank * rank)).reshape(rank, rank)
    if matrix[:3, 3:].any() or matrix[3:, :3].any():
        msg = "The header's matrix mixes the three axes in space with others. Convert the scan again from its source."
        raise InvalidAffine(msg)
    axes = matrix[:3, :3].T
    # Components are checked before lengths: the square of a large one could overflow.
    if not (np.abs(axes) <= 1 + AGREEMENT).all() or np.abs(np.linalg.norm(axes, axis=0) - 1).max() > AGREEMENT:
        msg = "The header's matrix does not hold three directions of length 1. Convert the scan again from its source."
        raise InvalidAffine(msg)
    with np.errstate(over="ignore"):  # an infinite product is refused below
        axes_mm = axes * spacing
    return lps_to_ras(checked_affine(axes_mm, fields.numbers("offset", rank)[:3], shape))
