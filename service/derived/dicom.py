"""A result's folder -> DICOM objects, from the kept headers of its series; the scan is not needed.

Runs in a process of its own (`service.executors.on_demand`): a large series takes seconds and gigabytes.
"""

import gzip
import hashlib
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from service.intake.dicom.source import SourceSeries
from service.result.dicom.objects import write_objects
from service.result.dicom.outcome import ModelIdentity, Outcome
from service.result.files import CONFIDENCE, MASK, RESULT, SOURCE, SUMMARY
from service.result.frame import read_frame
from service.schemas import CaseResult, DicomObject, Summary, Superseded

SHOWN = (MASK, CONFIDENCE, SUMMARY)
"""Files of a result that DICOM objects show."""


def write_dicom(result: Path, folder: Path, objects: Collection[DicomObject], supersedes: Superseded | None) -> None:
    """Write objects of a result as `<object>.dcm`.

    Args:
        result: folder with the source's headers, mask, confidence and summary; for a parametric map the logits, too.
        folder: for the files.
        objects: which objects.
        supersedes: the report of an earlier result that this one replaces.
    """
    outcome = read_outcome(result, supersedes)
    write_objects(outcome, folder, [dicom_object for dicom_object in objects if dicom_object != "pm"])
    if "pm" in objects:
        from service.derived.maps import write_map

        write_map(result, folder / "confidence.nii.gz", "confidence", "uint16")
        precise = _slices(folder / "confidence.nii.gz").astype(np.uint16)
        write_objects(replace(outcome, confidence_KRC=precise), folder, ["pm"])


def read_outcome(result: Path, supersedes: Superseded | None = None) -> Outcome:
    """Return the input of a result's DICOM objects.

    Args:
        result: its folder.
        supersedes: the report of an earlier result that this one replaces.

    Raises:
        ValueError: the result is of a version that recorded neither date nor hashes.
    """
    case = CaseResult.model_validate_json((result / RESULT).read_bytes())
    config = read_frame(result).config
    if case.created is None or case.weights_sha256 is None or case.card_sha256 is None:
        msg = "the result knows neither its date nor its model's hashes"
        raise ValueError(msg)
    return Outcome(
        source=SourceSeries.model_validate_json(gzip.decompress((result / SOURCE).read_bytes())),
        labels=config.labels[1:],
        mask_KRC=_slices(result / MASK).astype(np.uint8),
        confidence_KRC=_slices(result / CONFIDENCE).astype(np.uint8),
        summary=Summary.model_validate_json((result / SUMMARY).read_bytes()),
        model=ModelIdentity(
            config.name, config.version, case.model.partition("@")[2], case.weights_sha256, case.card_sha256
        ),
        created=case.created,
        content=hashlib.sha256("".join(case.files[name] for name in SHOWN).encode()).hexdigest(),
        supersedes=supersedes,
    )


def _slices(path: Path) -> npt.NDArray[Any]:
    """Return the stored values of a .nii.gz with axes column, row, slice as (slices, rows, columns)."""
    image: Any = nib.load(path)
    return np.asarray(image.dataobj.get_unscaled()).T
