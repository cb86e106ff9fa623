"""How much memory a computation may use: a case that is too large fails by itself instead of taking others along."""

import os
import resource
from pathlib import Path
from typing import Final

_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")


def machine_memory_bytes() -> int:
    """Return the memory of this machine, or of the container where that has less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if _CGROUP_LIMIT.is_file() and (text := _CGROUP_LIMIT.read_text().strip()).isdecimal():
        memory = min(memory, int(text))
    return memory


def limit_memory(memory_bytes: int) -> None:
    """Let every allocation of this process fail that would take it over the ceiling.

    Counts what is private and writable (RLIMIT_DATA, Linux 4.7 and later): not the libraries, and not the address space
    that is merely reserved, of which torch takes much.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))


def ran_out_of_memory(error: Exception) -> bool:
    """Return whether an exception is Python's or torch's word for that; torch raises a plain RuntimeError on the CPU."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in str(error))
