import email
from pathlib import Path

import pytest

from service.errors import PacsBadResponse
from service.pacs.multipart import CONTENT_TYPE, body_of, parts_of

TYPE = 'multipart/related; type="application/dicom"; boundary="x y"'
BODY = b"\r\n--x y\r\nContent-Type: application/dicom\r\n\r\nfirst\r\n--\r\n--x y\r\nA: b\r\n\r\n\r\n--x y--\r\n"


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_parts_are_found_however_the_body_is_cut(size: int) -> None:
    """A boundary may be split over two chunks; a part may be empty or end like a boundary."""
    pieces = (BODY[start : start + size] for start in range(0, len(BODY), size))
    assert list(parts_of(pieces, TYPE)) == [b"first\r\n--", b""]


@pytest.mark.parametrize("content_type", ["text/html", "multipart/related", "multipart/mixed; boundary=x", ""])
def test_another_content_type_is_refused(content_type: str) -> None:
    """A proxy's HTML page is not a series."""
    with pytest.raises(PacsBadResponse, match="not multipart/related"):
        list(parts_of(iter([BODY]), content_type))


@pytest.mark.parametrize("body", [b"", BODY[:-10], b"<html>", BODY.replace(b"A: b", b"A\0: b")])
def test_a_damaged_body_is_refused(body: bytes) -> None:
    """A body that ends early is never taken for a shorter series."""
    with pytest.raises(PacsBadResponse, match="damaged"):
        list(parts_of(iter([body]), TYPE))


def test_a_body_is_read_by_the_mail_parser_of_python(tmp_path: Path) -> None:
    """An independent parser finds the part, and the announced length is the actual one."""
    (tmp_path / "file").write_bytes(b"\0DICM\r\n--" * 99)
    length, pieces = body_of(tmp_path / "file")
    body = b"".join(pieces)
    assert len(body) == length
    message = email.message_from_bytes(f"Content-Type: {CONTENT_TYPE}\r\n\r\n".encode() + body)
    _, part = message.walk()
    assert part.get_content_type() == "application/dicom"
    assert part.get_payload(decode=True) == b"\0DICM\r\n--" * 99
