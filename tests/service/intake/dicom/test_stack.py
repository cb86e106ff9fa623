from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from highdicom.spatial import get_series_volume_positions
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from service import errors
from service.errors import ScanError
from service.intake.dicom.instance import Slice, read_instance
from service.intake.dicom.stack import stack
from service.intake.formats.geometry import lps_to_ras

Slices = Callable[..., list[Dataset]]
Save = Callable[[Dataset], bytes]
Read = Callable[[list[Dataset]], list[Slice]]


@pytest.fixture
def images(slices_of: Slices) -> list[Dataset]:
    """Return eight CT images, 2 mm apart, axial, 1 x 1.5 mm."""
    array = np.arange(4 * 5 * 8, dtype=np.int16).reshape(4, 5, 8)
    return slices_of(array, lps_to_ras(np.diag([1, 1.5, 2, 1])))


@pytest.fixture
def read(dicom_file: Save) -> Read:
    """Return the function that reads images."""
    return lambda images: [
        one_slice for image in images for one_slice in read_instance(dicom_file(image), with_voxels=False)
    ]


def move(image: Dataset, *, x: float = 0, z: float = 0) -> None:
    """Move an image by millimetres."""
    image.ImagePositionPatient = [image.ImagePositionPatient[0] + x, 0, image.ImagePositionPatient[2] + z]


def test_slices_are_sorted_along_their_normal(images: list[Dataset], read: Read) -> None:
    """Neither the order of the files nor InstanceNumber matters."""
    shuffled = [images[n] for n in (3, 0, 7, 1, 6, 2, 5, 4)]

    slices, affine = stack(read(shuffled))

    assert [image.position_mm[2] for image in slices] == [0, 2, 4, 6, 8, 10, 12, 14]
    np.testing.assert_array_equal(affine, lps_to_ras(np.diag([1, 1.5, 2, 1])))


def test_the_affine_maps_to_ras_as_the_series_was_made(
    slices_of: Slices, read: Read, oblique: npt.NDArray[np.float64]
) -> None:
    """The affine of an oblique grid is reproduced within 0.0001 mm."""
    _, affine = stack(read(slices_of(None, oblique)))

    np.testing.assert_allclose(affine, oblique, atol=1e-4)


def test_a_left_handed_grid_is_turned_over(slices_of: Slices, read: Read, oblique: npt.NDArray[np.float64]) -> None:
    """K grows along row x column, as in ITK: the last slice becomes the first, and every voxel keeps its place."""
    mirrored = oblique.copy()
    mirrored[:, 2] *= -1
    slices, affine = stack(read(slices_of(None, mirrored)))

    assert [image.instance for image in slices] == [f"1.2.3.{n}" for n in (6, 5, 4, 3, 2, 1)]
    np.testing.assert_allclose(affine @ [0, 0, 5, 1], mirrored @ [0, 0, 0, 1], atol=1e-4)


@given(jitter=st.lists(st.floats(-0.05, 0.05), min_size=8, max_size=8))
def test_jitter_is_accepted_where_highdicom_accepts_it(
    jitter: list[float], slices_of: Slices, dicom_file: Save
) -> None:
    """Slices within 2.5 % of their place are regular, with the same distance and order as in highdicom at 5 %."""
    images = slices_of(np.zeros((4, 5, 8), np.int16), np.diag([1.0, 1, 2, 1]))
    for image, mm in zip(images, jitter, strict=True):
        image.ImagePositionPatient[2] = image.ImagePositionPatient[2] + mm * 0.5
    slices, affine = stack([read_instance(dicom_file(image), with_voxels=False)[0] for image in images])

    spacing, positions = get_series_volume_positions(images, rtol=0.05)
    assert spacing is not None
    assert positions is not None
    np.testing.assert_allclose(np.linalg.norm(affine[:3, 2]), spacing)
    assert sorted(positions) == list(range(8))
    assert len(slices) == 8


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ([3], "1 of them are missing: gaps of 4.0 mm after 4.0 mm,"),
        ([3, 4], "2 of them are missing: gaps of 6.0 mm after 4.0 mm,"),
        ([1, 5], "2 of them are missing: gaps of 4.0 mm after 0.0 mm, 4.0 mm after 8.0 mm,"),
    ],
)
def test_missing_slices_are_named_by_their_gaps(
    missing: list[int], words: str, images: list[Dataset], read: Read
) -> None:
    """The gaps are given in millimetres from one end; ITK's series reader would stretch the voxels instead."""
    with pytest.raises(errors.MissingSlices, match=rf"^The slices lie 2\.00 mm apart, but {words}"):
        stack(read([image for n, image in enumerate(images) if n not in missing]))


def test_many_gaps_are_counted(slices_of: Slices, read: Read) -> None:
    """The message lists five gaps and counts the rest."""
    images = slices_of(np.zeros((4, 5, 40), np.int16), np.eye(4))
    with pytest.raises(errors.MissingSlices, match=r"10 of them .* and 5 more, counted"):
        stack(read([image for n, image in enumerate(images) if n % 4 != 2]))


def test_other_distances_are_irregular(images: list[Dataset], read: Read) -> None:
    """Distances that alternate by 30 % are refused."""
    for image in images[1::2]:
        move(image, z=0.6)
    with pytest.raises(errors.IrregularSpacing, match=r"1\.40 to 2\.60 mm"):
        stack(read(images))


def test_a_drift_is_irregular(slices_of: Slices, read: Read) -> None:
    """First 4 % too close, then 4 % too far: each distance is within 5 %, but the middle is off by more than a slice."""
    images = slices_of(np.zeros((4, 5, 60), np.int16), np.eye(4))
    for k, image in enumerate(images):
        image.ImagePositionPatient = [0, 0, k - 0.04 * min(k, 59 - k)]
    with pytest.raises(errors.IrregularSpacing):
        stack(read(images))


@pytest.mark.parametrize("degrees", [15, 30, -20])
def test_a_tilted_gantry_is_named(degrees: float, images: list[Dataset], read: Read) -> None:
    """Slices that are shifted sideways in proportion to k are refused with the angle."""
    for k, image in enumerate(images):
        move(image, x=k * 2 * np.tan(np.radians(degrees)))
    with pytest.raises(errors.GantryTilt, match=rf"\({abs(degrees):.1f} degrees over the stack\)"):
        stack(read(images))


def test_a_slice_shifted_sideways_is_refused(images: list[Dataset], read: Read) -> None:
    """A single shifted slice is refused like a tilt; a shift of a third of a voxel is accepted."""
    move(images[3], x=0.3)
    stack(read(images))
    move(images[3], x=0.3)
    with pytest.raises(errors.GantryTilt, match=r"up to 0\.6 mm"):
        stack(read(images))


def test_equal_slices_in_one_place_count_once(images: list[Dataset], read: Read) -> None:
    """A copy under another identifier is dropped; a different image at the same place is refused."""
    twin = read(images)[2]
    assert len(stack([*read(images), twin])[0]) == 8
    images[3].ImagePositionPatient = images[2].ImagePositionPatient
    with pytest.raises(errors.DuplicateInstance, match=r"1 of 8 slices share their position with a different slice"):
        stack(read(images))


@pytest.mark.parametrize("count", [1, 2])
def test_two_slices_are_the_least(count: int, images: list[Dataset], read: Read) -> None:
    """A single slice has no slice distance."""
    if count == 2:
        assert len(stack(read(images[:2]))[0]) == 2
    else:
        with pytest.raises(ScanError, match="Send the whole volume, not a slice"):
            stack(read(images[:1]))
