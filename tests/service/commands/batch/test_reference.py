from collections.abc import Callable
from pathlib import Path

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


def test_a_reference_elsewhere_is_refused(tmp_path: Path, write_nifti: Write, summary: Summary) -> None:
    """Another shape, another place, or a file that is not an image is refused."""
    write_nifti(tmp_path / "m.nii.gz", np.zeros((4, 4, 4), np.uint8))
    write_nifti(tmp_path / "shape.nii", np.zeros((4, 4, 5), np.uint8))
    write_nifti(tmp_path / "place.nii", np.zeros((4, 4, 4), np.uint8), np.diag([1, 1, 2, 1]))
    (tmp_path / "text.nii").write_text("x")

    for name, fault in {
        "shape": "4 x 4 x 5",
        "place": "one grid",
        "text": "cannot be read",
        "gone": "cannot be read",
    }.items():
        with pytest.raises(SourceError, match=fault):
            dsc_of((tmp_path / "m.nii.gz").read_bytes(), tmp_path / f"{name}.nii", summary)
