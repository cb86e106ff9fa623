import gzip
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from service import errors
from service.errors import ScanError
from service.intake.formats import nrrd as reader
from service.volume import Volume
from tests.service.intake.formats.contract import TextHeaderContract, affine_of

Nrrd = Callable[..., bytes]


def decode(content: bytes) -> Volume:
    """Return the volume of a file's content."""
    return reader.decode(io.BytesIO(content))


class TestNrrd(TextHeaderContract):
    """NRRD is read as every text format is."""

    reader = reader
    suffix = ".nrrd"

    @pytest.fixture
    def sample(self, nrrd: Nrrd) -> bytes:
        """Return the phantom as NRRD."""
        return nrrd()


def test_big_endian_voxels_are_read(nrrd: Nrrd) -> None:
    """They become native numbers."""
    little, big = decode(nrrd()), nrrd(decode(nrrd()).array_CDHW[0].astype(">i2").tobytes(order="F"), endian="big")

    np.testing.assert_array_equal(decode(big).array_CDHW, little.array_CDHW)
    assert decode(big).array_CDHW.dtype.isnative


@pytest.mark.parametrize(
    ("space", "signs"),
    [("LPS", [-1, -1, 1]), ("right-anterior-superior", [1, 1, 1]), ("RAS", [1, 1, 1]), ("LAS", [-1, 1, 1])],
)
def test_spaces_differ_in_signs(space: str, signs: list[int], nrrd: Nrrd) -> None:
    """The same numbers mean different places in RAS, LAS and LPS."""
    volume = decode(nrrd(space=space, space_directions="(1,0,0) (0,2,0) (0,0,3)", space_origin="(10,20,30)"))

    np.testing.assert_array_equal(volume.affine[:3, 3], np.array([10, 20, 30]) * signs)
    np.testing.assert_array_equal(np.diag(volume.affine)[:3], np.array([1, 2, 3]) * signs)


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
    """Fields that other programs add to a volume in millimetres, and names in capitals, do not matter."""
    np.testing.assert_array_equal(decode(nrrd(**change)).array_CDHW, decode(nrrd()).array_CDHW)


@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize("kinds", ["list", "???", None])
def test_an_axis_of_one_voxel_outside_space_is_dropped(at: int, kinds: str | None, nrrd: Nrrd) -> None:
    """Wherever it stands among the axes, voxels and place are those of three axes."""
    directions = ["(-0.866,-0.5,0)", "(0.75,-1.299,0)", "(0,0,2)"]
    sizes, three = ["4", "5", "6"], ["domain"] * 3
    fields = {
        "dimension": "4",
        "sizes": " ".join([*sizes[:at], "1", *sizes[at:]]),
        "space_directions": " ".join([*directions[:at], "none", *directions[at:]]),
        "kinds": kinds and " ".join([*three[:at], kinds, *three[at:]]),
    }

    volume, expected = decode(nrrd(**fields)), decode(nrrd())

    np.testing.assert_array_equal(volume.array_CDHW, expected.array_CDHW)
    np.testing.assert_array_equal(volume.affine, expected.affine)


IN_SPACE = "(1,0,0) (0,1,0) (0,0,1)"

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
    ({"dimension": "4"}, errors.InvalidHeader),
    (
        {"dimension": "4", "sizes": "2 4 5 3", "space_directions": f"none {IN_SPACE}", "kinds": None},
        errors.UnsupportedDimensions,
    ),
    ({"space_directions": "none (0,1,0) (0,0,1)"}, errors.UnsupportedDimensions),
    ({"space_directions": f"{IN_SPACE} none"}, errors.InvalidHeader),
    ({"space_directions": "(1,0,0) (0,1,0) nowhere"}, errors.InvalidHeader),
    ({"space_directions": "(1,0,0) (0,1,0) (0,0,1000)"}, errors.InvalidSpacing),
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
    """Decoding and checking raise the same error, which repeats nothing of the file."""
    for read in (reader.decode, reader.check):
        with pytest.raises(ScanError) as refusal:
            read(io.BytesIO(nrrd(**change)))
        assert type(refusal.value) is error
        assert canary not in refusal.value.detail


def test_gzip_voxels_are_counted_inflated(nrrd: Nrrd) -> None:
    """A stream that is cut, too short, too long or not gzip at all is refused."""
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
    """ITK takes minutes for 100,000 keys; this reader stops after 65536 bytes."""
    head, _, voxels = nrrd().partition(b"\n\n")
    with pytest.raises(errors.UnsafeHeader, match="65536 bytes"):
        reader.check(io.BytesIO(head + b"\n" + b"k:=v\n" * 100_000 + b"\n" + voxels))


@pytest.mark.parametrize("name", ["heart_seg", "liver_seg", "spine_seg", "liver_spine_seg"])
def test_real_files_are_read_as_by_itk(name: str, dcmqi_ct: Path) -> None:
    """Files of 3D Slicer's own converter, gzipped, have ITK's voxels and place."""
    path = dcmqi_ct / f"{name}.nrrd"
    image = SimpleITK.ReadImage(path)

    volume = decode(path.read_bytes())

    np.testing.assert_array_equal(volume.array_CDHW[0], SimpleITK.GetArrayFromImage(image).T)
    np.testing.assert_allclose(volume.affine, affine_of(image), atol=1e-6)


def test_only_nrrd_is_recognised() -> None:
    """NRRD is recognised by its first four letters."""
    assert reader.recognise(b"NRRD0004\n")
    assert not reader.recognise(b"nrrd0004\n")
