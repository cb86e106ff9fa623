"""Checks of DICOM results by independent programs, and by a reader that maps pixels by patient coordinates."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from pydicom.dataset import Dataset

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def program(name: str, package: str) -> str:
    """Return the path of one of Debian's programs; if it is absent the test is skipped, or fails in continuous integration.

    /usr/bin goes first: pynetdicom installs programs with the same names but other options in virtual environments.
    """
    path = f"/usr/bin/{name}"
    if not Path(path).exists() and (elsewhere := shutil.which(name)):
        path = elsewhere
    if not Path(path).exists():
        msg = f"{name} is absent: apt-get install {package}"
        pytest.fail(msg) if os.environ.get("CI") else pytest.skip(msg)
    return path


def faults_of(path: Path) -> list[str]:
    """Return the errors that dciodvfy of dicom3tools finds in a DICOM file."""
    done = subprocess.run(
        [program("dciodvfy", "dicom3tools"), str(path)], capture_output=True, text=True, check=False, errors="replace"
    )
    lines = (done.stdout + done.stderr).splitlines()
    assert lines, "dciodvfy printed nothing"
    return [line for line in lines if line.startswith("Error")]


def labels_by_place(
    segmentation: Dataset, affine_ras: npt.NDArray[np.float64], shape: tuple[int, ...], within: float = 0.01
) -> npt.NDArray[np.uint8]:
    """Return the segment number at each voxel of a grid, mapped by the patient coordinates of the frames' pixels.

    Args:
        segmentation: of type BINARY.
        affine_ras: of the grid, voxel index to RAS millimetres.
        shape: of the grid.
        within: largest distance in voxels between the centres of a pixel and its voxel.
    """
    labels = np.zeros(shape, np.uint8)
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    row, column = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    between_rows, between_columns = (float(mm) for mm in shared.PixelMeasuresSequence[0].PixelSpacing)
    pixels = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns)
    for frame, group in zip(pixels, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        rows, columns = np.nonzero(frame)
        lps = origin + np.outer(columns * between_columns, row) + np.outer(rows * between_rows, column)
        index = (np.linalg.inv(_RAS_TO_LPS @ affine_ras) @ np.c_[lps, np.ones(len(lps))].T)[:3]
        assert np.abs(index - np.rint(index)).max(initial=0) < within
        i, j, k = np.rint(index).astype(int)
        labels[i, j, k] = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    return labels
