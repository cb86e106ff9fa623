import io
import zlib
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
from service.intake.formats import metaimage as reader
from service.intake.formats.geometry import lps_to_ras
from service.volume import Volume

Mha = Callable[..., bytes]

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


@pytest.mark.parametrize("compress", [False, True], ids=["raw", "zlib"])
@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_what_itk_writes_is_read_as_itk_reads_it(direction: np.ndarray, compress: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a parameter of the test
    """Voxels and place of flipped, permuted and oblique volumes are those of the image that SimpleITK wrote."""
    array = np.random.default_rng(1).normal(size=(5, 6, 7)).astype(np.float32)
    image = write_with_itk(tmp_path / "a.mha", array, direction, compress=compress)

    volume = decode((tmp_path / "a.mha").read_bytes())

    np.testing.assert_array_equal(volume.array_CDHW[0], array)
    np.testing.assert_allclose(volume.affine, affine_of(image), atol=1e-6)


@pytest.mark.parametrize("voxel_type", ITK_TYPES)
def test_every_voxel_type_of_itk_is_read(voxel_type: str, tmp_path: Path) -> None:
    """Integers of 8 to 64 bits and both floats keep type and value."""
    array = (np.arange(60).reshape(3, 4, 5) * 2 - 60).astype(voxel_type)
    write_with_itk(tmp_path / "a.mha", array, np.eye(3), compress=False)

    volume = decode((tmp_path / "a.mha").read_bytes())

    assert volume.array_CDHW.dtype == np.dtype(voxel_type)
    np.testing.assert_array_equal(volume.array_CDHW[0], array)


@pytest.mark.parametrize("name", ["BinaryDataByteOrderMSB", "ElementByteOrderMSB"])
def test_big_endian_voxels_are_read(name: str, mha: Mha) -> None:
    """Under either name of the field, as native numbers."""
    little = decode(mha())
    swapped = little.array_CDHW[0].astype(">i2").tobytes(order="F")

    big = decode(mha(swapped, **{"BinaryDataByteOrderMSB": None, name: "True"}))

    np.testing.assert_array_equal(big.array_CDHW, little.array_CDHW)
    assert big.array_CDHW.dtype.isnative


@pytest.mark.parametrize(("matrix", "offset"), [("Rotation", "Position"), ("Orientation", "Origin")])
def test_synonyms_mean_the_same(matrix: str, offset: str, mha: Mha) -> None:
    """MetaIO has three names for matrix and offset; a colon may stand for the equals sign."""
    content = mha(TransformMatrix=None, Offset=None, **{matrix: "0 1 0 0 0 1 1 0 0", offset: "1 2 3"})
    expected = decode(mha(TransformMatrix="0 1 0 0 0 1 1 0 0", Offset="1 2 3")).affine

    np.testing.assert_array_equal(decode(content).affine, expected)
    np.testing.assert_array_equal(decode(content.replace(b"NDims =", b"NDims :")).affine, expected)


def test_the_matrix_has_the_last_word(mha: Mha) -> None:
    """AnatomicalOrientation and CenterOfRotation change nothing, as in ITK."""
    expected = decode(mha()).affine

    np.testing.assert_array_equal(decode(mha(AnatomicalOrientation="LPS", CenterOfRotation="9 9 9")).affine, expected)
    np.testing.assert_array_equal(decode(mha(AnatomicalOrientation=None, CenterOfRotation=None)).affine, expected)


def test_what_itk_copies_from_another_format_changes_nothing(mha: Mha) -> None:
    """A scan converted from NIfTI carries its fields along, `srow_x` and `dim[0]` among them."""
    np.testing.assert_array_equal(decode(mha(srow_x="1 0 0 1", **{"dim[0]": "3"})).affine, decode(mha()).affine)


REFUSED = [
    *[
        ({"ElementDataFile": name}, errors.UnsafeHeader)
        for name in ("a.raw", "/etc/passwd", "LIST", "x%03d 1 1 1", "local")
    ],
    ({"HeaderSize": "-1"}, errors.UnsafeHeader),
    ({"ElementToIntensityFunctionSlope": "2"}, errors.UnsafeHeader),
    ({"elementdatafile": "/etc/passwd"}, errors.UnsafeHeader),
    ({"ObjectType": "Tube"}, errors.InvalidHeader),
    ({"ObjectType": None}, errors.InvalidHeader),
    ({"BinaryData": "False"}, errors.InvalidHeader),
    ({"CompressedData": "perhaps"}, errors.InvalidHeader),
    ({"NDims": None}, errors.InvalidHeader),
    ({"NDims": "3 3"}, errors.InvalidHeader),
    ({"DimSize": "4 5"}, errors.InvalidHeader),
    ({"ElementType": None}, errors.InvalidHeader),
    ({"ElementSpacing": None}, errors.InvalidHeader),
    ({"ElementSpacing": "1 x 2"}, errors.InvalidHeader),
    ({"Origin": "1 2 3"}, errors.InvalidHeader),
    *[({"NDims": n}, errors.UnsupportedDimensions) for n in ("-3", "2", "4", "9223372036854775807")],
    ({"DimSize": "4 -5 6"}, errors.UnsupportedDimensions),
    ({"DimSize": "20 6 1"}, errors.UnsupportedDimensions),
    ({"DimSize": "4294967297 5 6"}, errors.VolumeTooLarge),
    *[({"ElementType": name}, errors.UnsupportedVoxelType) for name in ("MET_OTHER", "MET_SHORT_ARRAY", "MET_STRING")],
    ({"ElementNumberOfChannels": "3"}, errors.UnsupportedVoxelType),
    *[({name: None}, errors.MissingOrientation) for name in ("TransformMatrix", "Offset")],
    ({"DistanceUnits": "um"}, errors.InvalidSpacing),
    *[({"ElementSpacing": f"1 {mm} 2"}, errors.InvalidSpacing) for mm in ("0", "-1", "nan", "inf", "1e-30")],
    ({"ElementSpacing": "1 1e308 2"}, errors.InvalidAffine),
    ({"TransformMatrix": "1e308 0 0 0 1 0 0 0 1"}, errors.InvalidAffine),
    ({"TransformMatrix": "2 0 0 0 1 0 0 0 1"}, errors.InvalidAffine),
    ({"TransformMatrix": "0 0 0 0 1 0 0 0 1"}, errors.InvalidAffine),
    ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, errors.InvalidAffine),
    ({"TransformMatrix": "nan 0 0 0 1 0 0 0 1"}, errors.InvalidAffine),
    ({"Offset": "nan 0 0"}, errors.InvalidAffine),
    ({"DimSize": "4 5 7"}, errors.PayloadTruncated),
    ({"DimSize": "4 5 5"}, errors.PayloadTooLong),
    ({"CompressedData": "True"}, errors.PayloadTruncated),
]


@pytest.mark.parametrize(("change", "error"), REFUSED, ids=str)
def test_each_fault_is_refused_for_its_own_reason(
    change: dict[str, str | None], error: type[ScanError], mha: Mha, canary: str
) -> None:
    """Decoding and checking agree, and neither repeats the file."""
    for read in (reader.decode, reader.check):
        with pytest.raises(ScanError) as refusal:
            read(io.BytesIO(mha(**change)))
        assert type(refusal.value) is error
        assert canary not in refusal.value.detail


@pytest.mark.parametrize("name", [b"ElementDataFile = LOCAL", b"NDims = 3", b"DimSize = 4 5 6"])
def test_a_name_without_a_value_is_refused(name: bytes, mha: Mha) -> None:
    """A line of a field's name alone says nothing."""
    with pytest.raises(ScanError):
        reader.check(io.BytesIO(mha().replace(name, name.split()[0])))


def test_zlib_voxels_are_counted_inflated(mha: Mha) -> None:
    """Cut, too short, too long, or with something behind them: never what was in memory before."""
    voxels = decode(mha()).array_CDHW[0].tobytes(order="F")
    packed = zlib.compress(voxels)

    for payload, error in [
        (packed[:-1], errors.PayloadTruncated),
        (packed[: len(packed) // 2], errors.PayloadTruncated),
        (b"", errors.PayloadTruncated),
        (zlib.compress(voxels[:-1]), errors.PayloadTruncated),
        (zlib.compress(voxels + b"\0"), errors.PayloadTooLong),
        (packed + b"\0", errors.PayloadTooLong),
    ]:
        with pytest.raises(error):
            reader.check(io.BytesIO(mha(payload, CompressedData="True")))


@given(data=st.data())
def test_a_damaged_header_is_read_or_refused_never_a_crash(data: st.DataObject, mha: Mha, canary: str) -> None:
    """Whatever bytes stand in the header, the answer is a volume or a ScanError without the file's text."""
    content = bytearray(mha())
    end = content.index(b"LOCAL")
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, end))
        content[position : position + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))

    outcome = volume_or_refusal(bytes(content))

    if isinstance(outcome, ScanError):
        assert canary not in outcome.detail
    else:
        assert np.isfinite(outcome.affine).all()


@pytest.mark.parametrize("start", [b"ObjectType = Image\n", b"NDims = 3", b"Comment: x", b" ObjectType=Image"])
def test_the_first_field_is_recognised(start: bytes) -> None:
    """MetaImage has no magic number: headers begin with one of few fields."""
    assert reader.recognise(start)
    assert not reader.recognise(b"x" + start)
