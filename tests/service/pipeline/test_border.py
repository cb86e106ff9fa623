import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.pipeline.border import BORDER_MM, labels_at_border

ONE_MM = np.ones(3)


def mask_at(first: tuple[int, int, int], shape: tuple[int, int, int] = (40, 50, 30)) -> np.ndarray:
    """Return a mask of label 7 that begins at a voxel and fills 4 voxels along each axis."""
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(a, a + 4) for a in first)] = 7
    return mask


@given(axis=st.integers(0, 2), gap=st.integers(0, 9), far=st.booleans(), mm=st.sampled_from([0.5, 0.88, 1.0, 3.0]))
def test_a_label_within_2_mm_of_any_face_is_cut_off(axis: int, gap: int, far: bool, mm: float) -> None:  # noqa: FBT001 - drawn
    """Its distance to the outermost plane counts in mm, up to a tenth of the axis; thick planes count only themselves."""
    shape = (40, 50, 30)
    first = [15, 15, 15]
    first[axis] = shape[axis] - 4 - gap if far else gap
    spacing = np.array([1.0, 1.0, 1.0])
    spacing[axis] = mm
    expected = gap == 0 or (gap * mm <= BORDER_MM and gap < shape[axis] // 10)

    found = labels_at_border(mask_at((first[0], first[1], first[2])), spacing)

    assert (7 in found) == expected


def test_small_scans_have_a_border_of_one_plane() -> None:
    """Otherwise nothing in them would be whole."""
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[1:3, 1:3, 1:3] = 3

    assert labels_at_border(mask, ONE_MM) == {0}


def test_the_border_is_that_of_what_the_scan_shows() -> None:
    """Constant planes outside the box move it inwards."""
    mask = mask_at((12, 20, 13))

    assert 7 not in labels_at_border(mask, ONE_MM)
    assert 7 in labels_at_border(mask, ONE_MM, (slice(10, 40), slice(0, 50), slice(0, 30)))
    assert 7 not in labels_at_border(mask, ONE_MM, (slice(5, 40), slice(0, 50), slice(0, 30)))


@pytest.mark.parametrize(("begins", "cut"), [(16, True), (17, False), (30, False)])
def test_declared_padding_that_goes_on_outwards_is_a_border(begins: int, cut: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """A label with a face at it is cut off; one that ends before it is whole."""
    padding = np.zeros((40, 50, 30), bool)
    padding[begins:] = True

    assert (7 in labels_at_border(mask_at((12, 20, 13)), ONE_MM, None, padding)) == cut


def test_a_dark_voxel_within_a_structure_is_no_border() -> None:
    """Its value may be that of the padding by chance."""
    mask, padding = mask_at((12, 20, 13)), np.zeros((40, 50, 30), bool)
    padding[13, 21, 14] = padding[0] = True
    mask[padding] = 0

    assert 7 not in labels_at_border(mask, ONE_MM, None, padding)


def test_a_mask_without_labels_reaches_nothing() -> None:
    """Only background is at the border."""
    assert labels_at_border(np.zeros((9, 9, 9), np.uint8), ONE_MM, None, np.ones((9, 9, 9), bool)) == {0}
