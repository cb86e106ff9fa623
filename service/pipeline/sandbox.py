"""Decode what a stranger sent in a throw-away process: it may read that one file, for so long, with so much memory.

The processes are forked from a server that has every reader imported, so one costs milliseconds and finds all of its
code in memory: once confined it could not load any. What comes back over the pipe is JSON and raw voxels, never a
pickle: a child that a file took over cannot run code in its parent.
"""

import json
import logging
import multiprocessing
import os
import resource
import threading
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from service.errors import BY_CODE, CalibrantError, DecoderCrashed, DecoderDeadline, VolumeTooLarge
from service.pipeline.decode import check_scan, decode_scan
from service.pipeline.landlock import landlock_version, read_only_this
from service.volume import Volume

_PROCESSES: Final = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    [
        "service.pipeline.sandbox",
        "service.dicom.series",
        "service.cli",  # what the script `calibrant` imports: multiprocessing runs its top again in every process
        "encodings.cp437",  # names in a zip
        "encodings.iso8859_1",  # text in DICOM
        "numpy.ma",  # numpy loads it at its first median
    ]
)
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
    answer, voxels = _ask(path, limits or Limits(), with_voxels=True)
    array = np.frombuffer(voxels, np.dtype(answer["dtype"])).reshape(answer["shape"], order=answer["order"])
    affine = np.array(answer["affine"], np.float64)
    return Volume(array, affine, bytes.fromhex(answer["header"]), tuple(answer["warnings"]))


def check_sandboxed(path: Path, limits: Limits | None = None) -> None:
    """Raise what `check_scan` raises, found in a process of its own."""
    _ask(path, limits or Limits(), with_voxels=False)


def _ask(path: Path, limits: Limits, *, with_voxels: bool) -> tuple[dict[str, Any], bytes]:
    _warn_without_landlock()
    receiver, sender = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=_decode_in_child, args=(sender, path, limits, with_voxels), daemon=True)
    process.start()
    sender.close()
    overdue = threading.Event()

    def stop() -> None:
        overdue.set()
        process.kill()

    alarm = threading.Timer(limits.seconds, stop)
    alarm.start()
    try:
        answer = json.loads(receiver.recv_bytes())
        voxels = receiver.recv_bytes() if "dtype" in answer else b""
    except (EOFError, OSError) as error:
        raise _death(limits, late=overdue.is_set()) from error
    finally:
        alarm.cancel()
        receiver.close()
        process.kill()
        process.join()
        process.close()
    if "code" in answer:
        raise BY_CODE[answer["code"]](answer["detail"])
    return answer, voxels


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


def _decode_in_child(sender: Connection, path: Path, limits: Limits, with_voxels: bool) -> None:  # noqa: FBT001 - sent over a pipe
    _confine(path, limits)
    try:
        answer, voxels = _decode(path, with_voxels=with_voxels)
    except CalibrantError as error:
        answer, voxels = {"code": error.code, "detail": error.detail}, b""
    except MemoryError:
        msg = f"The volume needs more than the {limits.memory_bytes >> 30} GiB that decoding may use. Crop or downsample it."
        answer, voxels = {"code": VolumeTooLarge.code, "detail": msg}, b""
    sender.send_bytes(json.dumps(answer).encode())
    if "dtype" in answer:
        sender.send_bytes(voxels)


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


def _decode(path: Path, *, with_voxels: bool) -> tuple[dict[str, Any], bytes]:
    if not with_voxels:
        check_scan(path)
        return {}, b""
    volume = decode_scan(path)
    # As they lie in memory: to turn a large volume into the other order takes as long as to decode it.
    order: Literal["F", "C"] = "F" if volume.array_CDHW.flags.f_contiguous else "C"
    answer = {
        "dtype": volume.array_CDHW.dtype.str,
        "shape": volume.array_CDHW.shape,
        "order": order,
        "affine": volume.affine.tolist(),
        "header": volume.header.hex(),
        "warnings": volume.warnings,
    }
    return answer, volume.array_CDHW.tobytes(order)
