"""Deflated DICOM files (PS3.5 A.5): inflated within a bound before anything else reads them.

pydicom would inflate them whole, whatever they hold.
"""

import zlib
from typing import Final

from pydicom import uid

from service.errors import PayloadTruncated
from service.intake.dicom.part10 import START_BYTES
from service.intake.formats.archive import Unpacked

_UL_ELEMENT: Final = b"\x02\x00\x00\x00UL\x04\x00"
_UID_ELEMENT: Final = b"\x02\x00\x10\x00UI"
_LENGTH_BYTES = 4


def inflated(content: bytes, unpacked: Unpacked | None = None) -> bytes:
    """Return a deflated DICOM file as an explicit little-endian one; any other file as it is.

    Args:
        content: of a file with preamble.
        unpacked: counts what it inflates to; by default from 0, up to the limit for the file's size.

    Raises:
        ArchiveTooLarge: it inflates to more than is left.
        PayloadTruncated: it is cut short or damaged.
    """
    head = _deflated_head(content)
    if head is None:
        return content
    start, transfer_syntax_at, length = head
    unpacked = unpacked or Unpacked.of(len(content))
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        dataset = stream.decompress(content[start:], unpacked.left + 1)
    except zlib.error as error:
        raise _damaged() from error
    unpacked.add(len(dataset))
    if not stream.eof:
        raise _damaged()
    explicit = uid.ExplicitVRLittleEndian.encode().ljust(length, b"\0")
    return content[:transfer_syntax_at] + explicit + content[transfer_syntax_at + length : start] + dataset


def _damaged() -> PayloadTruncated:
    return PayloadTruncated("A deflated DICOM file is cut short or damaged. Send the whole series again.")


def _deflated_head(content: bytes) -> tuple[int, int, int] | None:
    """Return where the data set starts, and place and length of the transfer syntax; None if it is not deflated."""
    first = content[START_BYTES : START_BYTES + len(_UL_ELEMENT)]
    if first != _UL_ELEMENT:
        return None
    after = START_BYTES + len(_UL_ELEMENT) + _LENGTH_BYTES
    start = after + int.from_bytes(content[after - _LENGTH_BYTES : after], "little")
    at = content.find(_UID_ELEMENT, after, start)
    if at < 0:
        return None
    value_at = at + len(_UID_ELEMENT) + 2
    length = int.from_bytes(content[value_at - 2 : value_at], "little")
    value = content[value_at : value_at + length].rstrip(b"\0 ")
    return (start, value_at, length) if value == uid.DeflatedExplicitVRLittleEndian.encode() else None
