"""Names of a segmentation's files, in the style of BIDS derivatives."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

SUFFIXES: Final = (".nii.gz", ".nii", ".nrrd", ".mha", ".mgz", ".mgh", ".zip")
"""Extensions of the files that can be segmented."""


@dataclass(frozen=True, slots=True)
class Files:
    """Paths of the files of one segmentation.

    Args:
        folder: folder of the files.
        stem: common beginning of their names.
    """

    folder: Path
    stem: str

    @property
    def mask(self) -> Path:
        """Label values, NIfTI."""
        return self.folder / f"{self.stem}_dseg.nii.gz"

    @property
    def confidence(self) -> Path:
        """Confidence of the mask's label, NIfTI."""
        return self.folder / f"{self.stem}_desc-confidence_probseg.nii.gz"

    @property
    def summary(self) -> Path:
        """The image-level summary, JSON."""
        return self.folder / f"{self.stem}_summary.json"


def stem_of(scan: Path) -> str:
    """Return the name of a scan without its extension.

    >>> stem_of(Path("a/sub-1.T1.nii.gz"))
    'sub-1.T1'
    """
    suffix = next((suffix for suffix in (*SUFFIXES, ".dcm") if scan.name.lower().endswith(suffix)), "")
    return scan.name[: len(scan.name) - len(suffix)]
