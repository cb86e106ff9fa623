import gzip
import io
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st

from service import errors
from service.errors import ScanError
from service.intake.formats import nrrd as reader
from service.intake.formats.geometry import lps_to_ras
from service.volume import Volume

Nrrd = Callable[..., bytes]

ITK_TYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")
DIRECTIONS = {
    "identity": np.eye(3),
    "flipped": np.diag([-1.0, 1.0, -1.0]),
    "permuted": np.eye(3)[[2, 0, 1]],
    "oblique": nib.eulerangles.euler2mat(0.3, -0.5, 0.9),
}


def decode(content: bytes) -> Volume:
    """Return the volume of a file's content."""
    return reader.decode(io.BytesIO(content))


def volume_or_refusal(content: bytes) -> Volume | ScanError:
    """Decode a file's content; any exception but a ScanError is passed on."""
    try:
        return decode(content)
    except ScanError as refusal:
        return refusal


def write_with_itk(path: Path, array: np.ndarray, direction: np.ndarray, *, compress: bool) -> SimpleITK.Image:
    """Write an array (i, j, k) with SimpleITK and return its image."""
    image = SimpleITK.GetImageFromArray(array.T)
    image.SetSpacing((0.7, 1.1, 2.3))
    image.SetOrigin((-10.25, 20.5, 33))
    image.SetDirection(direction.ravel().tolist())
    SimpleITK.WriteImage(image, path, useCompression=compress)
    return image


def affine_of(image: SimpleITK.Image) -> np.ndarray:
    """Return the RAS affine of an ITK image."""
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    return lps_to_ras(lps)


@pytest.mark.parametrize("compress", [False, True], ids=["raw", "gzip"])
@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_what_itk_writes_is_read_as_itk_reads_it(direction: np.ndarray, compress: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a parameter of the test
    """Voxels and place of flipped, permuted and oblique volumes are those of the image that SimpleITK wrote."""
    array = np.random.default_rng(1).normal(size=(5, 6, 7)).astype(np.float32)
    image = write_with_itk(tmp_path / "a.nrrd", array, direction, compress=compress)

    volume = decode((tmp_path / "a.nrrd").read_bytes())

    np.testing.assert_array_equal(volume.array_CDHW[0], array)
    np.testing.assert_allclose(volume.affine, affine_of(image), atol=1e-6)


@pytest.mark.parametrize("voxel_type", ITK_TYPES)
def test_every_voxel_type_of_itk_is_read(voxel_type: str, tmp_path: Path) -> None:
    """Integers of 8 to 64 bits and both floats keep type and value."""
    array = (np.arange(60).reshape(3, 4, 5) * 2 - 60).astype(voxel_type)
    write_with_itk(tmp_path / "a.nrrd", array, np.eye(3), compress=False)

    volume = decode((tmp_path / "a.nrrd").read_bytes())

    assert volume.array_CDHW.dtype == np.dtype(voxel_type)
    np.testing.assert_array_equal(volume.array_CDHW[0], array)


def test_big_endian_voxels_are_read(nrrd: Nrrd) -> None:
    """As native numbers, like every volume."""
    little, big = decode(nrrd()), nrrd(decode(nrrd()).array_CDHW[0].astype(">i2").tobytes(order="F"), endian="big")

    np.testing.assert_array_equal(decode(big).array_CDHW, little.array_CDHW)
    assert decode(big).array_CDHW.dtype.isnative


@pytest.mark.parametrize(
    ("space", "signs"),
    [("LPS", [-1, -1, 1]), ("right-anterior-superior", [1, 1, 1]), ("RAS", [1, 1, 1]), ("LAS", [-1, 1, 1])],
)
def test_spaces_differ_in_signs(space: str, signs: list[int], nrrd: Nrrd) -> None:
    """The same numbers in RAS, LAS and LPS are different places."""
    volume = decode(nrrd(space=space, space_directions="(1,0,0) (0,2,0) (0,0,3)", space_origin="(10,20,30)"))

    np.testing.assert_array_equal(volume.affine[:3, 3], np.array([10, 20, 30]) * signs)
    np.testing.assert_array_equal(np.diag(volume.affine)[:3], np.array([1, 2, 3]) * signs)


def test_the_header_of_the_results_is_nifti(nrrd: Nrrd) -> None:
    """It describes the same grid; nibabel reads it."""
    volume = decode(nrrd())
    header = nib.Nifti1Header(volume.header)

    assert header.get_data_shape() == volume.shape
    np.testing.assert_allclose(header.get_best_affine(), volume.affine, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"space_units": '"mm" "mm" "mm"'},
        {"kinds": None},
        {"centerings": "cell cell cell"},
        {"measurement_frame": "(1,0,0) (0,1,0) (0,0,1)"},
        {"TYPE": "int16", "type": None},
    ],
)
def test_fields_that_change_nothing_are_accepted(change: dict[str, str | None], nrrd: Nrrd) -> None:
    """What other programs add around one volume in millimetres, and names in capitals."""
    np.testing.assert_array_equal(decode(nrrd(**change)).array_CDHW, decode(nrrd()).array_CDHW)


REFUSED = [
    *[({name: "x.raw"}, errors.UnsafeHeader) for name in ("data_file", "datafile", "Data_File", "DATAFILE")],
    *[({name: "0"}, errors.UnsafeHeader) for name in ("byte_skip", "byteskip", "line_skip", "lineskip")],
    ({"axis_mins": "0 0 0"}, errors.UnsafeHeader),
    ({"unheard_of": "1"}, errors.UnsafeHeader),
    ({"type": None}, errors.InvalidHeader),
    ({"endian": None}, errors.InvalidHeader),
    ({"endian": "middle"}, errors.InvalidHeader),
    ({"encoding": None}, errors.InvalidHeader),
    ({"dimension": None}, errors.InvalidHeader),
    ({"sizes": "4 5"}, errors.InvalidHeader),
    ({"Type": "short"}, errors.InvalidHeader),
    ({"space_origin": "(1,2)"}, errors.InvalidHeader),
    ({"spacings": "1 1 1"}, errors.InvalidHeader),
    *[({"encoding": name}, errors.UnsupportedCompression) for name in ("bzip2", "bz2", "ascii", "text", "hex")],
    *[({"dimension": n}, errors.UnsupportedDimensions) for n in ("16", "2", "-3", "0")],
    ({"kinds": "RGB-color domain domain"}, errors.UnsupportedDimensions),
    ({"sizes": "4 0 6"}, errors.UnsupportedDimensions),
    ({"sizes": "4 -5 6"}, errors.UnsupportedDimensions),
    ({"sizes": "20 6 1"}, errors.UnsupportedDimensions),
    ({"sizes": "99999999999999999999 5 6"}, errors.VolumeTooLarge),
    ({"type": "block"}, errors.UnsupportedVoxelType),
    ({"type": "long double"}, errors.UnsupportedVoxelType),
    *[({name: None}, errors.MissingOrientation) for name in ("space", "space_directions", "space_origin")],
    *[({"space": name}, errors.MissingOrientation) for name in ("3D-right-handed", "scanner-xyz", "LPST")],
    ({"space_units": '"m" "m" "m"'}, errors.InvalidSpacing),
    ({"units": '"cm" "cm" "cm"'}, errors.InvalidSpacing),
    ({"space_directions": "(nan,0,0) (0,1,0) (0,0,1)"}, errors.InvalidAffine),
    ({"space_directions": "(1e308,1e308,0) (0,1,0) (0,0,1)"}, errors.InvalidAffine),
    ({"space_directions": "(1,0,0) (0.1,1,0) (0,0,1)"}, errors.InvalidAffine),
    ({"space_directions": "(1,0,0) (1,0,0) (0,0,1)"}, errors.InvalidAffine),
    ({"space_directions": "(1,0,0) (0,1e-40,0) (0,0,1)"}, errors.InvalidSpacing),
    ({"sizes": "4 5 7"}, errors.PayloadTruncated),
    ({"sizes": "4 5 5"}, errors.PayloadTooLong),
]


@pytest.mark.parametrize(("change", "error"), REFUSED, ids=str)
def test_each_fault_is_refused_for_its_own_reason(
    change: dict[str, str | None], error: type[ScanError], nrrd: Nrrd, canary: str
) -> None:
    """Decoding and checking agree, and neither repeats the file."""
    for read in (reader.decode, reader.check):
        with pytest.raises(ScanError) as refusal:
            read(io.BytesIO(nrrd(**change)))
        assert type(refusal.value) is error
        assert canary not in refusal.value.detail


def test_gzip_voxels_are_counted_inflated(nrrd: Nrrd) -> None:
    """Cut, too short, too long and no gzip at all."""
    voxels = decode(nrrd()).array_CDHW[0].tobytes(order="F")
    packed = gzip.compress(voxels)

    assert decode(nrrd(packed, encoding="gz")).array_CDHW[0].tobytes(order="F") == voxels
    for payload, error in [
        (packed[:-1], errors.PayloadTruncated),
        (gzip.compress(voxels[:-1]), errors.PayloadTruncated),
        (gzip.compress(voxels + b"\0"), errors.PayloadTooLong),
        (voxels, errors.PayloadTruncated),
    ]:
        with pytest.raises(error):
            reader.check(io.BytesIO(nrrd(payload, encoding="gzip")))


def test_many_keys_cost_no_time(nrrd: Nrrd) -> None:
    """ITK takes minutes over 100,000 keys; here 65536 bytes are the most."""
    head, _, voxels = nrrd().partition(b"\n\n")
    with pytest.raises(errors.UnsafeHeader, match="65536 bytes"):
        reader.check(io.BytesIO(head + b"\n" + b"k:=v\n" * 100_000 + b"\n" + voxels))


@given(data=st.data())
def test_a_damaged_header_is_read_or_refused_never_a_crash(data: st.DataObject, nrrd: Nrrd, canary: str) -> None:
    """Whatever bytes stand in the header, the answer is a volume or a ScanError without the file's text."""
    content = bytearray(nrrd())
    end = content.index(b"\n\n")
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, end))
        content[position : position + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))

    outcome = volume_or_refusal(bytes(content))

    if isinstance(outcome, ScanError):
        assert canary not in outcome.detail
    else:
        assert np.isfinite(outcome.affine).all()


@pytest.mark.parametrize("name", ["heart_seg", "liver_seg", "spine_seg", "liver_spine_seg"])
def test_real_files_are_read_as_by_itk(name: str, dcmqi_ct: Path) -> None:
    """NRRD of 3D Slicer's own converter, gzip, three slices."""
    path = dcmqi_ct / f"{name}.nrrd"
    image = SimpleITK.ReadImage(path)

    volume = decode(path.read_bytes())

    np.testing.assert_array_equal(volume.array_CDHW[0], SimpleITK.GetArrayFromImage(image).T)
    np.testing.assert_allclose(volume.affine, affine_of(image), atol=1e-6)


def test_only_nrrd_is_recognised() -> None:
    """By its first four letters."""
    assert reader.recognise(b"NRRD0004\n")
    assert not reader.recognise(b"nrrd0004\n")
