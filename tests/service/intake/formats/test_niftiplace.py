import gzip
import io
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st

from service import errors
from service.errors import ScanError
from service.intake.formats import nifti as reader
from service.intake.formats.niftiplace import SIZES_AGREE, place_of
from service.volume import VOXEL_SIZE, Volume

Nifti = Callable[..., bytes]
Affine = npt.NDArray[np.float64]

FLIPPED = np.array([[-1.0, 0, 0, 10], [0, 1.5, 0, -20], [0, 0, 2, 30], [0, 0, 0, 1]])


def read(content: bytes) -> Volume:
    """Return the volume of a file that also passes the check."""
    reader.check(io.BytesIO(content))
    return reader.decode(io.BytesIO(content))


def header_of(volume: Volume) -> nib.Nifti1Header:
    """Return the header that results on the volume's grid repeat."""
    return nib.Nifti1Header(volume.header, check=False)


@pytest.mark.parametrize(("unit", "scale", "name"), [(1, 1000.0, "metres"), (3, 0.001, "microns")])
@pytest.mark.parametrize("form", ["sform", "qform"])
def test_lengths_in_another_unit_are_converted(unit: int, scale: float, name: str, form: str, nifti: Nifti) -> None:
    """Voxels of 1 x 1.5 x 2 mm lie in the same place, whatever the unit and the matrix that hold them."""
    other = {"sform": "qform", "qform": "sform"}[form]
    smaller = FLIPPED.copy()
    smaller[:3] /= scale

    volume = read(nifti(affine=smaller, xyzt_units=unit, **{f"{other}_code": 0}))

    np.testing.assert_allclose(volume.affine, FLIPPED, rtol=1e-5, atol=1e-4)
    assert volume.warnings == (f"The header's lengths are in {name}; they were converted to millimetres.",)
    assert volume.doubts == ()


def test_itk_converts_the_same_units(nifti: Nifti, tmp_path: Any) -> None:  # noqa: ANN401 - pytest's own
    """Spacing and place are those that ITK reads."""
    smaller = FLIPPED.copy()
    smaller[:3] /= 1000
    path = tmp_path / "scan.nii"
    path.write_bytes(nifti(affine=smaller, xyzt_units=1))
    image = SimpleITK.ReadImage(path)

    volume = read(path.read_bytes())

    np.testing.assert_allclose(volume.spacing_mm, image.GetSpacing(), rtol=1e-5)
    np.testing.assert_allclose(volume.affine[:3, 3] * [-1, -1, 1], image.GetOrigin(), rtol=1e-5)


@pytest.mark.parametrize("unit", [0, 2, 2 | 8, 7])
def test_millimetres_and_no_unit_are_millimetres(unit: int, nifti: Nifti) -> None:
    """The upper bits are the unit of time; a unit that nobody defined counts as none."""
    volume = read(nifti(affine=FLIPPED, xyzt_units=unit))

    np.testing.assert_allclose(volume.affine, FLIPPED)
    assert volume.warnings == ()


@given(factor=st.floats(0.2, 5), axis=st.integers(1, 3), with_qform=st.booleans())
def test_two_voxel_sizes_are_named_and_doubted(factor: float, axis: int, with_qform: bool, nifti: Nifti) -> None:  # noqa: FBT001 - drawn
    """The sform's is used; from 1 % of difference on, both sizes stand in the warning and the volume is in doubt."""
    size = [1.0, 1.5, 2.0][axis - 1] * factor
    content = nifti(affine=FLIPPED, qform_code=int(with_qform), **{f"pixdim_{axis}": size})

    volume = read(content)

    np.testing.assert_allclose(volume.affine, FLIPPED)
    if abs(factor - 1) > 1.01 * SIZES_AGREE:
        assert volume.doubts == (VOXEL_SIZE,)
        (warning,) = volume.warnings
        assert warning.startswith("The header holds two voxel sizes: 1 x 1.5 x 2 mm by its sform")
        assert f"{size:.4g}" in warning
    elif abs(factor - 1) < 0.99 * SIZES_AGREE:
        assert volume.doubts == ()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"pixdim_0": 2}, "The header's quaternion is not a rotation; the sform was used."),
        ({"pixdim_0": np.nan}, "The header's quaternion is not a rotation; the sform was used."),
        ({"quatern_c": 2}, "The header's quaternion is not a rotation; the sform was used."),
        ({"quatern_c": np.nan}, "The header's quaternion is not a rotation; the sform was used."),
        ({"qoffset_x": np.inf}, "The header's quaternion is not a rotation; the sform was used."),
        ({"pixdim_1": 0}, "The header's voxel size is zero, negative or not a number; the sform was used."),
        ({"pixdim_3": -2}, "The header's voxel size is zero, negative or not a number; the sform was used."),
        (
            {"pixdim_2": np.nan, "qform_code": 0},
            "The header's voxel size (pixdim) is zero, negative or not a number; the sform's was used.",
        ),
    ],
    ids=str,
)
def test_a_qform_that_cannot_be_used_gives_way(fields: dict[str, float], words: str, nifti: Nifti) -> None:
    """The sform is used, with a warning, and the header of results holds it alone, so that every program reads it."""
    volume = read(nifti(affine=FLIPPED, **fields))

    np.testing.assert_allclose(volume.affine, FLIPPED)
    assert volume.warnings == (words,)
    assert volume.doubts == ()
    header = header_of(volume)
    assert int(header["qform_code"]) == 0
    np.testing.assert_allclose(header.get_zooms(), [1, 1.5, 2])
    np.testing.assert_allclose(header.get_best_affine(), FLIPPED)


@pytest.mark.parametrize("rows", [np.zeros((3, 4)), np.full((3, 4), np.nan), np.diag([1.0, 0, 1, 1])[:3]], ids=str)
def test_a_sform_that_holds_nothing_gives_way(rows: Affine, nifti: Nifti) -> None:
    """The qform is used, with a warning, and the header of results holds it alone."""
    fields = {f"srow_{axis}": row for axis, row in zip("xyz", rows, strict=True)}

    volume = read(nifti(affine=FLIPPED, **fields))

    np.testing.assert_allclose(volume.affine, FLIPPED, atol=1e-5)
    (warning,) = volume.warnings
    assert warning.endswith("; the qform was used.")
    assert int(header_of(volume)["sform_code"]) == 0


def test_a_sheared_sform_does_not_give_way(nifti: Nifti) -> None:
    """It may be that of a tilted gantry, whose qform is wrong."""
    with pytest.raises(errors.InvalidAffine, match="right angles"):
        read(nifti(affine=FLIPPED, srow_x=[-1, 0.3, 0, 10]))


@pytest.mark.parametrize("excess", [1e-6, 1e-4, 9e-4])
def test_a_quaternion_that_is_a_little_too_long_is_normalised(excess: float, nifti: Nifti) -> None:
    """Half a turn about the second axis stays that, in the header of results, too."""
    turned = np.diag([-1.0, 1, -1, 1])
    content = nifti(affine=turned, sform_code=0, quatern_c=1 + excess)

    volume = read(content)

    np.testing.assert_allclose(volume.affine, turned, atol=1e-6)
    (warning,) = volume.warnings
    assert warning.startswith("The quaternion of the header's qform has a length of 1.0")
    np.testing.assert_allclose(header_of(volume).get_qform(), turned, atol=1e-6)
    with pytest.raises(ScanError):
        read(nifti(affine=turned, sform_code=0, quatern_c=1.01))


@pytest.mark.parametrize("fields", [{"pixdim_1": 0}, {"pixdim_0": 2}], ids=str)
def test_two_orientations_that_cannot_be_used_are_refused(fields: dict[str, float], nifti: Nifti) -> None:
    """The message is about the sform, which goes first."""
    zeros = {f"srow_{axis}": 0 for axis in "xyz"}
    with pytest.raises(errors.InvalidAffine, match="singular"):
        read(nifti(affine=FLIPPED, **zeros, **fields))


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_impossible_sizes_are_refused_before_a_voxel_is_read(packed: bool, nifti: Nifti, patch: Nifti) -> None:  # noqa: FBT001 - a parameter of the test
    """Neither time nor memory grows with the volume that the header announces."""
    content = patch(nifti(affine=np.diag([20.0, 20, 20, 1])), dim_1=512, dim_2=512, dim_3=2048) + bytes(1 << 24)
    file = gzip.compress(content, 1) if packed else content
    for _ in range(2):  # the first time loads modules
        tracemalloc.start()
        started = time.perf_counter()
        with pytest.raises(errors.InvalidSpacing, match="at most 5000 mm"):
            reader.check(io.BytesIO(file))
        seconds = time.perf_counter() - started
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert seconds < 0.2
    assert peak < 1 << 20


def test_a_good_header_is_kept_byte_for_byte(nifti: Nifti) -> None:
    """Nothing is repaired where nothing is wrong."""
    header = nib.Nifti1Header(nifti(affine=FLIPPED)[:348])

    place = place_of(header)

    assert place.header.binaryblock == header.binaryblock
    assert (place.warnings, place.doubts) == ((), ())
