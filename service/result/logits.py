"""Read and write the logits on the network's grid, from which probabilities and uncertainty are computed later.

The high and the low bytes of the float16 values are stored apart: high bytes (sign, exponent, first digits) repeat and
compress well, low bytes are noise (docs/decisions/0014-logits-are-stored-byte-by-byte.md).
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from isal import igzip, isal_zlib

from service.result.files import LOGITS

GZIP_LEVEL: Final = 1
"""isal's levels are 0 to 3; higher ones take longer and save almost nothing here."""

GZIP_WINDOW: Final = 31
"""zlib's wbits for gzip: its largest window, and a header without a time."""

_PIECE: Final = 1 << 20


def encode_logits(logits: npt.NDArray[np.float16]) -> Iterator[bytes]:
    """Yield the gzipped .npy of the logits in pieces: for 16 classes even the compressed file has some hundred megabytes.

    It holds (..., 2, D, H, W) uint8: for each channel the high bytes, then the low bytes.

    Args:
        logits: (..., D, H, W).
    """
    *channels, d, h, w = logits.shape
    header = io.BytesIO()
    layout = {"descr": "|u1", "fortran_order": False, "shape": (*channels, 2, d, h, w)}
    np.lib.format.write_array_header_1_0(header, layout)
    compressor = isal_zlib.compressobj(GZIP_LEVEL, isal_zlib.DEFLATED, GZIP_WINDOW)
    yield compressor.compress(header.getvalue())
    for channel in np.ascontiguousarray(logits).view(np.uint16).reshape(-1, d, h, w):
        yield compressor.compress((channel >> 8).astype(np.uint8))
        yield compressor.compress(channel.astype(np.uint8))
    yield compressor.flush()


def read_logits(result: Path) -> npt.NDArray[np.float16]:
    """Return the stored logits of a result, (C, D, H, W) float16 on the network's grid, or (parts, C, D, H, W).

    Args:
        result: its folder.

    Raises:
        ValueError: the file is damaged.
    """
    with igzip.open(result / LOGITS, "rb") as file:
        np.lib.format.read_magic(file)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        if fortran_order or dtype != np.uint8:
            msg = f"{LOGITS} holds {dtype}, expected uint8 in C order"
            raise ValueError(msg)
        *channels, _, d, h, w = shape
        logits = np.empty((*channels, d, h, w), np.uint16)
        for channel in logits.reshape(-1, d, h, w):
            np.left_shift(_read(file, channel.shape), 8, out=channel, dtype=np.uint16)
            np.bitwise_or(channel, _read(file, channel.shape), out=channel)
    return logits.view(np.float16)


def _read(file: igzip.IGzipFile, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    values = np.empty(shape, np.uint8)
    buffer, filled = values.reshape(-1).data, 0
    while got := file.readinto(buffer[filled : filled + _PIECE]):
        filled += got
    if filled < values.size:
        msg = f"{LOGITS} ends before its last voxel"
        raise ValueError(msg)
    return values
