"""Decode what a stranger sent in a throw-away process: it may read that one file, for so long, with so much memory.

The processes are forked from a server that has every reader imported, so one costs milliseconds and finds all of its
code in memory: once confined it could not load any. The next one is started, and rehearses, while nobody waits for it.
What comes back is JSON over a pipe and raw voxels in memory that both see, never a pickle: a child that a file took over
cannot run code in its parent, and cannot change the voxels any more, or is dead, before the parent looks at them.
"""

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
from typing import Any, Final, Literal

import nibabel as nib
import numpy as np
from isal import igzip

from service.errors import CalibrantError, DecoderCrashed, DecoderDeadline, VolumeTooLarge, from_code
from service.intake.decode import check_scan, decode_scan
from service.intake.formats import nifti
from service.intake.landlock import landlock_version, read_only_this
from service.volume import Volume

_PROCESSES: Final = multiprocessing.get_context("forkserver")
_PRELOADED: Final = [
    "service.intake.sandbox",
    "service.intake.dicom.series",
    "service.commands.cli",  # what the script `calibrant` imports: multiprocessing runs its top again in every process
    "encodings.cp437",  # names in a zip
    "encodings.iso8859_1",  # text in DICOM
    "numpy.ma",  # numpy loads it at its first median
]
_PROCESSES.set_forkserver_preload(_PRELOADED)
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a decoding process may use."""

    memory_bytes: int = 8 << 30
    """Address space."""
    seconds: float = 60.0
    """Wall time; CPU time may be as long."""


def decode_sandboxed(path: Path, limits: Limits | None = None) -> Volume:
    """Return what `decode_scan` returns, computed in a process of its own.

    Raises:
        ScanError: as `decode_scan`, and when the process dies, takes too long or wants too much memory.
    """
    limits = limits or Limits()
    shared = _shared_memory(limits.memory_bytes)
    try:
        answer = _ask(path, limits, shared)
        dtype, shape = np.dtype(answer["dtype"]), answer["shape"]
        # The pages stay for as long as the array does, without the descriptor. Private: what is sealed is not shared.
        size = math.prod(shape) * dtype.itemsize
        voxels = mmap.mmap(shared, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    finally:
        os.close(shared)
    array = np.frombuffer(voxels, dtype).reshape(shape, order=answer["order"])
    affine = np.array(answer["affine"], np.float64)
    return Volume(array, affine, bytes.fromhex(answer["header"]), tuple(answer["warnings"]), answer["source"])


def check_sandboxed(path: Path, limits: Limits | None = None) -> None:
    """Raise what `check_scan` raises, found in a process of its own."""
    _ask(path, limits or Limits(), None)


def start_sandbox(*modules: str) -> None:
    """Start the server that the processes are forked from, so that the first scan does not wait for it.

    Args:
        modules: what other processes of the same server import first.
    """
    _PROCESSES.set_forkserver_preload([*_PRELOADED, *modules])
    _prepare_next()


@dataclass(frozen=True, slots=True)
class _DecoderChild:
    """A process that waits for its one file."""

    process: "multiprocessing.context.ForkServerProcess"
    pipe: "Connection[Any, Any]"

    @classmethod
    def started(cls) -> "_DecoderChild":
        """Start one."""
        ours, theirs = _PROCESSES.Pipe()
        process = _PROCESSES.Process(target=_decode_in_child, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        return cls(process, ours)

    def end(self) -> None:
        """Kill it and wait until it is gone."""
        self.pipe.close()
        self.process.kill()
        self.process.join()
        self.process.close()


_REHEARSED: Final = (256, 256, 8)
"""Voxels of the scan that a process decodes before the one that it waits for."""

_PREPARING: Final = "calibrant-sandbox"
_NEXT: "Final[queue.Queue[_DecoderChild]]" = queue.Queue(maxsize=1)


def _prepare_next(last: _DecoderChild | None = None) -> None:
    """End the process that decoded the last file and see to it that one waits for the next."""
    if last is not None:
        last.end()
    if _NEXT.empty():
        child = _DecoderChild.started()
        try:
            _NEXT.put_nowait(child)
        except queue.Full:  # another thread was faster
            child.end()


def _next_child() -> _DecoderChild:
    """Return the process that waits, or a new one."""
    with suppress(queue.Empty):
        child = _NEXT.get_nowait()
        if child.process.is_alive():
            return child
        child.end()
    return _DecoderChild.started()


def _ask(path: Path, limits: Limits, shared: int | None) -> dict[str, Any]:
    """Return the child's answer; voxels lie in the shared memory, if there is any, which the child cannot write to."""
    _warn_without_landlock()
    child = _next_child()
    overdue, harmless = threading.Event(), False

    def stop() -> None:
        overdue.set()
        child.process.kill()

    alarm = threading.Timer(limits.seconds, stop)
    alarm.start()
    try:
        child.pipe.send((path, limits, shared is not None))
        if shared is not None:
            send_handle(child.pipe, shared, child.process.pid)
        answer: dict[str, Any] = json.loads(child.pipe.recv_bytes())
        harmless = shared is None or _sealed(shared)
    except (EOFError, OSError) as error:
        raise _death(limits, late=overdue.is_set()) from error
    finally:
        alarm.cancel()
        if not harmless:
            child.end()
        # To end a process takes the kernel longer than many a file takes to decode.
        threading.Thread(target=_prepare_next, args=[child if harmless else None], name=_PREPARING, daemon=True).start()
    if "code" in answer:
        raise from_code(answer["code"], answer["detail"])
    return answer


def _shared_memory(size: int) -> int:
    """Return the descriptor of memory of a fixed size; it takes none until it is written to."""
    shared = os.memfd_create("voxels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(shared, size)
    # A file that shrinks under a mapping kills whoever looks at it.
    fcntl.fcntl(shared, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return shared


def _sealed(shared: int) -> bool:
    """Return whether nobody can write to the memory from now on: the kernel refuses while somebody has it mapped for that."""
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
        path, limits, with_voxels = pipe.recv()
    except EOFError:  # the parent has ended and needs nobody
        return
    shared = recv_handle(pipe) if with_voxels else None
    _confine(path, limits)
    try:
        answer = _decode(path, shared)
    except CalibrantError as error:
        answer = {"code": error.code, "detail": error.detail}
    except MemoryError:
        msg = f"The volume needs more than the {limits.memory_bytes >> 30} GiB that decoding may use. Crop or downsample it."
        answer = {"code": VolumeTooLarge.code, "detail": msg}
    pipe.send_bytes(json.dumps(answer).encode())


def _rehearse() -> None:
    """Decode once what most scans look like: the memory of a forked process becomes its own where it is first used."""
    sample = nib.Nifti1Image(np.zeros(_REHEARSED, np.int16), np.eye(4)).to_bytes()
    nifti.decode(io.BytesIO(igzip.compress(sample)))
    landlock_version()


def _confine(path: Path, limits: Limits) -> None:
    # Whatever a library prints could hold what the user sent: it goes nowhere.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    read_only_this(path)
    seconds = int(limits.seconds) + 1
    for kind, limit in {
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }.items():
        resource.setrlimit(kind, (limit, limit))


def _decode(path: Path, shared: int | None) -> dict[str, Any]:
    if shared is None:
        check_scan(path)
        return {}
    volume = decode_scan(path)
    # As they lie in memory: to turn a large volume into the other order takes as long as to decode it.
    order: Literal["F", "C"] = "F" if volume.array_CDHW.flags.f_contiguous else "C"
    with _mapped(shared, volume.array_CDHW.nbytes) as memory:
        voxels = np.frombuffer(memory, volume.array_CDHW.dtype)
        voxels.reshape(volume.array_CDHW.shape, order=order)[...] = volume.array_CDHW
        del voxels  # nothing may look at memory that is given back
    return {
        "dtype": volume.array_CDHW.dtype.str,
        "shape": volume.array_CDHW.shape,
        "order": order,
        "affine": volume.affine.tolist(),
        "header": volume.header.hex(),
        "warnings": volume.warnings,
        "source": volume.source,
    }


def _mapped(shared: int, size: int) -> mmap.mmap:
    try:
        return mmap.mmap(shared, size)
    except (OSError, ValueError) as error:  # over the address space, or over the size of the shared memory
        raise MemoryError from error
