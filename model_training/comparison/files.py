"""The files of runs: plain JSON as `calibrant compare` writes it, or the same JSON packed with xz to a third of its size.

The content of a packed file is the plain file, byte for byte; packing the same run twice gives the same bytes, since an
xz stream holds no date and no name.
"""

import lzma
from pathlib import Path
from typing import Final

PLAIN: Final = ".json"
PACKED: Final = ".json.xz"


def run_files(folder: Path) -> list[Path]:
    """Return the file of every run of a folder, sorted by run; where a run has both, the plain one."""
    by_run = {path.name.removesuffix(PACKED): path for path in folder.glob(f"*{PACKED}")}
    by_run |= {path.name.removesuffix(PLAIN): path for path in folder.glob(f"*{PLAIN}")}
    return [by_run[run] for run in sorted(by_run)]


def read_json(file: Path) -> bytes:
    """Return the JSON of a run from its plain or packed file.

    Raises:
        ValueError: a packed file is damaged.
    """
    content = file.read_bytes()
    if not file.name.endswith(PACKED):
        return content
    try:
        return lzma.decompress(content, lzma.FORMAT_XZ)
    except lzma.LZMAError as error:
        msg = f"{file.name} is not a whole xz file: {error}"
        raise ValueError(msg) from error


def pack(file: Path) -> Path:
    """Replace a plain file by its packed form, after reading that back, and return the packed file.

    Raises:
        ValueError: what was packed does not give the plain file again.
    """
    packed = file.with_name(file.name.removesuffix(PLAIN) + PACKED)
    packed.write_bytes(lzma.compress(file.read_bytes(), lzma.FORMAT_XZ, lzma.CHECK_CRC64, preset=9))
    if read_json(packed) != file.read_bytes():
        msg = f"{packed} does not hold what {file} holds."
        raise ValueError(msg)
    file.unlink()
    return packed
