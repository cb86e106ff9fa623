import contextlib
import io
import random
import struct
import zipfile
from collections.abc import Callable

import pytest

from service import errors
from service.errors import ScanError
from service.intake.formats import archive as reader
from service.intake.formats.archive import MAX_MEMBERS, read_members

Zip = Callable[..., bytes]


def members(content: bytes) -> list[bytes]:
    """Return what is in a zip."""
    return list(read_members(io.BytesIO(content)))


def one_member(
    name: str = "a", content: bytes = b"voxels", method: int = zipfile.ZIP_STORED, external_attr: int = 0
) -> bytes:
    """Return a zip of one file."""
    info = zipfile.ZipInfo(name)
    info.compress_type, info.external_attr = method, external_attr
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(info, content)
    return file.getvalue()


def test_every_file_comes_in_turn(zip_of: Zip) -> None:
    """Folders are skipped; names, even nested ones, do not matter."""
    content = zip_of({"b/": b"", "b/2": b"two", "1": b"one", "empty": b"", "c\\d": b"three"})

    assert members(content) == [b"two", b"one", b"", b"three"]


def test_files_may_be_stored_or_deflated() -> None:
    """Both usual compression methods are read."""
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        assert members(one_member(method=method)) == [b"voxels"]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_are_refused(method: int) -> None:
    """This includes the methods that Python could unpack."""
    with pytest.raises(errors.UnsupportedCompression):
        members(one_member(method=method))


def test_deflate64_is_refused() -> None:
    """Method 9 of PKWARE, which Windows uses for large folders, is refused."""
    content = one_member().replace(b"\x14\0\0\0\0\0", b"\x14\0\0\0\x09\0")
    with pytest.raises(errors.UnsupportedCompression):
        members(content)


@pytest.mark.parametrize(
    "name", ["../a", "a/../../b", "..\\a", "/etc/passwd", "\\a", "C:\\a", "c:/a", "..", "a/.."], ids=repr
)
def test_names_that_lead_out_are_refused(name: str) -> None:
    """Nothing is written to disk, but only a malicious zip has such names."""
    with pytest.raises(errors.UnsafeArchive):
        members(one_member(name))


def test_a_name_with_a_zero_byte_is_refused() -> None:
    """Python cuts the name at the zero byte; the check uses the name in the zip."""
    with pytest.raises(errors.UnsafeArchive):
        members(one_member("aXb").replace(b"aXb", b"a\0b"))


@pytest.mark.parametrize("mode", [0o120777, 0o060644, 0o020644, 0o010644, 0o140644])
def test_links_devices_pipes_and_sockets_are_refused(mode: int) -> None:
    """The upper half of the attributes holds the type of a file."""
    with pytest.raises(errors.UnsafeArchive):
        members(one_member(external_attr=mode << 16))


def test_a_regular_file_of_unix_is_accepted() -> None:
    """Info-ZIP stores the mode of a file."""
    assert members(one_member(external_attr=0o100644 << 16)) == [b"voxels"]


def test_a_name_that_stands_twice_is_refused(zip_of: Zip) -> None:
    """It would be unclear which of the two is meant."""
    with pytest.raises(errors.UnsafeArchive):
        members(zip_of({"aXb": b"1", "aYb": b"2"}).replace(b"aYb", b"aXb"))


def test_encrypted_files_are_refused() -> None:
    """Bit 0 of the flags marks them; the message asks for a zip without a password."""
    content = bytearray(one_member())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(errors.EncryptedArchive, match="without a password"):
        members(bytes(content))


def test_what_is_unpacked_is_counted(zip_of: Zip, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds for all files together, whatever sizes the zip claims."""
    monkeypatch.setattr(reader, "FEW_UNPACKED_BYTES", 5_000_000)

    assert len(members(zip_of({"a": bytes(2_500_000), "b": bytes(2_500_000)}))) == 2
    with pytest.raises(errors.ArchiveTooLarge, match="more than 5000000 bytes"):
        members(zip_of({"a": bytes(2_500_000), "b": bytes(2_500_001)}))


def test_a_size_that_lies_unpacks_nothing_more(zip_of: Zip) -> None:
    """A zip whose directory announces too few bytes counts as damaged."""
    content = zip_of({"a": bytes(100_000)}).replace(struct.pack("<L", 100_000), struct.pack("<L", 10))
    with pytest.raises(errors.PayloadTruncated):
        members(content)


def test_overlapping_files_are_refused() -> None:
    """A flat zip bomb, in which many directory entries share one body, is refused."""
    content = one_member("a", bytes(1000))
    at = content.index(b"PK\x01\x02")
    entry, end = content[at : content.index(b"PK\x05\x06")], bytearray(content[content.index(b"PK\x05\x06") :])
    twice = entry + entry.replace(b"a", b"b")
    end[8:16] = struct.pack("<2HL", 2, 2, len(twice))
    with pytest.raises(errors.PayloadTruncated):
        members(content[:at] + twice + bytes(end))


def test_too_many_files_are_refused_before_they_are_listed(zip_of: Zip) -> None:
    """At most 4096 files are accepted; a larger directory is not even read. The status is 413."""
    assert len(members(zip_of({str(n): b"" for n in range(MAX_MEMBERS)}))) == MAX_MEMBERS
    with pytest.raises(errors.ArchiveTooLarge, match=f"more than {MAX_MEMBERS} files"):
        members(zip_of({str(n): b"" for n in range(MAX_MEMBERS + 1)}))
    lying = bytearray(one_member())
    lying[-22 + 12 : -22 + 16] = struct.pack("<L", 1 << 30)
    with pytest.raises(errors.ArchiveTooLarge):
        members(bytes(lying))
    assert errors.ArchiveTooLarge.status == 413


def in_zip64(content: bytes, entries: int | None = None) -> bytes:
    """Return a zip with its directory in the zip64 layout (APPNOTE 4.3.14 to 4.3.16), as some programs write any."""
    at = content.index(b"PK\x05\x06")
    (count, size, offset) = struct.unpack_from("<HLL", content, at + 10)
    claimed = count if entries is None else entries
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, claimed, claimed, size, offset)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
    return content[:at] + record + locator + content[at:]


def test_f15_a_small_zip64_is_read_and_a_long_one_named_for_what_it_is() -> None:
    """Not every zip64 holds more than 4096 files: its own counts decide."""
    assert members(in_zip64(one_member())) == [b"voxels"]
    with pytest.raises(errors.ArchiveTooLarge, match=f"more than {MAX_MEMBERS} files"):
        members(in_zip64(one_member(), entries=1 << 40))
    content = one_member()
    at = content.index(b"PK\x05\x06")
    with pytest.raises(errors.PayloadTruncated, match="zip64"):
        members(content[:at] + b"PK\x06\x07" + bytes(16) + content[at:])


def test_f10_a_zip_unpacks_to_no_more_than_scans_do(zip_of: Zip) -> None:
    """60 kB that hold 64 MiB of zeros are refused before more than the limit for their size is in memory."""
    content = zip_of({"a": bytes(64 << 20)})
    assert len(content) < 100_000
    with pytest.raises(errors.ArchiveTooLarge, match=f"more than {reader.FEW_UNPACKED_BYTES} bytes"):
        members(content)


@pytest.mark.parametrize("cut", [4, 30, 60, -1, -22, -23])
def test_a_zip_that_is_cut_is_refused(cut: int, zip_of: Zip) -> None:
    """It does not matter where the zip ends."""
    with pytest.raises(errors.PayloadTruncated):
        members(zip_of({"a": b"voxels" * 100, "b": b"more"})[:cut])


def test_a_wrong_checksum_is_refused() -> None:
    """The CRC-32 of each file is verified."""
    with pytest.raises(errors.PayloadTruncated, match="cut short or damaged"):
        members(one_member().replace(b"voxels", b"voxelz"))


@pytest.mark.parametrize("seed", range(200))
def test_a_damaged_zip_is_read_or_refused_never_a_crash(seed: int, zip_of: Zip) -> None:
    """Whatever bytes are changed in a small zip, the outcome is its files or a ScanError."""
    chance = random.Random(seed)  # noqa: S311 - a test's seed
    content = bytearray(zip_of({"a": b"voxels" * 20, "b/c": b"more"}))
    for _ in range(chance.randint(1, 4)):
        content[chance.randrange(len(content))] = chance.randrange(256)
    with contextlib.suppress(ScanError):
        members(bytes(content))


def test_zips_are_recognised() -> None:
    """A zip starts with the signature of a file, or if empty with that of the end of its directory."""
    assert reader.recognise(b"PK\x03\x04")
    assert reader.recognise(b"PK\x05\x06")
    assert not reader.recognise(b"PK\x07\x08")
