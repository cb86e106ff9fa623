"""Read the files inside an untrusted zip one after another.

Sizes are counted while unpacking, never taken from the zip. Names serve only to refuse malicious zips: nothing is
written to disk.
"""

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, BinaryIO, Final

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

_PIECE = 1 << 20
_MAX_DIRECTORY_BYTES = MAX_MEMBERS * 512
_END = struct.Struct("<4s4H2LH")
_ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def recognise(start: bytes) -> bool:
    """Return whether the first bytes of a file are those of a zip, an empty one included."""
    return start.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def read_members(file: BinaryIO) -> Iterator[bytes]:
    """Yield the content of each file in a zip.

    Raises:
        ArchiveTooLarge: more than `MAX_MEMBERS` files or `MAX_UNPACKED_BYTES`, counted while unpacking.
        UnsafeArchive: links, devices, duplicate names, or names that lead out of the archive.
        EncryptedArchive: a password is needed.
        UnsupportedCompression: neither stored nor deflated.
        PayloadTruncated: cut short, damaged, or with a wrong checksum.
    """
    _reject_long_directory(file)
    left = MAX_UNPACKED_BYTES
    with _damage_refused(), zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        _reject_members(members)
        for member in members:
            if not member.is_dir():
                with archive.open(member) as packed:
                    content = _read(packed, left)
                left -= len(content)
                yield content


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
    file.seek(max(0, size - _END.size - 0xFFFF - 20))
    tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) - end < _END.size:
        msg = "The zip is cut short: its directory is missing. Send the whole file again."
        raise PayloadTruncated(msg)
    *_, entries, directory_bytes, _offset, _comment = _END.unpack_from(tail, end)
    zip64 = tail[max(0, end - 20) : end].startswith(b"PK\x06\x07")  # for more than 65535 entries or 4 GB
    if zip64 or entries > MAX_MEMBERS or directory_bytes > _MAX_DIRECTORY_BYTES:
        raise _too_many()


def _too_many() -> ArchiveTooLarge:
    return ArchiveTooLarge(
        f"A zip of more than {MAX_MEMBERS} files was found (or one in the zip64 layout for such). Zip the files of one series only."
    )


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


def _read(packed: IO[bytes], limit: int) -> bytes:
    content = bytearray()
    while piece := packed.read(_PIECE):
        content += piece
        if len(content) > limit:
            msg = f"The zip unpacks to more than {MAX_UNPACKED_BYTES} bytes. Zip the files of one series only."
            raise ArchiveTooLarge(msg)
    return bytes(content)
