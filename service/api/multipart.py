"""Streams the parts of a form (multipart/form-data, RFC 7578); python-multipart parses it."""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import InvalidRequest
from service.names import parts_of

_MOST_HEADER_BYTES: Final = 8192


async def file_of(
    body: AsyncIterator[bytes], content_type: str, meet_field: Callable[[str], None] = lambda _: None
) -> "AsyncIterator[Piece]":
    """Yield the pieces of the one part that has a file name; of the name, only what it says in BIDS is kept.

    Args:
        body: pieces of the request's body.
        content_type: its header, with the boundary.
        meet_field: called with the name of each field without a file; it may refuse the form.

    Raises:
        InvalidRequest: the form is damaged, or holds no file, or more than one.
    """
    files: list[int] = []
    async for piece in pieces_of(body, content_type):
        if not piece.is_file:
            meet_field(piece.name)
            continue
        if piece.part not in files[-1:]:
            files.append(piece.part)
        # The bytes of a second file are dropped: the form is refused at its end.
        if piece.part == files[0]:
            yield piece
    if len(files) != 1:
        msg = f"The form holds {len(files)} files; one is expected. With curl: -F file=@scan.nii.gz"
        raise InvalidRequest(msg)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes of one part of a form.

    Args:
        part: number of the part in the form, from 1.
        name: of the field.
        is_file: whether the part has a file name; the name itself is ignored.
        says: parts of the file name, if it is one of BIDS.
        data: bytes; empty in the first piece of each part.
    """

    part: int
    name: str
    is_file: bool
    says: Mapping[str, str] = field(default_factory=dict)
    data: bytes = b""


async def pieces_of(body: AsyncIterator[bytes], content_type: str) -> AsyncIterator[Piece]:
    """Yield the parts of a form piece by piece, at least one piece per part.

    Args:
        body: pieces of the request's body.
        content_type: its header, with the boundary.

    Raises:
        InvalidRequest: the form is damaged.
    """
    form = _Form(_boundary(content_type))
    async for chunk in body:
        for piece in form.feed(chunk):
            yield piece
    form.reject_unless_whole()


def _boundary(content_type: str) -> bytes:
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        msg = "The form has no boundary in its Content-Type. With curl: -F file=@scan.nii.gz"
        raise InvalidRequest(msg)
    return boundary


class _Form:
    """Follows the parser through the parts."""

    def __init__(self, boundary: bytes) -> None:
        callbacks: Any = {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise InvalidRequest(_DAMAGED) from error
        self._field = self._value = b""
        self._disposition = b""
        self._whole = False
        self._parts = 0
        self._part = Piece(0, "", is_file=False)
        self._pieces: list[Piece] = []

    def feed(self, chunk: bytes) -> list[Piece]:
        """Return the pieces of parts in this chunk of the body."""
        self._pieces = []
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise InvalidRequest(_DAMAGED) from error
        return self._pieces

    def reject_unless_whole(self) -> None:
        """Raise unless the last boundary was seen."""
        if not self._whole:
            raise InvalidRequest(_DAMAGED)

    def _begin(self) -> None:
        self._disposition = b""
        self._field = self._value = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]
        self._reject_long_header()

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._reject_long_header()

    def _header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def _reject_long_header(self) -> None:
        if len(self._field) + len(self._value) > _MOST_HEADER_BYTES:
            raise InvalidRequest(_DAMAGED)

    def _headers_finished(self) -> None:
        options = parse_options_header(self._disposition)[1]
        name = options.get(b"name", b"").decode(errors="replace")
        self._parts += 1
        says = parts_of(options.get(b"filename", b"").decode(errors="replace"))
        self._part = Piece(self._parts, name, is_file=b"filename" in options, says=says)
        self._pieces.append(self._part)

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(replace(self._part, data=data[start:end]))

    def _end(self) -> None:
        self._whole = True


_DAMAGED: Final = (
    "The form cannot be read, or ends before its last boundary. Send it again; with curl: -F file=@scan.nii.gz"
)
