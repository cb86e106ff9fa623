"""Groups DICOM files into series, by their headers and never by names or folders."""

from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Final

from service.commands.batch.case import BatchCase, FoundCases, Skipped
from service.intake.dicom import part10

MODALITIES: Final = ("CT", "MR", "PT")
"""Values of Modality (0008,0060) that can be segmented."""


def is_dicom(path: Path) -> bool:
    """Return whether a file is a DICOM file (PS3.10 section 7.1), with or without its preamble."""
    with path.open("rb") as file:
        return part10.recognise(file.read(part10.START_BYTES))


def find_series(files: list[Path]) -> FoundCases:
    """Return a case for each series; its id is the Series Instance UID."""
    if not files:
        return FoundCases()
    from service.intake.dicom.header import read_series_header  # pydicom takes a moment to load

    outcome = FoundCases()
    by_uid: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        header = read_series_header(path)
        if header is None:
            outcome.skipped.append(Skipped(path, "its DICOM header cannot be read"))
        elif not header.uid or header.modality not in MODALITIES:
            outcome.skipped.append(Skipped(path, f"DICOM, but not an image of {', '.join(MODALITIES)}"))
        else:
            by_uid[header.uid].append(path)
    outcome.cases.extend(
        BatchCase(uid, tuple(paths), PurePosixPath(uid), uid, is_series=True) for uid, paths in by_uid.items()
    )
    return outcome
