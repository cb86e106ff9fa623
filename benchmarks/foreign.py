"""What becomes of scans that a model was not made for, and of whole heads: `python benchmarks/foreign.py BUNDLE`.

Every input is a file that runs through the whole pipeline, gate included; the table counts the verdicts.
"""

import argparse
import os
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from page import publish, table
from scipy.ndimage import gaussian_filter
from spoilt import SEVERITIES, SPOILINGS
from trust import PAGE

from model_training.evaluation.resolution import at_spacing
from service.bundle.reader import LoadedBundle
from service.commands.demo import template
from service.engines.ready import ready_bundle
from service.errors import CalibrantError
from service.intake.decode import decode_scan
from service.pipeline.run import run_case
from service.result.files import SUMMARY
from service.schemas import Summary

SPINE = ("t1w.nii.gz", "t2.nii.gz", "t2s.nii.gz", "mt1.nii.gz")
HEAD_MM = (0.5, 0.7, 1.0, 1.5)
CROP_MM = (36, 50, 36)
WHITE, GREY, FLUID = (
    (2, 7, 41, 46, 16, 28, 60, 77, 85),
    (3, 8, 42, 47, 10, 11, 12, 13, 17, 18, 26, 49, 50, 51, 52, 53, 54, 58),
    (4, 5, 14, 15, 24, 30, 31, 43, 44, 62),
)
CONTRASTS = {"T1": (110, 75, 25, 60), "T2": (60, 85, 200, 70), "FLAIR": (75, 100, 15, 60), "PD": (80, 95, 105, 80)}
"""Intensities of white matter, grey matter, fluid and everything else."""

Named = Iterator[tuple[str, Path]]


def foreign(data: Path, work: Path, generator: np.random.Generator) -> Named:
    """Yield scans that show something else, and label-map heads of other contrasts."""
    yield from _cardiac(data, work, generator)
    for path in sorted((data / "sct_testing").glob("*/*.nii.gz")):
        if path.name in SPINE:
            yield "spinal cord MR", path
    for path in sorted((data / "OpenKBP" / "imagesTr").glob("*.nii.gz"))[:4]:
        yield "head and neck CT, whole", path
        yield from (
            (f"head and neck CT, crops of {' x '.join(map(str, CROP_MM))} mm", crop)
            for crop in _crops(path, work, generator)
        )
    yield "abdominal CT, DICOM", _zipped(data / "chaos_ct_dicom" / "DICOM_anon", work)
    for path in sorted((data / "brain_label_maps").glob("*.nii.gz"))[:4]:
        for contrast in CONTRASTS:
            yield f"drawn head, {contrast}", _drawn(path, contrast, work, generator)


def heads(data: Path, work: Path, config: object, generator: np.random.Generator) -> Named:
    """Yield real T1-weighted heads at several voxel sizes, and spoilt ones."""
    for path in (*sorted((data / "whole_head").glob("*.nii.gz")), template()):
        scan = decode_scan(path)
        nothing = np.zeros(scan.shape, np.uint8)
        for mm in HEAD_MM:
            resampled, _ = at_spacing(scan, nothing, (mm, mm, mm), config)  # type: ignore[arg-type]
            yield f"T1 head, {mm} mm", _saved(resampled.array_CDHW[0], resampled.affine, work)
        for spoiling in ("noise", "blur", "bias field", "ghosting", "contrast inverted", "turned over"):
            for severity, word in enumerate(SEVERITIES):
                spoilt = SPOILINGS[spoiling](scan.array_CDHW[0].astype(np.float32), nothing, severity, generator)
                yield f"T1 head, {spoiling}, {word}", _saved(spoilt.image, scan.affine, work)


def _cardiac(data: Path, work: Path, generator: np.random.Generator) -> Named:
    for path in sorted((data / "ACDC").rglob("*_frame01.nii.gz"))[:8]:
        yield "cardiac MR, whole", path
        yield from (("cardiac MR, crops", crop) for crop in _crops(path, work, generator))


def _crops(path: Path, work: Path, generator: np.random.Generator) -> Iterator[Path]:
    """Yield two random crops of a hippocampus crop's size, at 1 mm."""
    scan = decode_scan(path)
    for _ in range(2):
        size = np.minimum(np.ceil(np.array(CROP_MM) / scan.spacing_mm).astype(int), scan.shape)
        begin = [int(generator.integers(n - s + 1)) for n, s in zip(scan.shape, size, strict=True)]
        box = tuple(slice(b, b + s) for b, s in zip(begin, size, strict=True))
        if np.ptp(scan.array_CDHW[0][box].astype(np.float32)):
            yield _saved(scan.array_CDHW[0][box], scan.affine, work)


def _drawn(path: Path, contrast: str, work: Path, generator: np.random.Generator) -> Path:
    image = nib.Nifti1Image.from_filename(path)
    labels = np.asarray(image.dataobj)
    white, grey, fluid, other = CONTRASTS[contrast]
    drawn = np.where(labels == 0, 5, other).astype(np.float32)
    for tissue, value in ((WHITE, white), (GREY, grey), (FLUID, fluid)):
        drawn[np.isin(labels, tissue)] = value
    noisy = gaussian_filter(drawn, 0.6) + 4 * generator.standard_normal(drawn.shape)
    return _saved(noisy, image.affine, work)


def _saved(array: np.ndarray, affine: np.ndarray, work: Path) -> Path:
    path = Path(tempfile.mkstemp(".nii", dir=work)[1])
    nib.Nifti1Image(np.asarray(array, np.float32), affine).to_filename(path)
    return path


def _zipped(folder: Path, work: Path) -> Path:
    path = work / "series.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return path


def verdict_on(scan: Path, bundle: LoadedBundle) -> str:
    """Return the status of the statement, or refused with the error's code."""
    with tempfile.TemporaryDirectory() as out:
        try:
            run_case(scan, bundle, Path(out), lambda _stage, _done: None, ["mask", "summary"])
        except CalibrantError as error:
            return f"refused: {error.code}"
        return Summary.model_validate_json((Path(out) / SUMMARY).read_bytes()).statement.status


def counted(inputs: Named, bundle: LoadedBundle, show: Callable[[str], None]) -> dict[str, Counter[str]]:
    """Return how many inputs of each name had which verdict."""
    counts: dict[str, Counter[str]] = {}
    for name, path in inputs:
        verdict = verdict_on(path, bundle)
        show(f"{name}: {verdict}")
        if path.parent.name.startswith("foreign"):
            path.unlink()
        counts.setdefault(name, Counter())[verdict.partition(":")[0]] += 1
    return counts


def main() -> None:
    """Print the tables, and write them to the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CALIBRANT_DATA", "../shared/data")))
    parser.add_argument("--write", action="store_true", help="write the tables to docs/results/trust.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bundle = ready_bundle(arguments.bundle, torch.device("cpu"))
    verdicts = ("holds", "not compared", "withdrawn", "refused")
    with tempfile.TemporaryDirectory(prefix="foreign") as folder:
        work, generator = Path(folder), np.random.default_rng(0)
        parts = {
            "Foreign scans": foreign(arguments.data, work, generator),
            "Whole heads": heads(arguments.data, work, bundle.description.config, generator),
        }
        for title, inputs in parts.items():
            counts = counted(inputs, bundle, lambda line: print(line, flush=True))
            rows = [[name, *(str(found[verdict]) for verdict in verdicts)] for name, found in counts.items()]
            publish(title, table(["input", *verdicts], rows), PAGE if arguments.write else None)


if __name__ == "__main__":
    main()
