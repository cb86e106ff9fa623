import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import pytest

from service.errors import ScanError
from service.intake.formats import nifti as reader
from service.intake.formats.geometry import MAX_VOXELS
from service.volume import Volume
from tests.service.intake.formats.contract import PlainFormatContract

Nifti = Callable[..., bytes]

VOXEL_TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


def decode_scan(path: Path) -> Volume:
    """Return the volume of a file."""
    with path.open("rb") as file:
        return reader.decode(file)


def check_scan(path: Path) -> None:
    """Check a file."""
    with path.open("rb") as file:
        reader.check(file)


@pytest.fixture(name="write")
def write_(tmp_path: Path) -> Callable[[bytes], Path]:
    """Return the function that writes a file under the name that its first bytes ask for."""

    def write(content: bytes) -> Path:
        path = tmp_path / ("scan.nii.gz" if content.startswith(b"\x1f\x8b") else "scan.nii")
        path.write_bytes(content)
        return path

    return write


def image_of(path: Path) -> nib.Nifti1Image:
    """Return the image that nibabel reads."""
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image)
    return image


def agrees_with_nibabel(volume: Volume, path: Path) -> None:
    """Compare voxels and affine with what nibabel reads from the same file."""
    image = image_of(path)
    np.testing.assert_array_equal(volume.affine, image.affine)
    voxels = volume.array_CDHW[0].astype(np.float64)
    np.testing.assert_allclose(voxels, image.get_fdata().reshape(voxels.shape), rtol=1e-6)
    assert volume.array_CDHW.dtype.isnative


@pytest.fixture(params=[1, 2], ids=["NIfTI-1", "NIfTI-2"])
def version(request: pytest.FixtureRequest) -> int:
    """Return each version of the format."""
    return int(request.param)


class TestNifti(PlainFormatContract):
    """Both versions of NIfTI are read as every format is."""

    reader = reader

    @pytest.fixture
    def sample(self, nifti: Nifti, version: int) -> bytes:
        """Return the phantom as NIfTI."""
        return nifti(version=version)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("voxel_type", VOXEL_TYPES)
def test_every_real_voxel_type_is_read_as_stored(
    voxel_type: str, endianness: Literal["<", ">"], version: int, nifti: Nifti, write: Callable[[bytes], Path]
) -> None:
    """Without a scale the voxels keep type and value, in either byte order, in NIfTI-1 and NIfTI-2."""
    array = np.arange(120).reshape(4, 5, 6).astype(np.dtype(voxel_type).newbyteorder(endianness))
    path = write(nifti(array, version=version, endianness=endianness))

    volume = decode_scan(path)

    assert volume.array_CDHW.dtype == np.dtype(voxel_type)
    assert np.array_equal(volume.array_CDHW, array[np.newaxis])
    agrees_with_nibabel(volume, path)


@pytest.mark.parametrize(
    ("slope", "intercept"),
    [(2.5, -1000), (-1, 0), (1, -1024), (1e-5, 3), (0, 7), (np.nan, np.nan), (np.inf, 0), (1, 0)],
)
def test_a_declared_scale_is_applied_as_nibabel_does(
    slope: float, intercept: float, nifti: Nifti, write: Callable[[bytes], Path]
) -> None:
    """Intensities are slope * stored + intercept; a slope of 0, NaN or infinity declares none."""
    path = write(nifti(scl_slope=slope, scl_inter=intercept))

    agrees_with_nibabel(decode_scan(path), path)


def test_scaled_intensities_are_float32(nifti: Nifti, write: Callable[[bytes], Path]) -> None:
    """The stored value 3 under a slope of 0.5 and an intercept of 10 is 11.5."""
    stored = np.full((2, 2, 2), 3, np.uint8)
    stored[0, 0, 0] = 5

    volume = decode_scan(write(nifti(stored, scl_slope=0.5, scl_inter=10)))

    assert volume.array_CDHW.dtype == np.float32
    assert volume.array_CDHW[0, :, 0, 0].tolist() == [12.5, 11.5]


@pytest.mark.parametrize(
    ("given", "form"),
    [({"sform_code": 0}, "qform"), ({"qform_code": 0}, "sform"), ({"sform_code": 4, "qform_code": 3}, "sform")],
)
def test_the_sform_goes_before_the_qform(
    given: dict[str, int], form: str, nifti: Nifti, write: Callable[[bytes], Path]
) -> None:
    """The affine is the sform if it is set, otherwise the qform, as in nibabel; two that agree give no warning."""
    path = write(nifti(**given))

    volume = decode_scan(path)

    image = image_of(path)
    np.testing.assert_array_equal(volume.affine, getattr(image, f"get_{form}")())
    np.testing.assert_array_equal(volume.affine, image.affine)
    assert volume.warnings == ()


def test_two_orientations_that_differ_are_reported(nifti: Nifti, write: Callable[[bytes], Path]) -> None:
    """A qform that shifts the volume by 1 mm gives a warning, and the sform is used."""
    path = write(nifti(qoffset_x=-8))

    volume = decode_scan(path)

    assert volume.warnings == ("The file holds two orientations (qform and sform) that differ; the sform was used.",)
    np.testing.assert_array_equal(volume.affine, image_of(path).get_sform())


@pytest.mark.parametrize("version", [1, 2])
def test_a_left_handed_quaternion_is_read(version: int, nifti: Nifti, write: Callable[[bytes], Path]) -> None:
    """pixdim[0] of -1 mirrors the third axis, as the standard says."""
    path = write(nifti(version=version, sform_code=0, pixdim_0=-1))

    assert np.linalg.det(decode_scan(path).affine[:3, :3]) < 0
    agrees_with_nibabel(decode_scan(path), path)


@pytest.mark.parametrize("codes", [{"sform_code": 0}, {}], ids=["qform alone", "with a sform"])
def test_a_pixdim_0_of_0_means_1(codes: dict[str, int], nifti: Nifti, write: Callable[[bytes], Path]) -> None:
    """The NIfTI-1 standard takes 1 for a qfac of 0 (nifti1.h, METHOD 2), and old writers leave it 0."""
    path = write(nifti(pixdim_0=0, **codes))

    volume = decode_scan(path)

    np.testing.assert_array_equal(volume.affine, image_of(path).affine)
    assert volume.warnings == ()


def test_trailing_axes_of_one_are_no_fourth_dimension(nifti: Nifti, write: Callable[[bytes], Path]) -> None:
    """A 4-D or 5-D header around one volume is a volume."""
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4, 1, 1)
    path = write(nifti(array))

    volume = decode_scan(path)

    assert volume.array_CDHW.shape == (1, 2, 3, 4)
    agrees_with_nibabel(volume, path)


def test_gzip_in_several_members_is_one_file(nifti: Nifti, write: Callable[[bytes], Path]) -> None:
    """Members may end anywhere, also inside the header (RFC 1952, section 2.2)."""
    content = nifti()
    path = write(b"".join(gzip.compress(part) for part in (content[:100], content[100:400], content[400:])))

    agrees_with_nibabel(decode_scan(path), path)


def test_voxels_may_begin_behind_an_extension(nifti: Nifti, write: Callable[[bytes], Path]) -> None:
    """Extensions between header and voxels, e.g. a comment of 1 kB, are skipped."""
    content = nifti(vox_offset=352 + 1024)
    extension = bytes([1, 0, 0, 0]) + (1024).to_bytes(4, "little") + (6).to_bytes(4, "little") + b"x" * 1016
    path = write(content[:348] + extension + content[352:])

    agrees_with_nibabel(decode_scan(path), path)


@pytest.mark.parametrize(("version", "size"), [(1, 348), (2, 540)])
def test_the_header_is_kept_byte_for_byte(
    version: int, size: int, nifti: Nifti, write: Callable[[bytes], Path]
) -> None:
    """Results repeat the header, so the volume keeps all of it."""
    content = nifti(version=version, endianness=">")

    assert decode_scan(write(content)).header == content[:size]


def test_the_most_voxels_are_512_by_512_by_2048(
    nifti: Nifti, patch: Callable[..., bytes], write: Callable[[bytes], Path]
) -> None:
    """A header at the limit is accepted (here only the voxels are missing); one slice more is refused."""
    assert MAX_VOXELS == 512 * 512 * 2048

    with pytest.raises(ScanError, match=r"^The header announces 1073741824 bytes of voxels; 240 were found\."):
        check_scan(write(patch(nifti(), dim_1=512, dim_2=512, dim_3=2048)))
    with pytest.raises(ScanError, match=r"^A volume of 512 x 512 x 2049 voxels was found; at most 536870912 "):
        check_scan(write(patch(nifti(), dim_1=512, dim_2=512, dim_3=2049)))


@pytest.mark.parametrize("number", range(6))
def test_hippocampus_scans_are_read_as_by_nibabel(number: int, real_hippocampus: Path) -> None:
    """Real scans of the decathlon, every thirtieth, have nibabel's voxels and affine."""
    path = sorted((real_hippocampus / "imagesTr").glob("hippocampus_*.nii.gz"))[number * 30]

    agrees_with_nibabel(decode_scan(path), path)


def test_spinal_cord_volumes_are_read_as_by_nibabel(spinal_cord: Path) -> None:
    """Real volumes with axes as P, S, R, slices of 17 mm and 8-bit, 16-bit and float voxels have nibabel's content."""
    paths = sorted(spinal_cord.rglob("*.nii.gz"))
    assert len(paths) >= 10

    for path in paths:
        agrees_with_nibabel(decode_scan(path), path)


def test_gzip_and_either_header_size_are_recognised(nifti: Nifti) -> None:
    """A file starts with gzip's magic number, or with 348 or 540 in either byte order."""
    files = [nifti(version=version, endianness=order) for version in (1, 2) for order in "<>"]

    assert all(map(reader.recognise, [*files, gzip.compress(files[0])]))
    assert not any(map(reader.recognise, [b"", b"NRRD0004", b"\x5c", b"PK\x03\x04"]))
