import io
import zlib
from collections.abc import Callable

import numpy as np
import pytest

from service import errors
from service.errors import ScanError
from service.intake.formats import metaimage as reader
from service.volume import Volume
from tests.service.intake.formats.contract import TextHeaderContract

Mha = Callable[..., bytes]


def decode(content: bytes) -> Volume:
    """Return the volume of a file's content."""
    return reader.decode(io.BytesIO(content))


class TestMetaImage(TextHeaderContract):
    """MetaImage is read as every text format is."""

    reader = reader
    suffix = ".mha"

    @pytest.fixture
    def sample(self, mha: Mha) -> bytes:
        """Return the phantom as MetaImage."""
        return mha()


@pytest.mark.parametrize("name", ["BinaryDataByteOrderMSB", "ElementByteOrderMSB"])
def test_big_endian_voxels_are_read(name: str, mha: Mha) -> None:
    """Both names of the field are understood, and the voxels become native numbers."""
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
    """A scan converted from NIfTI keeps NIfTI's fields, e.g. `srow_x` and `dim[0]`, which are ignored."""
    np.testing.assert_array_equal(decode(mha(srow_x="1 0 0 1", **{"dim[0]": "3"})).affine, decode(mha()).affine)


FOURTH = {
    "NDims": "4",
    "DimSize": "4 5 6 1",
    "ElementSpacing": "1 1.5 2 1",
    "Offset": "9 20 30 0",
    "TransformMatrix": "-0.866025 -0.5 0 0 0.5 -0.866025 0 0 0 0 1 0 0 0 0 1",
    "CenterOfRotation": "0 0 0 0",
}


def test_a_fourth_axis_of_one_voxel_is_dropped(mha: Mha) -> None:
    """Voxels and place are those of three axes; ITK writes such files for one time point."""
    volume, expected = decode(mha(**FOURTH)), decode(mha())

    np.testing.assert_array_equal(volume.array_CDHW, expected.array_CDHW)
    np.testing.assert_array_equal(volume.affine, expected.affine)


def test_a_fourth_axis_that_mixes_with_space_is_refused(mha: Mha) -> None:
    """Where the voxels lie would depend on the time."""
    mixed = FOURTH["TransformMatrix"].split()
    for place in (3, 12):
        matrix = [*mixed[:place], "0.1", *mixed[place + 1 :]]
        with pytest.raises(errors.InvalidAffine, match="mixes"):
            decode(mha(**FOURTH | {"TransformMatrix": " ".join(matrix)}))


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
    *[({"NDims": n}, errors.UnsupportedDimensions) for n in ("-3", "2", "8", "9223372036854775807")],
    ({"DimSize": "4 -5 6"}, errors.UnsupportedDimensions),
    ({"DimSize": "20 6 1"}, errors.UnsupportedDimensions),
    ({"DimSize": "4294967297 5 6"}, errors.VolumeTooLarge),
    ({"NDims": "4"}, errors.InvalidHeader),
    ({"NDims": "4", "DimSize": "4 5 3 2"}, errors.UnsupportedDimensions),
    ({"ElementSpacing": "1 1 1000"}, errors.InvalidSpacing),
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
    """Decoding and checking raise the same error, which repeats nothing of the file."""
    for read in (reader.decode, reader.check):
        with pytest.raises(ScanError) as refusal:
            read(io.BytesIO(mha(**change)))
        assert type(refusal.value) is error
        assert canary not in refusal.value.detail


@pytest.mark.parametrize("name", [b"ElementDataFile = LOCAL", b"NDims = 3", b"DimSize = 4 5 6"])
def test_a_name_without_a_value_is_refused(name: bytes, mha: Mha) -> None:
    """A line with only the name of a required field is refused."""
    with pytest.raises(ScanError):
        reader.check(io.BytesIO(mha().replace(name, name.split()[0])))


def test_zlib_voxels_are_counted_inflated(mha: Mha) -> None:
    """A stream that is cut, too short, too long or followed by other bytes is refused: no uninitialised memory is returned."""
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


@pytest.mark.parametrize("start", [b"ObjectType = Image\n", b"NDims = 3", b"Comment: x", b" ObjectType=Image"])
def test_the_first_field_is_recognised(start: bytes) -> None:
    """MetaImage has no magic number; its headers begin with one of a few fields."""
    assert reader.recognise(start)
    assert not reader.recognise(b"x" + start)
