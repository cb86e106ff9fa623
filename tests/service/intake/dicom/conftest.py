"""A small oblique MR series for the tests of the DICOM reader."""

import numpy as np
import numpy.typing as npt
import pytest
from pydicom.dataset import Dataset

from tests.dicom_series import small_series


@pytest.fixture(name="series")
def series_(oblique: npt.NDArray[np.float64]) -> list[Dataset]:
    """Return an MR series of 12 x 10 x 8 voxels under the canary's name."""
    return small_series(oblique)
