"""The files of a result -> one zip, named in the style of BIDS derivatives (bids-specification 1.10, "Derivatives").

The result knows no subject: its own id takes that place. Nothing is computed and .nii.gz is not packed a second time.
"""

import io
import json
import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from service import __version__
from service.result.files import CONFIDENCE, MASK, RESULT, SUMMARY
from service.result.frame import Frame, read_frame
from service.schemas import RESEARCH_USE_ONLY

_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""The earliest date of a zip: the same result gives the same bytes."""

_FOLDERS: Final = {"MR": "anat", "PT": "pet"}
"""Data type by DICOM modality; BIDS has none for CT, whose folder it is told to ignore."""

_DICOM: Final = "dicom"

_VERSION: Final = "1.10.0"


def write_zip(result: Path, subject: str, out: Path, dicom: Sequence[Path] = ()) -> None:
    """Write the zip of a result.

    Args:
        result: its folder.
        subject: what takes the place of the subject's label: letters and digits.
        out: file to write.
        dicom: DICOM objects of the result, which BIDS is told to ignore.
    """
    frame = read_frame(result)
    members = _members(result, frame, subject) | {f"{_DICOM}/{path.name}": path for path in dicom}
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name, _EPOCH)
            member.external_attr = 0o644 << 16
            member.file_size = content.stat().st_size if isinstance(content, Path) else len(content)
            source = content.open("rb") if isinstance(content, Path) else io.BytesIO(content)
            with source, archive.open(member, "w") as packed:
                shutil.copyfileobj(source, packed)


def label_table(frame: Frame) -> bytes:
    """Return the labels as BIDS' tab-separated table of a discrete segmentation: index, name, abbreviation, color."""
    rows = [
        f"{label.value}\t{label.name}\t{_abbreviation(label.name)}\t#{bytes(label.color).hex()}"
        for label in frame.config.labels
    ]
    return "\n".join(["index\tname\tabbreviation\tcolor", *rows, ""]).encode()


def _members(result: Path, frame: Frame, subject: str) -> dict[str, bytes | Path]:
    model = re.sub(r"[^A-Za-z0-9]", "", frame.config.name)
    folder = _FOLDERS.get(frame.config.modality, frame.config.modality.lower())
    stem = f"sub-{subject}/{folder}/sub-{subject}_space-orig_seg-{model}"
    ignored = [
        "*_summary.json",
        "*_result.json",
        f"{_DICOM}/",
        *([] if folder in _FOLDERS.values() else [f"**/{folder}"]),
    ]
    labels = [label.name for label in frame.config.labels]
    members: dict[str, bytes | Path] = {
        "dataset_description.json": _json(
            {
                "Name": "Calibrant segmentation",
                "BIDSVersion": _VERSION,
                "DatasetType": "derivative",
                "GeneratedBy": [{"Name": "Calibrant", "Version": __version__}],
            }
        ),
        "README.md": f"Segmentation by Calibrant {__version__}, model {frame.config.name}. {RESEARCH_USE_ONLY}\n".encode(),
        ".bidsignore": ("\n".join(ignored) + "\n").encode(),
        f"{stem}_dseg.nii.gz": result / MASK,
        f"{stem}_dseg.json": _json({"SpatialReference": "orig", "Manual": False}),
        f"{stem}_dseg.tsv": label_table(frame),
        f"{stem}_desc-confidence_probseg.nii.gz": result / CONFIDENCE,
        f"{stem}_desc-confidence_probseg.json": _json(
            {
                "SpatialReference": "orig",
                "Manual": False,
                "LabelMap": labels,
                "Description": "Calibrated probability of the label that the mask has at each voxel, in [1/C, 1].",
            }
        ),
        f"sub-{subject}/sub-{subject}_summary.json": result / SUMMARY,
        f"sub-{subject}/sub-{subject}_result.json": result / RESULT,
    }
    there = {name for name, content in members.items() if isinstance(content, bytes) or content.is_file()}
    absent = [name.removesuffix(".nii.gz") for name in members if name not in there and name.endswith(".nii.gz")]
    # The sidecars of a file that was not kept would describe nothing.
    return {
        name: content
        for name, content in members.items()
        if name in there and not any(name.startswith(f"{stem}.") for stem in absent)
    }


def _abbreviation(name: str) -> str:
    return "".join(word[0] for word in name.split()).upper() if " " in name else name[:3].upper()


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
