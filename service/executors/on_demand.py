"""Computes further files and figures from a finished job's result, in a throw-away process: the API never holds torch.

One at a time, because each computation may need as much memory as the case itself. A numpy implementation would need no
process, but its exponentials differ from torch's in the last digit, and so would every figure.
"""

import datetime as dt
import multiprocessing
import os
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from service.errors import ExecutionError, ResultExpired
from service.intake.sandbox import decode_sandboxed
from service.result.files import offers_dicom, reject_without_logits, reject_without_series
from service.result.nifti import Content, VoxelType
from service.schemas import DEFAULT_OBJECTS, DicomObject, Measured, Superseded
from service.storage.scratch import scratch

_PROCESSES: Final = multiprocessing.get_context("forkserver")
_TURN: Final = threading.Semaphore(1)

_MEASURED: Final = "measured.json"
_LABELS: Final = "labels.npy"


def derive_map(result: Path, work: Path, content: Content, voxel_type: VoxelType, seconds: float) -> Path:
    """Return a .nii.gz of the probabilities, the uncertainty or the confidence of a result.

    Args:
        result: folder of the result.
        work: folder that the file is written to.
        content: which of the three.
        voxel_type: voxel type of the file.
        seconds: time limit.

    Raises:
        ResultExpired: the logits are not kept.
        ExecutionError: the process died or took too long.
    """
    reject_without_logits(result)
    out = work / f"{content}.nii.gz"
    _in_child(_write_map, result, seconds, out, content, voxel_type)
    return out


def derive_measured(result: Path, work: Path, classes: npt.NDArray[np.uint8], model: str, seconds: float) -> Measured:
    """Measure a result against a reference mask.

    Args:
        result: folder of the result.
        work: folder of scratch files.
        classes: (D, H, W) the reference as output channels, on the scan's grid.
        model: identity of the bundle.
        seconds: time limit.

    Raises:
        ResultExpired: the logits are not kept.
        ExecutionError: the process died or took too long.
    """
    reject_without_logits(result)
    np.save(work / _LABELS, classes, allow_pickle=False)
    _in_child(_write_measured, result, seconds, work, model)
    return Measured.model_validate_json((work / _MEASURED).read_bytes())


def derive_dicom(
    result: Path,
    work: Path,
    objects: Collection[DicomObject] = DEFAULT_OBJECTS,
    seconds: float = 600.0,
    supersedes: Superseded | None = None,
) -> list[Path]:
    """Return the files of DICOM objects of a result, e.g. `seg.dcm`, in the given order.

    The same result and `supersedes` give the same UIDs and the same bytes.

    Args:
        result: folder of the result.
        work: folder that the files are written to.
        objects: the objects; duplicates are ignored.
        seconds: time limit.
        supersedes: the report of an earlier result that this one replaces, e.g. because slices arrived late.

    Raises:
        NoSourceSeries: the scan was not a DICOM series.
        ResultExpired: mask, confidence and summary, or for `pm` the logits, are not kept.
        ExecutionError: the process died or took too long.
    """
    reject_without_series(result)
    if not offers_dicom(result):
        msg = "DICOM results are made of mask, confidence and summary, and the segmentation was made without one of them among its outputs. Segment the scan again with all three."
        raise ResultExpired(msg)
    if "pm" in objects:
        reject_without_logits(result)
    distinct = tuple(dict.fromkeys(objects))
    _in_child(_write_dicom, result, seconds, work, distinct, supersedes)
    return [work / f"{dicom_object}.dcm" for dicom_object in distinct]


def derive_refusal(scan: Path, work: Path, bundle: Path, detail: str, seconds: float = 600.0) -> list[Path]:
    """Return the file of a report that says why a series was refused, `sr.dcm`; none if it belongs to no study.

    Args:
        scan: the zip of the series.
        work: folder that the file is written to.
        bundle: folder of the model that refused it.
        detail: why, in sentences.
        seconds: time limit.

    Raises:
        ScanError: the series cannot be read.
        ExecutionError: the process died or took too long.
    """
    source = decode_sandboxed(scan).source
    if source is None:
        return []
    _in_child(_write_refusal, work, seconds, source, bundle, detail, dt.datetime.now(dt.UTC).replace(microsecond=0))
    return [work / "sr.dcm"]


def _in_child(work: Callable[..., None], result: Path, seconds: float, *arguments: object) -> None:
    with _TURN:
        scratch()  # the server of the processes puts its socket there
        process = _PROCESSES.Process(target=work, args=(result, *arguments), daemon=True)
        process.start()
        process.join(seconds)
        late = process.is_alive()
        process.kill()
        process.join()
        code = process.exitcode
        process.close()
    if late:
        msg = (
            f"The computation from the stored result took longer than {seconds:.0f} s and was stopped. Try again later."
        )
        raise ExecutionError(msg)
    if code:
        msg = "The process that computed from the stored result died. Try again; if it fails again, tell the operator."
        raise ExecutionError(msg)


def _write_map(result: Path, out: Path, content: Content, voxel_type: VoxelType) -> None:
    from service.derived.maps import write_map

    write_map(result, out, content, voxel_type)


def _write_measured(result: Path, work: Path, model: str) -> None:
    from service.derived.measure import measure

    classes = np.load(work / _LABELS, mmap_mode="r", allow_pickle=False)
    (work / _MEASURED).write_text(measure(result, classes, model).model_dump_json())


def _write_refusal(work: Path, source: str, bundle: Path, detail: str, created: dt.datetime) -> None:
    _silence()

    from service.derived.refusal import write_refusal

    write_refusal(source, work, bundle, detail, created)


def _silence() -> None:
    """Discard all output: a library's warning or exception about a header may hold a patient's name."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)


def _write_dicom(result: Path, work: Path, objects: tuple[DicomObject, ...], supersedes: Superseded | None) -> None:
    _silence()

    from service.derived.dicom import write_dicom

    write_dicom(result, work, objects, supersedes)
