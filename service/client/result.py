"""A finished segmentation in memory."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import ClientError
from ..schemas import Job, Summary
from .files import Files


@dataclass(frozen=True, slots=True)
class Result:
    """The outputs of a succeeded job; ones that the job did not keep are missing.

    Args:
        job: the job's record.
        files: downloaded bytes by output.
    """

    job: Job
    files: dict[str, bytes]

    @property
    def mask(self) -> bytes:
        """NIfTI file (.nii.gz), label values on the scan's grid."""
        return self._content("mask")

    @property
    def confidence(self) -> bytes:
        """NIfTI file (.nii.gz), values in [1/C, 1]."""
        return self._content("confidence")

    @property
    def summary(self) -> Summary:
        """The image-level calibration summary."""
        return Summary.model_validate_json(self._content("summary"))

    def save(self, folder: Path, stem: str | None = None) -> Files:
        """Write the outputs into a folder and return their paths.

        Args:
            folder: folder of the files; created if it does not exist.
            stem: common beginning of their names; the job's id if None.
        """
        folder.mkdir(parents=True, exist_ok=True)
        files = Files(folder, stem or self.job.id)
        for name, path in {"mask": files.mask, "confidence": files.confidence}.items():
            if name in self.files:
                path.write_bytes(self.files[name])
        if "summary" in self.files:
            files.summary.write_text(self.summary.model_dump_json(indent=2) + "\n")
        return files

    def _content(self, name: str) -> bytes:
        if name not in self.files:
            msg = f"The job did not keep the {name}. Segment the scan again with outputs that name it."
            raise ClientError(msg)
        return self.files[name]
