import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from service.commands.batch.reference import dsc_of
from service.errors import SourceError
from service.schemas import Summary

Write = Callable[..., None]


def test_the_dsc_is_that_of_the_definition(tmp_path: Path, write_nifti: Write, summary: Summary) -> None:
    """Two of three and two voxels agree: 2 * 2 / (3 + 2); a structure in neither is undefined."""
    mask, reference = np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)
    mask[0, 0, :3] = 1
    reference[0, 0, 1:3] = 1
    write_nifti(tmp_path / "m.nii.gz", mask)
    write_nifti(tmp_path / "r.nii", reference)

    assert dsc_of((tmp_path / "m.nii.gz").read_bytes(), tmp_path / "r.nii", summary) == {"front": 0.8, "back": None}


@pytest.mark.parametrize("mask_type", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("reference_type", [nib.Nifti1Image, nib.Nifti2Image])
def test_both_versions_of_nifti_are_compared(
    mask_type: type[nib.Nifti1Image], reference_type: type[nib.Nifti1Image], tmp_path: Path, summary: Summary
) -> None:
    """Masks and references of drawn labels have the DSC that numpy finds, whichever version holds them."""
    rng = np.random.default_rng(11)
    mask, reference = rng.integers(0, 3, (2, 5, 6, 7)).astype(np.uint8)
    nib.save(mask_type(mask, np.eye(4)), tmp_path / "m.nii.gz")
    nib.save(reference_type(reference, np.eye(4)), tmp_path / "r.nii.gz")

    dsc = dsc_of((tmp_path / "m.nii.gz").read_bytes(), tmp_path / "r.nii.gz", summary)

    for name, label in {"front": 1, "back": 2}.items():
        agree = ((mask == label) & (reference == label)).sum()
        assert dsc[name] == pytest.approx(2 * agree / ((mask == label).sum() + (reference == label).sum()))


def test_a_reference_elsewhere_is_refused(tmp_path: Path, write_nifti: Write, summary: Summary) -> None:
    """Another shape, another place, or a file that is not an image is refused."""
    write_nifti(tmp_path / "m.nii.gz", np.zeros((4, 4, 4), np.uint8))
    write_nifti(tmp_path / "shape.nii", np.zeros((4, 4, 5), np.uint8))
    write_nifti(tmp_path / "place.nii", np.zeros((4, 4, 4), np.uint8), np.diag([1, 1, 2, 1]))
    (tmp_path / "text.nii").write_text("x")

    for name, fault in {
        "shape": "4 x 4 x 5",
        "place": "affines of reference and scan differ",
        "text": "not NIfTI",
        "gone": "cannot be read",
    }.items():
        with pytest.raises(SourceError, match=fault):
            dsc_of((tmp_path / "m.nii.gz").read_bytes(), tmp_path / f"{name}.nii", summary)


@pytest.mark.parametrize("fault", ["damaged", "truncated"])
def test_a_damaged_reference_is_refused(fault: str, tmp_path: Path, write_nifti: Write, summary: Summary) -> None:
    """A gzip file whose checksum disagrees has no DSC: neither a wrong one nor an end of the batch."""
    labels = np.random.default_rng(3).integers(0, 3, (9, 9, 9)).astype(np.uint8)
    write_nifti(tmp_path / "m.nii.gz", labels)
    content = bytearray((tmp_path / "m.nii.gz").read_bytes())
    if fault == "damaged":
        content[-8] ^= 1  # the checksum (RFC 1952)
    (tmp_path / "r.nii.gz").write_bytes(content if fault == "damaged" else content[:-20])
    with pytest.raises((gzip.BadGzipFile, EOFError)):
        gzip.decompress((tmp_path / "r.nii.gz").read_bytes())

    with pytest.raises(SourceError, match=r"^The reference cannot be compared\. "):
        dsc_of((tmp_path / "m.nii.gz").read_bytes(), tmp_path / "r.nii.gz", summary)
