"""Read the files inside an untrusted zip one after another.

Sizes are counted while unpacking, never taken from the zip. One file is in memory at a time. Names serve only to refuse
malicious zips.
"""

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, BinaryIO, Final, Self

from service.errors import (
    ArchiveTooLarge,
    EncryptedArchive,
    PayloadTruncated,
    UnsafeArchive,
    UnsupportedCompression,
)

MAX_MEMBERS: Final = 4096
"""Maximum number of files in a zip; a volume has at most a few thousand slices."""

MAX_UNPACKED_BYTES: Final = 2 << 30
"""Maximum size of an unpacked zip: twice that of 512 x 512 x 2048 voxels of 16 bits."""

FEW_UNPACKED_BYTES: Final = 1 << 25
"""Any file may unpack to so many bytes."""

MAX_UNPACKED_PER_BYTE: Final = 256
"""Bytes to which each byte of a file may unpack; those of scans unpack to 2 to 10."""

_PIECE = 1 << 20
_MAX_DIRECTORY_BYTES = MAX_MEMBERS * 512
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64_BYTES = 20
_ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Unpacked:
    """Counts the bytes that a file unpacks to, over all that it holds and all that this holds packed."""

    def __init__(self, limit: int) -> None:
        """Start at 0 of so many bytes."""
        self._limit = self.left = limit

    @classmethod
    def of(cls, file_bytes: int) -> Self:
        """Return the count for a file of this size: it may not unpack to far more than scans do."""
        return cls(min(MAX_UNPACKED_BYTES, max(FEW_UNPACKED_BYTES, MAX_UNPACKED_PER_BYTE * file_bytes)))

    def add(self, size: int) -> None:
        """Count `size` bytes.

        Raises:
            ArchiveTooLarge: there are more than the limit now.
        """
        self.left -= size
        if self.left < 0:
            msg = f"The file unpacks to more than {self._limit} bytes, which is the limit for its size. Zip the files of one series only."
            raise ArchiveTooLarge(msg)


def recognise(start: bytes) -> bool:
    """Return whether the first bytes of a file are those of a zip, an empty one included."""
    return start.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def read_members(file: BinaryIO, unpacked: Unpacked | None = None) -> Iterator[bytes]:
    """Yield the content of each file in a zip.

    Args:
        file: the zip.
        unpacked: counts what is unpacked; by default from 0, up to the limit for the zip's size.

    Raises:
        ArchiveTooLarge: more than `MAX_MEMBERS` files, or more bytes than may be unpacked.
        UnsafeArchive: links, devices, duplicate names, or names that lead out of the archive.
        EncryptedArchive: a password is needed.
        UnsupportedCompression: neither stored nor deflated.
        PayloadTruncated: cut short, damaged, or with a wrong checksum.
    """
    _reject_long_directory(file)
    unpacked = unpacked or Unpacked.of(file.seek(0, 2))
    with _damage_refused(), zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        _reject_members(members)
        for member in members:
            if not member.is_dir():
                with archive.open(member) as packed:
                    content = _read(packed, unpacked)
                yield content


def largest_member(file: BinaryIO) -> int:
    """Return the bytes of the largest file in a zip as its directory says: Python unpacks no more than that.

    Raises:
        ArchiveTooLarge: more than `MAX_MEMBERS` files.
        PayloadTruncated: cut short or damaged.
    """
    _reject_long_directory(file)
    with _damage_refused(), zipfile.ZipFile(file) as archive:
        return max((member.file_size for member in archive.infolist()), default=0)


@contextmanager
def _damage_refused() -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, struct.error, NotImplementedError) as error:
        msg = "The zip is cut short or damaged. Send the whole file again; `unzip -t FILE` tells whether it is intact."
        raise PayloadTruncated(msg) from error


def _reject_long_directory(file: BinaryIO) -> None:
    """Refuse a long directory before Python makes an object of each of its entries, of which there may be millions."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _END.size - 0xFFFF - _LOCATOR_64_BYTES - _END_64.size))
    tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) - end < _END.size:
        msg = "The zip is cut short: its directory is missing. Send the whole file again."
        raise PayloadTruncated(msg)
    *_, entries, directory_bytes, _offset, _comment = _END.unpack_from(tail, end)
    if tail[max(0, end - _LOCATOR_64_BYTES) : end].startswith(b"PK\x06\x07"):
        entries, directory_bytes = _counts_64(tail[: end - _LOCATOR_64_BYTES])
    if entries > MAX_MEMBERS or directory_bytes > _MAX_DIRECTORY_BYTES:
        raise _too_many()


def _counts_64(before: bytes) -> tuple[int, int]:
    """Return entries and bytes of the directory of a zip64, which some programs write for any size.

    Args:
        before: ends with the zip64 end of central directory record (APPNOTE 4.3.14), where Python expects it.
    """
    record = before[-_END_64.size :]
    if len(record) < _END_64.size or not record.startswith(b"PK\x06\x06"):
        msg = "The zip is damaged: its directory, in the zip64 layout, is not where it should be. Zip the series again."
        raise PayloadTruncated(msg)
    *_, entries, directory_bytes, _offset = _END_64.unpack(record)
    return entries, directory_bytes


def _too_many() -> ArchiveTooLarge:
    return ArchiveTooLarge(f"A zip of more than {MAX_MEMBERS} files was found. Zip the files of one series only.")


def _reject_members(members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_MEMBERS:
        raise _too_many()
    if any(member.flag_bits & _ENCRYPTED for member in members):
        msg = "The zip is encrypted. Zip the series again without a password."
        raise EncryptedArchive(msg)
    if any(member.compress_type not in _PACKED for member in members):
        msg = "The zip is packed by another method than deflate. Zip the series again with the usual settings."
        raise UnsupportedCompression(msg)
    names = [member.orig_filename for member in members]
    if any(map(_is_special, members)) or any(map(_leads_out, names)) or len(set(names)) < len(names):
        msg = "The zip holds links, a name twice, or names that lead out of it (absolute, or with '..'). Zip the folder of the series again."
        raise UnsafeArchive(msg)


def _is_special(member: zipfile.ZipInfo) -> bool:
    file_type = stat.S_IFMT(member.external_attr >> 16)
    return file_type not in (0, stat.S_IFREG, stat.S_IFDIR)


def _leads_out(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return "\0" in name or ".." in parts or parts[0] == "" or parts[0].endswith(":")


def _read(packed: IO[bytes], unpacked: Unpacked) -> bytes:
    content = io.BytesIO()
    while piece := packed.read(_PIECE):
        unpacked.add(len(piece))
        content.write(piece)
    return content.getvalue()  # without a copy
