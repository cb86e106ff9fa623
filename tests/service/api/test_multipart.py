import asyncio
from collections.abc import AsyncIterator
from email.message import Message
from email.parser import BytesParser
from email.policy import HTTP

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.api.multipart import Piece, file_of
from service.errors import InvalidRequest

TYPE = "multipart/form-data; boundary=b0und-ary"
FILE = b'Content-Disposition: form-data; name="file"; filename="scan.nii"'


def file_in(body: bytes, content_type: str = TYPE, size: int = 1 << 16) -> bytes:
    """Return the file of a form whose body arrives in pieces of a size."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    async def read() -> bytes:
        return b"".join([piece.data async for piece in file_of(pieces(), content_type)])

    return asyncio.run(read())


def form(*parts: tuple[bytes, bytes], boundary: bytes = b"b0und-ary") -> bytes:
    """Return the body of a form with these parts (headers, content)."""
    return b"".join(b"--%s\r\n%s\r\n\r\n%s\r\n" % (boundary, *part) for part in parts) + b"--%s--\r\n" % boundary


def files_by_email(body: bytes, content_type: str) -> list[bytes]:
    """Return the contents of all parts with a file name, as the standard library's email parser finds them."""
    message = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    parts: list[Message] = list(message.iter_parts())
    return [part.get_payload(decode=True) for part in parts if part.get_filename() is not None]  # type: ignore[misc]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 16])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"voxels",
        bytes(range(256)) * 3,
        b"\r\n",
        b"\r\n--",
        b"--b0und-ary",
        b"x--b0und-ary--\r\n",
        b"\r\n--b0und-arx\r\n",
        b"\r\n--b0und-ar\r\n--b0und-ar",
        b"\r\r\n-\r\n--\r\n--b0und",
        b"\n--b0und-ary--\n",
    ],
)
def test_a_file_comes_out_as_it_went_in(content: bytes, size: int) -> None:
    """The file's bytes are unchanged, also byte by byte, and with text that looks like the boundary."""
    assert file_in(form((FILE, content)), size=size) == content


@given(
    content=st.binary(max_size=300),
    note=st.binary(max_size=60).filter(lambda note: b"\r" not in note and b"\n" not in note),
    size=st.integers(1, 80),
    before=st.booleans(),
)
@example(content=b"\r\n--b0und-ar\r\n", note=b"--b0und-ary", size=1, before=True)
def test_the_file_is_the_one_that_the_parser_of_mail_finds(
    content: bytes, note: bytes, size: int, *, before: bool
) -> None:
    """For any bytes cut anywhere, an independent parser finds the same file."""
    assert b"\r\n--b0und-ary" not in content
    parts = [(b'Content-Disposition: form-data; name="note"', note), (FILE, content)]
    body = form(*(parts if before else reversed(parts)))
    # The email parser also splits lines at other characters, so that it cannot judge content with those.
    if content.startswith(b"--b0und-ary") or any(end + b"--b0und-ary" in content for end in (b"\n", b"\r")):
        return

    assert file_in(body, size=size) == content
    assert files_by_email(body, TYPE) == [content]


@given(cut=st.integers(0, 400), size=st.integers(1, 50))
def test_a_form_that_was_cut_anywhere_is_refused(cut: int, size: int) -> None:
    """A form that ends before its last boundary is refused, so that half a scan is never accepted."""
    body = form((b'Content-Disposition: form-data; name="a"', b"1"), (FILE, bytes(range(256))))
    whole = len(body) - len(b"\r\n")

    with pytest.raises(InvalidRequest, match="ends before its last boundary"):
        file_in(body[: min(cut, whole - 1)], size=size)


@pytest.mark.parametrize(
    ("headers", "is_file"),
    [
        (b'content-disposition: FORM-DATA; name="f"; filename="x"', True),
        (b'X-Empty:\r\nContent-Disposition: form-data; name="f"; filename="x"', True),
        (b'Content-Disposition: form-data; name="f"; filename="x"\r\nX-Empty:', True),
        (b'Content-Type: application/gzip\r\nContent-Disposition: form-data; filename="x"', True),
        (b"Content-Disposition: form-data; name=f; filename=", True),
        (b'Content-Disposition: form-data; name="f"; filename="\xe4\xff"', True),
        (b'Content-Disposition: form-data; name="filename=x"', False),
        (b'Content-Disposition: form-data; name="f"\r\nX-Other: x; filename="x"', False),
        (b'Content-Type: application/octet-stream; filename="x"', False),
        (b"X-Empty:", False),
    ],
)
@pytest.mark.parametrize("size", [1, 1 << 16])
def test_a_part_with_a_file_name_is_a_file(headers: bytes, size: int, *, is_file: bool) -> None:
    """Content-Disposition decides what a file is, whatever the order and case of the headers."""
    body = form((headers, b"voxels"))

    if is_file:
        assert file_in(body, size=size) == b"voxels"
    else:
        with pytest.raises(InvalidRequest, match="holds 0 files"):
            file_in(body, size=size)


@pytest.mark.parametrize("number", [0, 2, 3])
def test_one_file_is_expected(number: int) -> None:
    """No file or more than one is refused, with their number."""
    parts = [(b'Content-Disposition: form-data; name="note"', b"text"), *[(FILE, b"voxels")] * number]

    with pytest.raises(InvalidRequest, match=f"holds {number} files; one is expected"):
        file_in(form(*parts))


@pytest.mark.parametrize(
    "headers",
    [
        b"X-Long: " + b"x" * 100_000,
        b"X" * 100_000 + b": x",
        b"\r\n".join(b"X-%d: x" % number for number in range(1000)),
        b"No-Colon",
        b"Sp ace: x",
        b": x",
    ],
    ids=["long value", "long name", "many", "no colon", "space in a name", "no name"],
)
@pytest.mark.parametrize("size", [1000, 1 << 20])
def test_headers_that_cannot_be_are_refused(headers: bytes, size: int) -> None:
    """Long, numerous or malformed headers are refused at once, and not collected."""
    with pytest.raises(InvalidRequest, match="cannot be read"):
        file_in(form((headers + b"\r\n" + FILE, b"voxels")), size=size)


def test_a_long_header_is_refused_before_it_ends() -> None:
    """A header of any length costs a few kilobytes of memory: the rest of the body is not read."""
    asked = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal asked
        yield b"--b0und-ary\r\nX-Long: "
        while True:
            asked += 1
            yield b"x" * 1000

    async def read() -> None:
        async for _ in file_of(endless(), TYPE):
            pass

    with pytest.raises(InvalidRequest):
        asyncio.run(read())
    assert asked < 20


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; charset=utf-8"]
)
def test_a_missing_boundary_is_said(content_type: str) -> None:
    """The refusal shows a command that sends a boundary."""
    with pytest.raises(InvalidRequest, match=r"no boundary .* -F file=@scan\.nii\.gz"):
        file_in(form((FILE, b"voxels")), content_type)


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ('multipart/form-data; boundary="a b"', b"a b"),
        ("Multipart/Form-Data; charset=utf-8; BOUNDARY=x", b"x"),
        ("multipart/form-data; boundary=" + "x" * 70, b"x" * 70),
        ("multipart/form-data; boundary=" + "x" * 300, None),
    ],
)
def test_the_boundary_is_that_of_the_header(content_type: str, boundary: bytes | None) -> None:
    """A boundary may be quoted and have up to 70 characters (RFC 2046); an unterminated one is refused."""
    if boundary is None:
        with pytest.raises(InvalidRequest):
            file_in(form((FILE, b"voxels"), boundary=b"x" * 300), content_type)
    else:
        assert file_in(form((FILE, b"voxels"), boundary=boundary), content_type) == b"voxels"


def test_what_stands_behind_the_last_boundary_is_not_read() -> None:
    """An epilogue is ignored (RFC 2046, section 5.1.1), even if it is another form."""
    body = form((FILE, b"voxels"))

    assert file_in(body + b"epilogue" + form((FILE, b"more"))) == b"voxels"


def test_nothing_of_a_form_is_repeated() -> None:
    """The error messages do not depend on the content of the form."""
    with pytest.raises(InvalidRequest) as caught:
        file_in(b"--Doe^Jane\r\n")

    assert "Doe" not in caught.value.detail


@pytest.mark.parametrize(
    ("name", "says"), [(b"scan.nii", {}), (b"sub-01_ce-gad_T2w.nii.gz", {"suffix": "T2w", "ce": "gad"})]
)
def test_of_a_file_name_only_what_bids_defines_is_kept(name: bytes, says: dict[str, str]) -> None:
    """The rest of a file name may name a person."""
    header = b'Content-Disposition: form-data; name="file"; filename="%s"' % name

    async def body() -> AsyncIterator[bytes]:
        yield form((header, b"voxels"))

    async def read() -> list[Piece]:
        return [piece async for piece in file_of(body(), TYPE)]

    assert [dict(piece.says) for piece in asyncio.run(read())] == [says, says]
