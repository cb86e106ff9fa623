from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from service.bundle.schema import Label, ServiceConfig
from service.derived.reference import read_reference
from service.errors import GeometryMismatch, PayloadTruncated, UnknownLabels
from service.result.frame import Frame

Nifti = Callable[..., bytes]

MASK = (np.arange(120).reshape(4, 5, 6) * 7 % 11 % 3).astype(np.uint8)

ALONG_X = np.zeros((4, 4))
ALONG_X[0, 3] = 1
"""Moves an affine by 1 mm to the patient's right."""


@pytest.fixture(name="frame")
def frame_(tiny_config: ServiceConfig, oblique: npt.NDArray[np.float64]) -> Frame:
    """Return the frame of an oblique scan of 4 x 5 x 6 voxels with the labels 0, 7 and 4."""
    labels = [Label(value=value, name=str(value), color=(0, 0, 0)) for value in (0, 7, 4)]
    return Frame(
        scan_shape=(4, 5, 6),
        orientation=[(0, 1), (1, 1), (2, 1)],
        oriented_shape=(4, 5, 6),
        network_shape=(4, 5, 6),
        step=(1, 1, 1),
        affine=oblique.astype(np.float32).astype(np.float64).tolist(),
        header="",
        config=tiny_config.model_copy(update={"labels": labels}),
    )


@pytest.fixture(name="read")
def read_(frame: Frame, nifti: Nifti, tmp_path: Path) -> Callable[..., npt.NDArray[np.uint8]]:
    """Return the function that reads a reference from an array and optionally an affine."""

    def read(array: npt.NDArray[np.generic], *affine: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
        path = tmp_path / "reference.nii"
        path.write_bytes(nifti(array, *affine))
        return read_reference(path, frame)

    return read


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_values_become_channels(read: Callable[..., npt.NDArray[np.uint8]], dtype: type[np.generic]) -> None:
    """The values 0, 7 and 4 become the channels 0, 1 and 2 for any stored type."""
    actual = read(np.array([0, 7, 4])[MASK].astype(dtype))

    assert actual.dtype == np.uint8
    assert np.array_equal(actual, MASK)


@pytest.mark.parametrize(
    ("value", "listed"),
    [(3, "3"), (4.5, "4.5"), (-7, "-7"), (1e9, "1e+09")],
    ids=["gap", "fraction", "negative", "huge"],
)
def test_other_values_are_listed(read: Callable[..., npt.NDArray[np.uint8]], value: float, listed: str) -> None:
    """The message lists an unknown value and the model's labels."""
    array = np.zeros((4, 5, 6))
    array[1, 2, 3] = value

    with pytest.raises(UnknownLabels) as caught:
        read(array)

    assert (
        caught.value.detail == f"The reference holds {listed}; the model's labels are 0, 7, 4. Map its values to these."
    )


def test_at_most_twenty_unknown_values_are_listed(read: Callable[..., npt.NDArray[np.uint8]]) -> None:
    """An image instead of a mask has hundreds of unknown values."""
    with pytest.raises(UnknownLabels, match=r"holds 8, 9, .*, 27 and 98 more; "):
        read(np.arange(8, 128, dtype=np.int16).clip(None, 125).reshape(4, 5, 6))


def test_another_shape_is_refused(read: Callable[..., npt.NDArray[np.uint8]]) -> None:
    """The message gives both shapes."""
    with pytest.raises(
        GeometryMismatch, match=r"^The reference has 5 x 4 x 6 voxels; the scan has 4 x 5 x 6 \(i x j x k\)"
    ):
        read(np.zeros((5, 4, 6), np.uint8))


def test_affines_may_differ_by_rounding(
    read: Callable[..., npt.NDArray[np.uint8]], oblique: npt.NDArray[np.float64]
) -> None:
    """A corner may be shifted by up to a hundredth of the shortest edge, here 1 mm."""
    near = oblique + 0.005 * ALONG_X

    assert np.array_equal(read(MASK * 0, near), MASK * 0)


def test_another_place_is_refused(read: Callable[..., npt.NDArray[np.uint8]], oblique: npt.NDArray[np.float64]) -> None:
    """The message gives the shift of the reference and the accepted shift."""
    far = oblique + 0.02 * ALONG_X

    with pytest.raises(GeometryMismatch, match=r"^The affines of reference and scan differ: a corner lies 0\.02 mm "):
        read(MASK * 0, far)


def test_a_mirrored_reference_is_refused(
    read: Callable[..., npt.NDArray[np.uint8]], oblique: npt.NDArray[np.float64]
) -> None:
    """A mask of the same shape with a reversed first axis would be measured on the wrong side."""
    with pytest.raises(GeometryMismatch):
        read(MASK * 0, oblique @ np.diag([-1.0, 1, 1, 1]))


def test_an_undecodable_file_is_refused(frame: Frame, nifti: Nifti, tmp_path: Path) -> None:
    """It is refused with the same error as a scan."""
    (tmp_path / "cut.nii").write_bytes(nifti()[:-1])

    with pytest.raises(PayloadTruncated):
        read_reference(tmp_path / "cut.nii", frame)
