"""Nobody but the user of the service reads its files: patients' scans, results and names of series."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PRIVATE: Final = 0o077
"""The umask: what others may not do."""


def keep_private(root: Path) -> list[Path]:
    """Let this process and its children create private files only, and make private what an earlier version left in a folder.

    Args:
        root: of the files; it need not exist. A link is never followed. One that is private already is not walked through.

    Returns:
        What others can still reach, because it belongs to another user.
    """
    os.umask(PRIVATE)
    if not root.is_dir() or not root.stat().st_mode & PRIVATE:
        return []
    # The root comes last: as long as it is open, a walk that was interrupted is made again.
    return [path for path in (*_inside(root), root) if not _tighten(path)]


def _inside(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        yield from (Path(folder, name) for name in (*folders, *files))


def _tighten(path: Path) -> bool:
    """Return whether nobody else can reach a path now."""
    try:
        mode = path.lstat().st_mode
        if not stat.S_ISLNK(mode) and mode & PRIVATE:
            path.chmod(stat.S_IMODE(mode) & ~PRIVATE)
    except FileNotFoundError:
        return True
    except PermissionError:
        return False
    return True
