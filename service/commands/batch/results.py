"""Writes the files of a case in the style of BIDS derivatives; each appears whole or not at all and names its bundle."""

import csv
import glob
import hashlib
import io
import json
import os
import platform
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from service import __version__
from service.commands.batch.case import BatchCase
from service.schemas import RESEARCH_USE_ONLY, Summary
from service.storage.durable import write_durably

_IGNORED: Final = "logs\n*.csv\n*.parquet\n**/ct\n"


@dataclass(frozen=True, slots=True)
class Segmented:
    """The computed results of a case.

    Args:
        mask: NIfTI file.
        confidence: NIfTI file.
        summary: the image-level summary.
    """

    mask: bytes
    confidence: bytes
    summary: Summary


class Sidecar(BaseModel):
    """JSON file beside a mask; the first three names are those of BIDS."""

    model_config = ConfigDict(extra="ignore")

    Manual: bool = False
    SpatialReference: str = "orig"
    Description: str = "Labels of the most probable class; the .tsv beside it names them."
    Model: str
    """name@sha256 of the bundle."""
    InputSHA256: str
    Software: str = f"Calibrant {__version__}"
    ResearchUseOnly: str = RESEARCH_USE_ONLY
    Summary: Summary


def write_results(out: Path, case: BatchCase, input_sha256: str, segmented: Segmented) -> tuple[dict[str, str], str]:
    """Write the files of a case.

    Returns:
        SHA-256 by path below `out`, and the path of the sidecar with the summary.
    """
    files = case.results(out, segmented.summary.model)
    sidecar = Sidecar(Model=segmented.summary.model, InputSHA256=input_sha256, Summary=segmented.summary)
    contents = {
        files.mask: segmented.mask,
        files.confidence: segmented.confidence,
        _beside(files.mask, ".tsv"): _label_table(segmented.summary),
        _beside(files.confidence, ".json"): _json(_confidence_sidecar(sidecar)),
        _beside(files.mask, ".json"): _json(sidecar.model_dump(mode="json")),
    }
    files.folder.mkdir(parents=True, exist_ok=True)
    for path, content in contents.items():
        write_whole(path, content)
    hashes = {
        path.relative_to(out).as_posix(): hashlib.sha256(content).hexdigest() for path, content in contents.items()
    }
    return hashes, _beside(files.mask, ".json").relative_to(out).as_posix()


def describe_folder(out: Path) -> None:
    """Write the files that BIDS requires at the top of a data set of derivatives."""
    description = {
        "Name": "Segmentations by Calibrant",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "Calibrant", "Version": __version__, "Description": RESEARCH_USE_ONLY}],
    }
    readme = (
        "Masks (_dseg), confidence maps (_desc-confidence_probseg) and calibration summaries (.json beside each mask),\n"
        "written by calibrant batch. cases.csv and structures.csv are the tables, logs/ tells what became of each scan.\n"
        f"{RESEARCH_USE_ONLY}\n"
    )
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "dataset_description.json", _json(description))
    write_whole(out / "README.md", readme.encode())
    write_whole(out / ".bidsignore", _IGNORED.encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that other processes see whole or not at all, even after the machine failed."""
    mine = f".{path.name}.{platform.node()}."
    for part in path.parent.glob(f"{glob.escape(mine)}*.part"):
        if not _is_running(part.name.removeprefix(mine).partition("-")[0]):
            part.unlink(missing_ok=True)
    part = path.with_name(f"{mine}{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    try:
        write_durably(part, content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:  # another user's process
        return True
    return True


def _confidence_sidecar(sidecar: Sidecar) -> dict[str, Any]:
    common = sidecar.model_dump(mode="json", exclude={"Summary"})
    return common | {"Description": "Calibrated probability of the mask's label at each voxel, in [1/C, 1]."}


def _label_table(summary: Summary) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter="\t", lineterminator="\n")
    writer.writerow(("index", "name"))
    writer.writerow((0, "background"))
    writer.writerows((structure.label, structure.name) for structure in summary.structures)
    return buffer.getvalue().encode()


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name.removesuffix(".nii.gz") + suffix)


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
