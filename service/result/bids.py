"""The files of a result -> one zip, named in the style of BIDS derivatives (bids-specification 1.10, "Derivatives").

A result has no subject; the job's id takes that place. Nothing is computed, and a .nii.gz is not compressed again.
"""

import io
import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from service import __version__
from service.result import outputs
from service.result.files import RESULT, mark_of
from service.result.frame import Frame, read_frame
from service.result.sidecars import to_json
from service.schemas import RESEARCH_USE_ONLY

_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""The earliest date that a zip can hold: the same result gives the same bytes."""

_FOLDERS: Final = {"MR": "anat", "PT": "pet"}
"""BIDS data type by DICOM modality; CT has none, so its folder is listed in `.bidsignore`."""

_DICOM: Final = "dicom"

_VERSION: Final = "1.10.0"

_SUBJECT: Final = "{subject}"
"""Start of the names of files about the subject, which `.bidsignore` lists."""

_RESULT: Final = "{subject}_result.json"

_DESCRIPTION: Final[dict[str, Any]] = {
    "Name": "Calibrant segmentation",
    "BIDSVersion": _VERSION,
    "DatasetType": "derivative",
    "GeneratedBy": [{"Name": "Calibrant", "Version": __version__}],
}


def write_zip(result: Path, subject: str, out: Path, dicom: Sequence[Path] = ()) -> None:
    """Write the zip of a result.

    Args:
        result: its folder.
        subject: label that stands for the subject: letters and digits.
        out: file to write.
        dicom: DICOM objects of the result; `.bidsignore` lists them.
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


def _members(result: Path, frame: Frame, subject: str) -> dict[str, bytes | Path]:
    """Return the content of each file of the zip by name; files that were not kept are left out with their sidecars."""
    model = re.sub(r"[^A-Za-z0-9]", "", frame.config.name)
    folder = _FOLDERS.get(frame.config.modality, frame.config.modality.lower())
    stems = {
        "image": f"sub-{subject}/{folder}/sub-{subject}_space-orig_seg-{model}",
        "subject": f"sub-{subject}/sub-{subject}",
    }
    made = f"Segmentation by Calibrant {__version__}, model {frame.config.name}."
    members: dict[str, bytes | Path] = {
        "dataset_description.json": to_json(_DESCRIPTION),
        "README.md": f"{mark_of(result)}{made} {RESEARCH_USE_ONLY}\n".encode(),
        ".bidsignore": _ignored(folder),
    }
    for file in outputs.OUTPUTS:
        if file.archive_name is None or not (result / file.name).is_file():
            continue
        name = file.archive_name.format_map(stems)
        members[name] = result / file.name
        if file.sidecars is not None:
            members |= {_beside(name, extension): content for extension, content in file.sidecars(frame).items()}
    return members | {_RESULT.format_map(stems): result / RESULT}


def _ignored(folder: str) -> bytes:
    """Return `.bidsignore`: the patterns of the files that BIDS does not know."""
    names = [*(file.archive_name for file in outputs.OUTPUTS if file.archive_name), _RESULT]
    patterns = [f"*{name.removeprefix(_SUBJECT)}" for name in names if name.startswith(_SUBJECT)]
    patterns += [f"{_DICOM}/", *([] if folder in _FOLDERS.values() else [f"**/{folder}"])]
    return ("\n".join(patterns) + "\n").encode()


def _beside(name: str, extension: str) -> str:
    return name.removesuffix(".nii.gz") + extension
