"""Confine a process with Landlock: from then on it can open one file and no other (Linux 5.13+, no privileges needed).

The kernel's interface is called directly: https://docs.kernel.org/userspace-api/landlock.html. Files that are open stay
open. Newer kernels can withhold more rights; all those listed here are withheld where the kernel knows them.
"""

import ctypes
import os
import struct
import sys
from functools import cache
from pathlib import Path
from typing import Final

_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_VERSION: Final = 1
_PATH_BENEATH: Final = 1
_NO_NEW_PRIVS: Final = 38
_READ_FILE: Final = 1 << 2

# Number of file rights by the interface version that introduced them; then rights to TCP, and to processes outside.
_FILE_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 5: 16}
_TCP_VERSION, _TCP_RIGHTS = 4, 0b11
_SCOPE_VERSION, _SCOPES = 6, 0b11


@cache
def landlock_version() -> int:
    """Return the version of the kernel's Landlock, 0 if it has none."""
    if sys.platform != "linux":
        return 0
    return max(0, _call(_CREATE_RULESET, None, 0, _VERSION))


def read_only_this(path: Path) -> None:
    """Restrict this thread and its children to opening one existing file for reading, without TCP connections.

    Does nothing where the kernel has no Landlock.

    Raises:
        OSError: the file is missing, or the kernel refused. The thread is not confined: the caller must not go on.
    """
    version = landlock_version()
    if version == 0:
        return
    ruleset = _checked(_call(_CREATE_RULESET, *_ruleset(version), 0))
    file = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rule = struct.pack("=Qi", _READ_FILE, file)
    _checked(_call(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0))
    _checked(_libc().prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
    _checked(_call(_RESTRICT_SELF, ruleset, 0))
    os.close(file)
    os.close(ruleset)


def _ruleset(version: int) -> tuple[bytes, int]:
    """Return a struct landlock_ruleset_attr that withholds every right this version knows, and its size in bytes."""
    bits = max(count for since, count in _FILE_RIGHTS.items() if since <= version)
    words = [(1 << bits) - 1]
    if version >= _TCP_VERSION:
        words.append(_TCP_RIGHTS)
    if version >= _SCOPE_VERSION:
        words.append(_SCOPES)
    return struct.pack(f"={len(words)}Q", *words), 8 * len(words)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: int | bytes | None) -> int:
    words = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result: int = _libc().syscall(ctypes.c_long(number), *words)
    return result


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "Landlock could not be set up")
    return result
