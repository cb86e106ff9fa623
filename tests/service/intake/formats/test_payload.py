import gzip
import io
import zlib

import pytest

from service.errors import PayloadTooLong, PayloadTruncated
from service.intake.formats.payload import ZlibFile, damage_refused, read_exactly, read_voxels

CONTENT = bytes(range(256)) * 5000


class Endless:
    """A file of zeros that records the largest read."""

    def __init__(self) -> None:
        self.largest = 0

    def read(self, size: int, /) -> bytes:
        """Return zeros."""
        self.largest = max(self.largest, size)
        return bytes(size)


def test_exactly_the_expected_bytes_are_read() -> None:
    """Bytes that are not kept are read all the same, and the bytes behind them stay in the file."""
    file = io.BytesIO(b"abcdef")

    assert read_exactly(file, 2, keep=True) == b"ab"
    assert read_exactly(file, 2, keep=False) == b""
    assert file.read() == b"ef"


def test_too_few_and_too_many_bytes_are_refused() -> None:
    """The message gives both numbers of bytes."""
    with pytest.raises(PayloadTruncated, match=r"announces 4 bytes of voxels; 3 were found"):
        read_voxels(io.BytesIO(b"abc"), 4, keep=True)
    with pytest.raises(PayloadTooLong, match=r"More than the 2 bytes"):
        read_voxels(io.BytesIO(b"abc"), 2, keep=False)


def test_large_voxels_are_read_in_pieces() -> None:
    """No single read is larger than a mebibyte."""
    file = Endless()

    assert len(read_exactly(file, 5 << 20, keep=True)) == 5 << 20
    assert file.largest == 1 << 20


def test_zlib_is_inflated_in_pieces_of_any_size() -> None:
    """Reads of one byte, of a prime number of bytes or of everything give the same content and then the end."""
    for size in (1, 997, len(CONTENT) + 1):
        file = ZlibFile(io.BytesIO(zlib.compress(CONTENT[:20_000])))
        pieces = []
        while piece := file.read(size):
            assert len(piece) <= size
            pieces.append(piece)
        assert b"".join(pieces) == CONTENT[:20_000]
        assert file.read(1) == b""


def test_a_bomb_is_inflated_no_further_than_asked() -> None:
    """Of 64 MB of zeros compressed to 65 kB, only the requested thousand bytes are inflated."""
    file = ZlibFile(io.BytesIO(zlib.compress(bytes(64 << 20))))

    assert file.read(1000) == bytes(1000)
    with pytest.raises(PayloadTooLong):
        read_voxels(file, 1000, keep=True)


@pytest.mark.parametrize("cut", [0, 1, 2, 100, -5, -1])
def test_a_zlib_stream_that_is_cut_is_refused(cut: int) -> None:
    """Even if only its checksum is missing; ITK would return uninitialised memory (docs/decisions/0007)."""
    packed = zlib.compress(CONTENT)[:cut]

    with pytest.raises(PayloadTruncated), damage_refused():
        read_voxels(ZlibFile(io.BytesIO(packed)), len(CONTENT), keep=True)


def test_a_wrong_checksum_is_refused() -> None:
    """Zlib's Adler-32 and gzip's CRC-32 are verified."""
    for pack, unpack in ((zlib.compress, ZlibFile), (gzip.compress, lambda file: gzip.GzipFile(fileobj=file))):
        damaged = bytearray(pack(CONTENT))
        damaged[-6 if pack is gzip.compress else -1] ^= 1
        with pytest.raises(PayloadTruncated, match="cut short or damaged"), damage_refused():
            read_voxels(unpack(io.BytesIO(bytes(damaged))), len(CONTENT), keep=True)


def test_bytes_behind_a_zlib_stream_are_refused() -> None:
    """It does not matter whether they were read together with the stream or are still in the file."""
    packed = zlib.compress(CONTENT)

    for rest in (b"x", bytes(3 << 20)):
        with pytest.raises(PayloadTooLong, match="behind the end"):
            read_voxels(ZlibFile(io.BytesIO(packed + rest)), len(CONTENT), keep=True)
