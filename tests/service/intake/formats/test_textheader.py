import io

import pytest

from service.errors import InvalidHeader, PayloadTruncated, UnsafeHeader
from service.intake.formats.textheader import MAX_HEADER_BYTES, Fields, read_lines


def _is_blank(line: str) -> bool:
    return not line


def test_lines_end_with_the_last_and_leave_the_voxels() -> None:
    """Both kinds of line end are removed; the file is then positioned behind the blank line."""
    file = io.BytesIO(b"one\ntwo\r\n\r\nvoxels")

    assert list(read_lines(file, _is_blank)) == ["one", "two", ""]
    assert file.read() == b"voxels"


def test_bytes_of_any_kind_are_lines() -> None:
    """Comments may have any encoding: each byte becomes a character."""
    assert list(read_lines(io.BytesIO(b"\xff\xfe\x00\n\n"), _is_blank)) == ["ÿþ\x00", ""]


@pytest.mark.parametrize("content", [b"", b"one", b"one\n", b"one\ntwo"])
def test_a_header_without_its_last_line_is_cut(content: bytes) -> None:
    """The message gives the number of bytes but none of their content."""
    with pytest.raises(PayloadTruncated, match=f"after {len(content)} bytes"):
        list(read_lines(io.BytesIO(content), _is_blank))


@pytest.mark.parametrize("content", [b"a" * 200_000, b"a: b\n" * 40_000], ids=["one line", "many lines"])
def test_a_header_without_end_is_refused_early(content: bytes) -> None:
    """At most 65536 bytes are read, whether in one line or in many."""
    file = io.BytesIO(content)
    with pytest.raises(UnsafeHeader, match=str(MAX_HEADER_BYTES)):
        list(read_lines(file, _is_blank))

    assert file.tell() == MAX_HEADER_BYTES


def test_values_are_parsed() -> None:
    """Words, integers, numbers and vectors may be separated by any number of spaces."""
    fields = Fields(
        [
            ("type", "  Unsigned   Char "),
            ("sizes", "4 +5 -6"),
            ("step", "1e-3 .5 NaN"),
            ("axes", "(1, 0,0) (0,-inf,2.)"),
        ]
    )

    assert fields.word("type") == "unsigned char"
    assert fields.integers("sizes", 3) == [4, 5, -6]
    assert fields.numbers("step", 3)[:2] == [0.001, 0.5]
    assert fields.vectors("axes", 2) == [[1, 0, 0], [0, float("-inf"), 2]]
    assert "type" in fields
    assert "other" not in fields


@pytest.mark.parametrize("text", ["", "1 2", "1 2 3 4", "1 2 3.0", "1 2 x", "1 2 1_0", "1 2 ٣", "1 2 0x3", "9" * 21])
def test_what_is_no_integer_is_refused(text: str) -> None:
    """Underscores and digits of other scripts, which Python's int accepts, are refused."""
    with pytest.raises(InvalidHeader, match="'sizes' does not hold 3 integers"):
        Fields([("sizes", text)]).integers("sizes", 3)


@pytest.mark.parametrize("text", ["", "1", "1 2 3", "1 1_0", "1 e5", "1 .", "1 infinite"])
def test_what_is_no_number_is_refused(text: str) -> None:
    """Only numbers as in C are accepted."""
    with pytest.raises(InvalidHeader, match="'step' does not hold 2 numbers"):
        Fields([("step", text)]).numbers("step", 2)


@pytest.mark.parametrize(
    "text", ["", "(1,2,3)", "(1,2,3) (1,2)", "(1,2,3) none", "(1,2,3) (1,2,x)", "((1,2,3)) (1,2,3)", "(1,2,3)(1,2,3"]
)
def test_what_is_no_vector_is_refused(text: str) -> None:
    """Each pair of brackets must hold three numbers, with nothing outside."""
    with pytest.raises(InvalidHeader, match="'axes' does not hold 2 vectors"):
        Fields([("axes", text)]).vectors("axes", 2)


def test_a_missing_and_a_doubled_field_are_refused() -> None:
    """The message names the field, since the name is the standard's."""
    with pytest.raises(InvalidHeader, match="lacks the field 'sizes'"):
        Fields([]).text("sizes")
    with pytest.raises(InvalidHeader, match="'sizes' twice"):
        Fields([("sizes", "1"), ("sizes", "1")])


def test_an_axis_outside_space_has_no_vector() -> None:
    """The word none stands for it, in any case; anything else is refused."""
    fields = Fields([("a", " none (1,2,3)  NONE (4,5,6)"), ("b", "(1,2,3) nothing"), ("c", "(1,2) none")])

    assert fields.vectors_or_none("a", 4) == [None, [1, 2, 3], None, [4, 5, 6]]
    for name, count in (("a", 3), ("b", 1), ("b", 2), ("c", 2)):
        with pytest.raises(InvalidHeader):
            fields.vectors_or_none(name, count)
