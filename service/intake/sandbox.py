"""Decode an untrusted file in a throw-away process that can read only that file, with limited time and memory.

Processes are forked from a server that has every reader imported. A fork costs milliseconds, and it needs all of its
code in memory because it cannot load any once it is confined. The next process is started and warmed up in advance.

A child answers with JSON over a pipe and raw voxels in shared memory, never with a pickle: a child that a file has
taken over cannot run code in its parent. The parent reads the voxels only after it has sealed the memory against
writes or ended the child.
"""

import errno
import fcntl
import io
import json
import logging
import math
import mmap
import multiprocessing
import os
import queue
import resource
import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import IO, Any, Final, Literal

import nibabel as nib
import numpy as np
from isal import igzip

from service.errors import CalibrantError, DecoderCrashed, DecoderDeadline, StorageFull, VolumeTooLarge, from_code
from service.intake.budget import claim_of
from service.intake.decode import check_scan, decode_scan
from service.intake.formats import nifti
from service.intake.formats.archive import MAX_UNPACKED_BYTES
from service.intake.landlock import landlock_version, read_only_this
from service.storage.scratch import scratch
from service.volume import Stated, Volume

_PROCESSES: Final = multiprocessing.get_context("forkserver")
_PRELOADED: Final = [
    "service.intake.sandbox",
    "service.intake.dicom.series",
    "service.intake.dicom.selection",
    "service.commands.cli",  # multiprocessing runs the imports of the script `calibrant` again in every process
    "encodings.cp437",  # names in a zip
    "encodings.iso8859_1",  # text in DICOM
    "numpy.ma",  # numpy imports it at the first median
]
_PROCESSES.set_forkserver_preload(_PRELOADED)
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """Resources of a decoding process."""

    memory_bytes: int = 8 << 30
    """Address space."""
    seconds: float = 60.0
    """Wall time; CPU time may be as long."""
    data_bytes: int | None = None
    """Memory that the process may take beyond what it has when it starts; None for no limit but the address space."""


def decode_sandboxed(path: Path, limits: Limits | None = None) -> Volume:
    """Return what `decode_scan` returns, computed in a process of its own.

    Raises:
        ScanError: as `decode_scan`, and if the process dies, takes too long or needs too much memory.
    """
    limits = limits or Limits()
    shared = _shared_memory(limits.memory_bytes)
    try:
        answer = _ask(path, limits, shared)
        dtype, shape = np.dtype(answer["dtype"]), answer["shape"]
        # The mapping outlives the descriptor. It is private: the kernel refuses shared mappings of sealed memory.
        size = math.prod(shape) * dtype.itemsize
        flags = math.prod(shape[1:]) if answer["padded"] else 0
        voxels = mmap.mmap(shared, size + flags, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    finally:
        os.close(shared)
    order = answer["order"]
    array = np.frombuffer(voxels, dtype, math.prod(shape)).reshape(shape, order=order)
    # Compared, because a child may have written other bytes than 0 and 1.
    padding = np.frombuffer(voxels, np.uint8, flags, size).reshape(shape[1:], order=order) != 0 if flags else None
    affine = np.array(answer["affine"], np.float64)
    warnings, header = tuple(answer["warnings"]), bytes.fromhex(answer["header"])
    doubts = tuple(answer["doubts"])
    return Volume(array, affine, header, warnings, answer["source"], padding, _stated(answer), doubts)


def check_sandboxed(path: Path, limits: Limits | None = None) -> Stated:
    """Raise what `check_scan` raises and return what it returns, running it in a process of its own.

    Args:
        path: the file.
        limits: of the process; by default it may take what the file may claim (`service.intake.budget`).
    """
    return _stated(_ask(path, limits or Limits(data_bytes=claim_of(path)), None))


def _stated(answer: dict[str, Any]) -> Stated:
    # A child that a file has taken over may answer with values of any type.
    return {str(name): tuple(map(str, values)) for name, values in answer["stated"].items()}


def select_sandboxed(path: Path, series: str, out: IO[bytes], limits: Limits | None = None) -> None:
    """Write what `select` of `service.intake.dicom.selection` writes for a file, running it in a process of its own.

    Args:
        path: a zip of DICOM files.
        series: Series Instance UID.
        out: an empty file on a disk, open for reading and writing.
        limits: of the process; by default it may take what the file may claim (`service.intake.budget`).

    Raises:
        InvalidRequest: the file does not hold the series.
        StorageFull: there is no space for it.
        ScanError: it cannot be read.
    """
    _ask(path, limits or Limits(data_bytes=claim_of(path)), out.fileno(), series)


def start_sandbox(*modules: str) -> None:
    """Start the server that processes are forked from, so that the first scan does not wait for it.

    Args:
        modules: imported by the server as well, for other processes that are forked from it.
    """
    _PROCESSES.set_forkserver_preload([*_PRELOADED, *modules])
    _prepare_next()


@dataclass(frozen=True, slots=True)
class _DecoderChild:
    """A process that waits for the file that it will decode."""

    process: "multiprocessing.context.ForkServerProcess"
    pipe: "Connection[Any, Any]"

    @classmethod
    def started(cls) -> "_DecoderChild":
        """Start a process."""
        scratch()  # the server of the processes puts its socket there
        ours, theirs = _PROCESSES.Pipe()
        process = _PROCESSES.Process(target=_decode_in_child, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        return cls(process, ours)

    def end(self) -> None:
        """Kill the process and wait until it is gone."""
        self.pipe.close()
        self.process.kill()
        self.process.join()
        self.process.close()


MAX_PACKED_BYTES: Final = MAX_UNPACKED_BYTES + (1 << 20)
"""Most bytes of a zip of one series: those of its files, and of its directory."""

_REHEARSED: Final = (256, 256, 8)
"""Shape of the sample scan that a process decodes to warm up."""

_DYING_S: Final = 1.0
"""Seconds within which a process whose pipe has closed tells its exit code."""

_PREPARING: Final = "calibrant-sandbox"
_NEXT: "Final[queue.Queue[_DecoderChild]]" = queue.Queue(maxsize=1)


def _prepare_next(last: _DecoderChild | None = None) -> None:
    """End the process that decoded the last file, and start one for the next file unless one is waiting already."""
    if last is not None:
        last.end()
    if _NEXT.empty():
        child = _DecoderChild.started()
        try:
            _NEXT.put_nowait(child)
        except queue.Full:  # another thread was faster
            child.end()


def _next_child() -> _DecoderChild:
    """Return the waiting process, or a new one."""
    with suppress(queue.Empty):
        child = _NEXT.get_nowait()
        if child.process.is_alive():
            return child
        child.end()
    return _DecoderChild.started()


def _ask(path: Path, limits: Limits, shared: int | None, series: str | None = None) -> dict[str, Any]:
    """Return a child's answer; its voxels or its zip of a series, if asked for, are in the shared memory or file.

    The child can no longer write there.

    A child that dies is replaced once: not the file but a lack of memory on the machine may have ended it.
    """
    _warn_without_landlock()
    try:
        answer = _ask_child(path, limits, shared, series)
    except DecoderCrashed:
        answer = _ask_child(path, limits, shared, series)
    if "code" in answer:
        raise from_code(answer["code"], answer["detail"])
    return answer


def _ask_child(path: Path, limits: Limits, shared: int | None, series: str | None) -> dict[str, Any]:
    """Return the answer of one child, which may be an error's code and detail.

    Raises:
        DecoderCrashed: the child died.
        DecoderDeadline: it took too long.
    """
    child = _next_child()
    overdue, harmless = threading.Event(), False

    def stop() -> None:
        overdue.set()
        child.process.kill()

    alarm = threading.Timer(limits.seconds, stop)
    alarm.start()
    try:
        child.pipe.send((path, limits, shared is not None, series))
        if shared is not None:
            send_handle(child.pipe, shared, child.process.pid)
        answer: dict[str, Any] = json.loads(child.pipe.recv_bytes())
        harmless = shared is None or _sealed(shared)
    except (EOFError, OSError) as error:
        child.process.join(_DYING_S)
        _LOG.warning("decoding process died, exit code %s", child.process.exitcode)
        raise _death(limits, late=overdue.is_set()) from error
    finally:
        alarm.cancel()
        if not harmless:
            child.end()
        # In a thread: the kernel takes longer to end a process than many files take to decode.
        threading.Thread(target=_prepare_next, args=[child if harmless else None], name=_PREPARING, daemon=True).start()
    return answer


def _shared_memory(size: int) -> int:
    """Return the descriptor of shared memory of a fixed size; pages are allocated when they are written."""
    shared = os.memfd_create("voxels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(shared, size)
    # Reading a mapping beyond the end of a file that has shrunk kills the reader.
    fcntl.fcntl(shared, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return shared


def _sealed(shared: int) -> bool:
    """Seal the memory against writes and return whether that worked: the kernel refuses while a writable mapping exists."""
    try:
        fcntl.fcntl(shared, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    except OSError:
        return False
    return True


@cache  # once
def _warn_without_landlock() -> None:
    if landlock_version() == 0:
        _LOG.warning(
            "This kernel has no Landlock (Linux 5.13 and later): decoding is limited in memory and time, "
            "but could read other files of this user. Run the service on a newer kernel."
        )


def _death(limits: Limits, *, late: bool) -> CalibrantError:
    if late:
        msg = (
            f"Decoding took longer than {limits.seconds:.0f} s and was stopped. Convert the scan again from its source."
        )
        return DecoderDeadline(msg)
    return DecoderCrashed("The process that decoded the file died. Convert the scan again from its source.")


def _decode_in_child(pipe: Connection) -> None:
    _rehearse()
    try:
        path, limits, answers_in_memory, series = pipe.recv()
    except EOFError:  # the parent has ended
        return
    shared = recv_handle(pipe) if answers_in_memory else None
    _confine(path, limits, MAX_PACKED_BYTES if series is not None else 0)
    try:
        answer = _select(path, shared, series) if shared is not None and series is not None else _decode(path, shared)
    except CalibrantError as error:
        answer = {"code": error.code, "detail": error.detail}
    except MemoryError:
        answer = {"code": VolumeTooLarge.code, "detail": _too_large(limits)}
    pipe.send_bytes(json.dumps(answer).encode())


def _too_large(limits: Limits) -> str:
    if limits.data_bytes is None:
        return f"The volume needs more than the {limits.memory_bytes >> 30} GiB that decoding may use. Crop or downsample it."
    return f"The file needs more than the {limits.data_bytes >> 20} MiB that the check of one of its size may use. Export the scan uncompressed."


def _rehearse() -> None:
    """Decode a typical scan once: a forked process copies each page of memory at its first use."""
    sample = nib.Nifti1Image(np.zeros(_REHEARSED, np.int16), np.eye(4)).to_bytes()
    nifti.decode(io.BytesIO(igzip.compress(sample)))
    landlock_version()


def _confine(path: Path, limits: Limits, written_bytes: int) -> None:
    # Output is discarded: what a library prints could contain what the user sent.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    present = _data_bytes()
    read_only_this(path)
    seconds = int(limits.seconds) + 1
    if limits.data_bytes is not None:
        data_bytes = present + limits.data_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes, data_bytes))
    for limited, limit in {
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: written_bytes,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }.items():
        resource.setrlimit(limited, (limit, limit))


def _decode(path: Path, shared: int | None) -> dict[str, Any]:
    if shared is None:
        return {"stated": check_scan(path)}
    volume = decode_scan(path)
    # Voxels are copied in their memory order: reordering a large volume takes as long as decoding it.
    order: Literal["F", "C"] = "F" if volume.array_CDHW.flags.f_contiguous else "C"
    size, padding = volume.array_CDHW.nbytes, volume.padding
    with _mapped(shared, size + (0 if padding is None else padding.size)) as memory:
        voxels = np.frombuffer(memory, volume.array_CDHW.dtype, volume.array_CDHW.size)
        voxels.reshape(volume.array_CDHW.shape, order=order)[...] = volume.array_CDHW
        if padding is not None:
            flags = np.frombuffer(memory, np.bool_, padding.size, size)
            flags.reshape(padding.shape, order=order)[...] = padding
            del flags
        del voxels  # a mapping with views on it cannot be closed
    return {
        "dtype": volume.array_CDHW.dtype.str,
        "shape": volume.array_CDHW.shape,
        "order": order,
        "affine": volume.affine.tolist(),
        "header": volume.header.hex(),
        "warnings": volume.warnings,
        "source": volume.source,
        "padded": padding is not None,
        "doubts": volume.doubts,
        "stated": volume.stated,
    }


def _data_bytes() -> int:
    """Return the private writable memory of this process (Linux, proc(5): statm), which RLIMIT_DATA counts."""
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()


def _select(path: Path, out: int, series: str) -> dict[str, Any]:
    from service.intake.dicom.selection import select  # imported in advance, by the server

    try:
        with path.open("rb") as file, os.fdopen(out, "w+b") as packed:
            packed.seek(0)
            packed.truncate()
            select(file, series, packed)
    except OSError as error:  # also of closing, which writes once more
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        msg = "No space is left for the series that was chosen. Try again later, or tell the operator."
        raise StorageFull(msg) from error
    return {}


def _mapped(shared: int, size: int) -> mmap.mmap:
    try:
        return mmap.mmap(shared, size)
    except (OSError, ValueError) as error:  # larger than the address space allows, or than the shared memory
        raise MemoryError from error
