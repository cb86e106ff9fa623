"""Whether bytes are a DICOM file (PS3.10 section 7.1), also one that has lost its preamble, and its full form.

Imports nothing of DICOM's libraries: every upload passes here.
"""

from typing import Final

PREAMBLE_BYTES: Final = 128
PREFIX: Final = b"DICM"

START_BYTES: Final = PREAMBLE_BYTES + len(PREFIX)
"""Bytes by which a DICOM file is recognised."""

WITHOUT_HEADER: Final = (
    "A DICOM data set without the header of a DICOM file (PS3.10: preamble, DICM and group 0002) was found, so its transfer "
    "syntax is unknown. Export the series as DICOM files, e.g. by DCMTK's dcmconv."
)
"""Message about what `lacks_header` recognises."""

_META_GROUP: Final = b"\x02\x00"
_IDENTIFYING_GROUP: Final = b"\x08\x00"
_IMPLICIT_OR_EXPLICIT: Final = (b"UL", b"UI", b"CS", b"DA", b"OB", b"\x04\x00")


def recognise(start: bytes) -> bool:
    """Return whether the first bytes of a file are those of a DICOM file, with or without its preamble."""
    return start[PREAMBLE_BYTES:START_BYTES] == PREFIX or _lacks_preamble(start)


def lacks_header(start: bytes) -> bool:
    """Return whether a file begins with the data set itself, group 0008: older software stored it so."""
    return start[:2] == _IDENTIFYING_GROUP and start[2:4] < b"\x20\x00" and _is_element(start)


def completed(content: bytes) -> bytes:
    """Return a DICOM file with preamble and prefix.

    Args:
        content: of a file that `recognise` recognises.
    """
    if content[PREAMBLE_BYTES:START_BYTES] == PREFIX:
        return content
    return bytes(PREAMBLE_BYTES) + PREFIX + content.removeprefix(PREFIX)


def _lacks_preamble(start: bytes) -> bool:
    """Return whether a file begins with the prefix, or with the first element of group 0002, an explicit UL or OB."""
    after = start.removeprefix(PREFIX)
    return after[:2] == _META_GROUP and after[2:4] in (b"\x00\x00", b"\x01\x00") and after[4:6] in (b"UL", b"OB")


def _is_element(start: bytes) -> bool:
    """Return whether the first element has a known type, or the length of a number as implicit types write it."""
    return start[4:6] in _IMPLICIT_OR_EXPLICIT or start[6:8] == b"\x00\x00"
