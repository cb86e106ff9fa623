import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidAffine, InvalidSpacing, UnsupportedDimensions, VolumeTooLarge
from service.intake.formats.geometry import (
    MAX_VOXELS,
    checked_affine,
    lps_to_ras,
    nifti_header,
    reject_affine,
    reject_bomb,
    reject_shape,
    reject_spacing,
    reject_unphysical,
)


def _read(header: bytes) -> nib.Nifti1Header:
    header_type: type[nib.Nifti1Header] = nib.Nifti1Header if len(header) == 348 else nib.Nifti2Header
    return header_type(header)


@pytest.mark.parametrize("shape", [(2, 2, 2), (512, 512, 2048), (2, 3, 4, 1, 1)])
def test_one_volume_is_accepted(shape: tuple[int, ...]) -> None:
    """From two voxels along each axis up to 2^29 in total; trailing axes of length 1 are ignored."""
    reject_shape(shape)


@pytest.mark.parametrize(
    ("shape", "error", "words"),
    [
        ((4, 5), UnsupportedDimensions, "An image of 4 x 5 was found"),
        ((4, 1, 5), UnsupportedDimensions, "at least 2 voxels along each axis"),
        ((4, 5, 6, 2), UnsupportedDimensions, "A 4-D image of 4 x 5 x 6 x 2"),
        ((512, 512, 2049), VolumeTooLarge, f"at most {MAX_VOXELS} voxels"),
        ((2**62, 2**62, 2**62), VolumeTooLarge, "Crop or downsample"),
    ],
)
def test_other_shapes_are_refused(shape: tuple[int, ...], error: type[Exception], words: str) -> None:
    """The message gives the actual and the expected shape; large numbers do not overflow."""
    with pytest.raises(error, match=words):
        reject_shape(shape)


@pytest.mark.parametrize("mm", [0, -1, np.nan, np.inf])
def test_a_voxel_size_is_positive_and_finite(mm: float) -> None:
    """A single bad axis is refused."""
    with pytest.raises(InvalidSpacing):
        reject_spacing(np.array([1, mm, 1]))


@pytest.mark.parametrize("element", [(0, 0, np.nan), (1, 3, np.inf), (2, 2, 0), (0, 1, 0.01)])
def test_an_affine_is_finite_regular_and_at_right_angles(element: tuple[int, int, float]) -> None:
    """An affine that is not finite, singular or sheared is refused."""
    affine = np.eye(4)
    affine[element[0], element[1]] = element[2]
    with pytest.raises(InvalidAffine):
        reject_affine(affine)


def test_a_checked_affine_has_its_axes_as_columns(oblique: npt.NDArray[np.float64]) -> None:
    """The axes become the columns of the matrix, followed by the origin."""
    np.testing.assert_array_equal(checked_affine(oblique[:3, :3], oblique[:3, 3], (4, 5, 6)), oblique)


@pytest.mark.parametrize(
    ("axes", "origin", "error"),
    [
        (np.diag([1, 1, 0]), [0, 0, 0], InvalidSpacing),
        (np.diag([1, 1, 1e-30]), [0, 0, 0], InvalidSpacing),
        (np.diag([1, 1, 1e308]), [0, 0, 0], InvalidAffine),
        (np.eye(3), [0, 2e6, 0], InvalidAffine),
        (np.eye(3), [0, np.nan, 0], InvalidAffine),
        (np.eye(3) + np.eye(3, k=1) * 0.1, [0, 0, 0], InvalidAffine),
    ],
)
def test_what_float32_or_a_body_cannot_hold_is_refused(
    axes: npt.NDArray[np.float64], origin: list[float], error: type[Exception]
) -> None:
    """Sizes below a nanometre, coordinates beyond a kilometre and shear are refused."""
    with pytest.raises(error):
        checked_affine(axes, origin, (4, 5, 6))


@pytest.mark.parametrize(
    ("shape", "mm", "refused"),
    [
        ((2, 2, 2000), (20, 20, 20), True),
        ((2, 2, 2), (1, 1, 10_000), True),
        ((2, 2, 2), (1, 1e-7, 1), True),
        ((2048, 512, 512), (2, 2, 2), False),
        ((2, 2, 2), (1e-4, 1e-4, 1e-4), False),
    ],
)
def test_a_volume_is_no_larger_than_any_body(
    shape: tuple[int, ...],
    mm: tuple[float, ...],
    refused: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """5 m along an axis and a nanometre are the limits; the message gives voxels and edges."""
    affine = np.diag([*mm, 1.0])

    if not refused:
        reject_unphysical(shape, affine)
    else:
        with pytest.raises(InvalidSpacing, match=r"Voxels of .* mm, so a volume of .* at most 5000 mm"):
            reject_unphysical(shape, affine)


@pytest.mark.parametrize(
    ("shape", "file_bytes", "refused"),
    [
        ((256, 256, 256), 100, False),
        ((256, 256, 257), 131_583, True),
        ((256, 256, 257), 131_584, False),
        ((512, 512, 2048), 4 << 20, False),
        ((2**20, 2**20, 2**20), 100_000, True),
    ],
)
def test_f1_a_large_volume_needs_a_file_of_some_size(
    shape: tuple[int, ...],
    file_bytes: int,
    refused: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """Up to 256 voxels along each axis come from any file; of more, a byte must stand for 128 at most."""
    if not refused:
        reject_bomb(shape, file_bytes)
    else:
        with pytest.raises(VolumeTooLarge, match=f"in a file of {file_bytes} bytes; .* at most 128 voxels"):
            reject_bomb(shape, file_bytes)


def test_a_place_a_kilometre_off_is_refused() -> None:
    """Its coordinates would lose their digits in float32."""
    affine = np.eye(4)
    affine[1, 3] = -2e6
    with pytest.raises(InvalidAffine, match="1000000 mm from the origin"):
        reject_unphysical((4, 5, 6), affine)


def test_lps_and_ras_differ_in_the_signs_of_two_rows(oblique: npt.NDArray[np.float64]) -> None:
    """Left becomes right and posterior becomes anterior; converting twice changes nothing."""
    flipped = lps_to_ras(oblique)

    np.testing.assert_array_equal(flipped[:2], -oblique[:2])
    np.testing.assert_array_equal(flipped[2:], oblique[2:])
    np.testing.assert_array_equal(lps_to_ras(flipped), oblique)


def test_the_header_of_results_is_what_nibabel_would_write(oblique: npt.NDArray[np.float64]) -> None:
    """Nibabel reads back shape, voxel type, unit and both orientations within 0.001 mm."""
    header = _read(nifti_header((4, 5, 6), oblique, np.int16))

    assert header.get_data_shape() == (4, 5, 6)
    assert header.get_data_dtype() == np.int16
    assert header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(header.get_zooms(), np.linalg.norm(oblique[:3, :3], axis=0), rtol=1e-6)
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(header.get_sform(), oblique, atol=1e-4)
    np.testing.assert_allclose(header.get_qform(), oblique, atol=1e-3)


def test_a_qform_that_cannot_express_the_affine_is_unset() -> None:
    """A shear of 0.0009 is within tolerance, but over 300 voxels no rotation reproduces it."""
    affine = np.eye(4)
    affine[0, 1] = 9e-4
    reject_affine(affine)

    header = _read(nifti_header((300, 300, 300), affine, np.float32))

    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(header.get_best_affine(), affine, atol=1e-7)


def test_a_long_axis_needs_nifti_2() -> None:
    """NIfTI-1 holds at most 32767 voxels along an axis."""
    assert len(nifti_header((32767, 2, 2), np.eye(4), np.uint8)) == 348
    assert _read(nifti_header((32768, 2, 2), np.eye(4), np.uint8)).get_data_shape() == (32768, 2, 2)


@given(
    st.permutations([0, 1, 2]),
    st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
    st.tuples(*[st.floats(0.1, 10)] * 3),
    st.tuples(*[st.floats(-999, 999)] * 3),
)
def test_any_permutation_and_flip_survives_the_header(
    order: list[int],
    signs: tuple[float, ...],
    spacing: tuple[float, ...],
    origin: tuple[float, ...],
) -> None:
    """The sform is the affine rounded to float32, which is below 0.0001 mm within a metre."""
    affine = checked_affine(np.eye(3)[order] * signs * spacing, origin, (40, 50, 60))

    header = _read(nifti_header((40, 50, 60), affine, np.float32))

    np.testing.assert_allclose(header.get_sform(), affine, atol=1e-4)
    assert int(header["qform_code"]) == 1
