"""The bytes behind a header: exactly as many as it announces, decompressed piece by piece."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Final, Protocol

from isal import igzip, isal_zlib

from service.errors import PayloadTooLong, PayloadTruncated, UnsafeHeader

GZIP_MAGIC: Final = b"\x1f\x8b"

_PIECE = 1 << 20
_START_BYTES = 16


class Readable(Protocol):
    """A source of voxels: a file, or a decompressor around one."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; an empty result means the end."""
        ...


class ZlibFile:
    """The decompressed content of a zlib stream (RFC 1950) that fills the rest of a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._stream = zlib.decompressobj()

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; an empty result means the end.

        Raises:
            EOFError: the file ends before the stream does.
            zlib.error: the stream is damaged.
            PayloadTooLong: bytes follow the stream.
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


def inflating(file: BinaryIO) -> Readable:
    """Return a file's content from its beginning, decompressed if it is gzipped."""
    packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    file.seek(0)
    return igzip.IGzipFile(fileobj=file) if packed else file


@contextmanager
def damage_refused() -> Iterator[None]:
    """Turn the errors of a damaged gzip or zlib stream into PayloadTruncated, that of an endless name into UnsafeHeader."""
    try:
        yield
    except OverflowError as error:  # isal's, over a name or comment that its buffer does not hold
        msg = "The name or comment in the gzip header is longer than any file name. Compress the scan again with `gzip -n`."
        raise UnsafeHeader(msg) from error
    except (EOFError, zlib.error, isal_zlib.error, gzip.BadGzipFile) as error:  # type: ignore[misc]  # isal's types take the class for an instance
        msg = "The gzip stream is cut short or damaged. Send the whole file again; `gzip -t FILE` tells whether it is intact."
        raise PayloadTruncated(msg) from error


def inflated_start(file: BinaryIO) -> bytes:
    """Return the first bytes that a gzip file inflates to; none if it is damaged, which its reader will say.

    Args:
        file: positioned at its start.
    """
    try:
        return igzip.IGzipFile(fileobj=file).read(_START_BYTES)
    except (EOFError, OverflowError, zlib.error, isal_zlib.error, gzip.BadGzipFile):  # type: ignore[misc]  # isal's types take the class for an instance
        return b""


def read_exactly(file: Readable, expected: int, *, keep: bool) -> bytes:
    """Read the next `expected` bytes and return them if `keep`, else no bytes.

    Raises:
        PayloadTruncated: the file ends before.
    """
    kept, size = io.BytesIO(), 0
    while size < expected and (piece := file.read(min(_PIECE, expected - size))):
        size += len(piece)
        if keep:
            kept.write(piece)
    if size < expected:
        msg = f"The header announces {expected} bytes of voxels; {size} were found. The file is cut short: send the whole file again."
        raise PayloadTruncated(msg)
    return kept.getvalue()


def read_voxels(file: Readable, expected: int, *, keep: bool) -> bytes:
    """Read the voxels as `read_exactly` does, up to the end of the file.

    Raises:
        PayloadTruncated: fewer bytes.
        PayloadTooLong: more bytes.
    """
    payload = read_exactly(file, expected, keep=keep)
    if file.read(1):
        msg = f"More than the {expected} bytes of voxels that the header announces were found. Convert the scan again."
        raise PayloadTooLong(msg)
    return payload
