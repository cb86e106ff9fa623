"""Limits the memory of a computation, so that a case that is too large fails alone instead of ending others."""

import os
import resource
from pathlib import Path
from typing import Final

_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")


def machine_memory_bytes() -> int:
    """Return the memory of this machine, or of its container if that has less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if _CGROUP_LIMIT.is_file() and (text := _CGROUP_LIMIT.read_text().strip()).isdecimal():
        memory = min(memory, int(text))
    return memory


def limit_memory(memory_bytes: int) -> None:
    """Let every allocation fail that would take this process over the limit.

    RLIMIT_DATA (Linux 4.7 and later) counts private writable memory: neither the libraries nor the address space that
    torch merely reserves.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))


def ran_out_of_memory(error: Exception) -> bool:
    """Return whether an exception means that memory ran out; on the CPU, torch raises a plain RuntimeError for that."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in str(error))
