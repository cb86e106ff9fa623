"""multipart/related of DICOMweb (PS3.18 8.6.1.2): parse responses into parts, and wrap a DICOM file in a request body."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import PacsBadResponse

_BOUNDARY: Final = b"calibrant-d1c0m-b0undary-7e9f5a40c2"
_START: Final = b"--" + _BOUNDARY + b"\r\nContent-Type: application/dicom\r\n\r\n"
_END: Final = b"\r\n--" + _BOUNDARY + b"--\r\n"
_PIECE: Final = 1 << 20

EMPTY_BODY: Final = _START + _END
"""A body with one empty part."""

CONTENT_TYPE: Final = f'multipart/related; type="application/dicom"; boundary={_BOUNDARY.decode()}'
"""Content type of the bodies of `body_of`."""


def parts_of(chunks: Iterator[bytes], content_type: str) -> Iterator[bytes]:
    """Yield the content of each part of a body as soon as it is complete.

    Args:
        chunks: of the body; the caller limits their total size.
        content_type: header of the response, with the boundary.

    Raises:
        PacsBadResponse: not multipart/related, damaged, or without its last boundary.
    """
    media_type, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if media_type != b"multipart/related" or not boundary:
        msg = "The PACS answered something that is not multipart/related. Check whether the configured url is its DICOMweb root."
        raise PacsBadResponse(msg)
    reader = _Reader()
    parser = MultipartParser(boundary, reader.callbacks)
    for chunk in chunks:
        try:
            parser.write(chunk)
        except FormParserError as error:
            raise PacsBadResponse(_DAMAGED) from error
        yield from reader.take()
    if not reader.ended:
        raise PacsBadResponse(_DAMAGED)


def body_of(path: Path) -> tuple[int, Iterator[bytes]]:
    """Return the length and the chunks of a body with one DICOM file."""

    def pieces() -> Iterator[bytes]:
        yield _START
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece
        yield _END

    return len(_START) + path.stat().st_size + len(_END), pieces()


class _Reader:
    """Collects complete parts from the parser's callbacks."""

    def __init__(self) -> None:
        self.ended = False
        self._part = bytearray()
        self._complete: list[bytes] = []
        self.callbacks: Any = {
            "on_part_data": self._data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def take(self) -> list[bytes]:
        """Return the parts completed since the last call."""
        complete, self._complete = self._complete, []
        return complete

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._part += memoryview(data)[start:end]

    def _part_end(self) -> None:
        self._complete.append(bytes(self._part))
        self._part.clear()

    def _end(self) -> None:
        self.ended = True


_DAMAGED: Final = "The answer of the PACS is damaged, or ends before its last boundary. Ask for the series again."
