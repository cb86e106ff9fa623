"""The bytes behind a header: exactly as many as it announces, inflated in pieces, never more in memory than that."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Final, Protocol

from isal import isal_zlib

from service.errors import PayloadTooLong, PayloadTruncated

GZIP_MAGIC: Final = b"\x1f\x8b"

_PIECE = 1 << 20


class Readable(Protocol):
    """What voxels are read from: a file, or one that inflates."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, and none only at the end."""
        ...


class ZlibFile:
    """The inflated content of a zlib stream (RFC 1950) that runs to the end of a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._stream = zlib.decompressobj()

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, and none only at the end.

        Raises:
            EOFError: the file ends first.
            zlib.error: damaged.
            PayloadTooLong: the file goes on behind the stream.
        """
        while not self._stream.eof:
            compressed = self._stream.unconsumed_tail or self._file.read(_PIECE)
            inflated = self._stream.decompress(compressed, size)
            if inflated:
                return inflated
            if not compressed and not self._stream.eof:
                raise EOFError
        if self._stream.unused_data or self._file.read(1):
            msg = "Bytes were found behind the end of the compressed voxels. Convert the scan again."
            raise PayloadTooLong(msg)
        return b""


@contextmanager
def damage_refused() -> Iterator[None]:
    """Turn what a damaged gzip or zlib stream raises into PayloadTruncated."""
    try:
        yield
    except (EOFError, zlib.error, isal_zlib.error, gzip.BadGzipFile) as error:  # type: ignore[misc]  # isal's types take the class for an instance
        msg = "The gzip stream is cut short or damaged. Send the whole file again; `gzip -t FILE` tells whether it is intact."
        raise PayloadTruncated(msg) from error


def read_exactly(file: Readable, expected: int, *, keep: bool) -> bytes:
    """Return the next `expected` bytes, or nothing if they are not kept; refuse a file that ends before."""
    kept, found = io.BytesIO(), 0
    while found < expected and (piece := file.read(min(_PIECE, expected - found))):
        found += len(piece)
        if keep:
            kept.write(piece)
    if found < expected:
        msg = f"The header announces {expected} bytes of voxels; {found} were found. The file is cut short: send the whole file again."
        raise PayloadTruncated(msg)
    return kept.getvalue()


def read_voxels(file: Readable, expected: int, *, keep: bool) -> bytes:
    """Return the voxels, as `read_exactly`, after proving that nothing follows them."""
    payload = read_exactly(file, expected, keep=keep)
    if file.read(1):
        msg = f"More than the {expected} bytes of voxels that the header announces were found. Convert the scan again."
        raise PayloadTooLong(msg)
    return payload
