"""`calibrant predict`: one scan -> files beside each other, computed here or by a running service."""

import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from service.client.http import Client
from service.schemas import Summary

WIDTH: Final = 100
"""Columns of a sentence on a terminal."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The files of one segmented scan, named in the style of BIDS derivatives."""

    mask: Path
    confidence: Path
    summary: Path

    @classmethod
    def write(cls, scan: Path, out: Path, mask: bytes, confidence: bytes, summary: Summary) -> "Prediction":
        """Write the three files into the folder `out` and return where they are."""
        out.mkdir(parents=True, exist_ok=True)
        name = scan.name.removesuffix(".gz").removesuffix(".nii")
        files = cls(
            out / f"{name}_dseg.nii.gz", out / f"{name}_desc-confidence_probseg.nii.gz", out / f"{name}_summary.json"
        )
        files.mask.write_bytes(mask)
        files.confidence.write_bytes(confidence)
        files.summary.write_text(summary.model_dump_json(indent=2) + "\n")
        return files

    def report(self) -> str:
        """Return what a person wants to see first: structures, trust, files."""
        summary = Summary.model_validate_json(self.summary.read_bytes())
        lines = [f"{'structure':24} {'volume':>9} {'mean confidence':>16}"]
        for structure in summary.structures:
            confidence = "-" if structure.mean_confidence is None else f"{structure.mean_confidence:.3f}"
            lines.append(f"{structure.name:24} {structure.volume_ml:6.2f} ml {confidence:>16}")
        lines += [
            "",
            *textwrap.wrap(summary.statement.text, WIDTH),
            *(f"  {reason}" for reason in summary.statement.reasons),
        ]
        lines += [*(f"Warning: {warning}" for warning in summary.warnings), summary.research_use_only, ""]
        return "\n".join([*lines, *(str(path) for path in (self.mask, self.confidence, self.summary))])


def predict_there(scan: Path, out: Path, model: str | None, url: str) -> Prediction:
    """Let the service at `url` segment the scan and write its files.

    Raises:
        ClientError: no answer, or the scan was refused.
    """
    with Client(url) as client:
        result = client.segment(scan, model)
    return Prediction.write(scan, out, result.mask, result.confidence, result.summary)


def predict_here(scan: Path, out: Path, model: str | None) -> Prediction:
    """Segment the scan in this process and write its files.

    Raises:
        CalibrantError: whatever `service.pipeline.run.run_case` raises.
    """
    import torch

    from service.bundle.reader import load_bundle
    from service.bundle.registry import DEFAULT_MODEL, SHIPPED, Registry
    from service.pipeline.encode import CONFIDENCE, MASK, SUMMARY
    from service.pipeline.run import run_case
    from service.settings import Settings

    extra = Settings.read().bundle_dir
    description = Registry.scan(SHIPPED, *([extra] if extra else [])).find(model or DEFAULT_MODEL)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run_case(scan, load_bundle(description.root, torch.device("cpu")), work, lambda _stage, _done: None)
        summary = Summary.model_validate_json((work / SUMMARY).read_bytes())
        return Prediction.write(scan, out, (work / MASK).read_bytes(), (work / CONFIDENCE).read_bytes(), summary)
