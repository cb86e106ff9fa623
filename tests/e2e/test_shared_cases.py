"""The inputs of the cases folder beside the data: each is stored so that something used to go wrong with it."""

import os
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch

from service.bundle.reader import LoadedBundle, load_bundle
from service.bundle.registry import SHIPPED
from service.errors import InvalidSpacing
from service.intake.sandbox import check_sandboxed
from service.pipeline.run import run_case
from service.result.files import MASK, SUMMARY
from service.schemas import Summary

DEFAULT = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def cases() -> Path:
    """Return the folder of the cases, or skip without it."""
    folder = Path(os.environ.get("CALIBRANT_DATA", DEFAULT)).parent / "cases"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: set CALIBRANT_DATA to the folder beside it")
    return folder


@pytest.fixture(scope="module")
def bundle() -> LoadedBundle:
    """Return the shipped bundle."""
    return load_bundle(SHIPPED / "hippocampus-mr", torch.device("cpu"))


def segmented(scan: Path, bundle: LoadedBundle, out: Path) -> tuple[npt.NDArray[Any], Summary]:
    """Return the mask with axes along R, A, S, and the summary of a scan that is accepted."""
    check_sandboxed(scan)
    out.mkdir()
    run_case(scan, bundle, out, lambda _stage, _done: None, ["mask", "summary"])
    mask = nib.as_closest_canonical(nib.Nifti1Image.from_filename(out / MASK))
    return np.asarray(mask.dataobj), Summary.model_validate_json((out / SUMMARY).read_bytes())


@pytest.fixture(scope="module")
def clean(cases: Path, bundle: LoadedBundle, tmp_path_factory: pytest.TempPathFactory) -> npt.NDArray[Any]:
    """Return the mask of the same crop, stored well."""
    return segmented(cases / "reference_crop.nii.gz", bundle, tmp_path_factory.mktemp("clean") / "out")[0]


@pytest.mark.parametrize(
    ("name", "least", "words"),
    [
        ("dicom_padding_-32768.zip", 0.95, ""),
        ("units_metre.nii.gz", 0.999, "converted to millimetres"),
        (
            "pixdim_2mm_sform_1mm.nii.gz",
            0.999,
            "1 x 1 x 1 mm by its sform, which was used, and 2 x 2 x 2 mm by its pixdim",
        ),
        ("quaternion_over_1e-6_sform_fine.nii.gz", 0.999, "normalised"),
        ("qfac_2_sform_fine.nii.gz", 0.999, "the sform was used"),
        ("sform_of_zeros_qform_fine.nii.gz", 0.999, "the qform was used"),
        ("freesurfer.mgz", 0.99, ""),
        ("singleton_axis.nrrd", 0.999, ""),
        ("singleton_axis.mha", 0.999, ""),
        ("dicom_without_preamble.zip", 0.99, ""),
        ("enhanced_multiframe.dcm", 0.99, ""),
    ],
)
def test_a_scan_stored_otherwise_has_the_same_mask(  # noqa: PLR0913, PLR0917 - a parameter is a case
    name: str, least: float, words: str, cases: Path, bundle: LoadedBundle, clean: npt.NDArray[Any], tmp_path: Path
) -> None:
    """In the same place, with a warning where the file is at fault."""
    mask, summary = segmented(cases / name, bundle, tmp_path / "out")

    assert mask.shape == clean.shape
    agreement = 2 * ((mask == clean) & (clean > 0)).sum() / ((mask > 0).sum() + (clean > 0).sum())
    assert agreement >= least
    assert words in " ".join(summary.warnings)
    assert bool(summary.warnings) == bool(words)


def test_two_voxel_sizes_give_neither_volume_nor_statement(cases: Path, bundle: LoadedBundle, tmp_path: Path) -> None:
    """ITK reads eight times the volume from the same file."""
    _, summary = segmented(cases / "pixdim_2mm_sform_1mm.nii.gz", bundle, tmp_path / "out")

    assert [structure.volume_ml for structure in summary.structures] == [None, None]
    assert summary.statement.status == "withdrawn"
    assert any("two voxel sizes" in reason for reason in summary.statement.reasons)


def test_a_volume_of_40_m_is_refused_at_once(cases: Path) -> None:
    """Before a job is made of it; the second time the sandbox is warm."""
    for _ in range(2):
        started = time.perf_counter()
        with pytest.raises(InvalidSpacing, match="at most 5000 mm"):
            check_sandboxed(cases / "extent_of_40_m.nii.gz")
        seconds = time.perf_counter() - started
    assert seconds < 2
