import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st

from service.intake.decode import decode_scan
from service.result.nifti import (
    VoxelType,
    encode_confidence,
    encode_mask,
    map_header,
    to_codes,
    without_free_text,
)
from service.volume import Volume

Nifti = Callable[..., bytes]

OBLIQUE = np.array([[0.866, -0.75, 0, -9], [0.5, 1.299, 0, -20], [0, 0, 2, 30], [0, 0, 0, 1]])
PERMUTED = np.array([[0, 0, -1.5, 70], [-1, 0, 0, 31.5], [0, 2, 0, -12.25], [0, 0, 0, 1]])
MIRRORED = np.diag([-1.0, 1.5, 2, 1])

GEOMETRY = (
    *("dim", "pixdim", "xyzt_units", "dim_info", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "slice_code", "slice_start", "slice_end"),
)

INPUTS: dict[str, dict[str, Any]] = {
    "oblique": {"affine": OBLIQUE},
    "permuted and flipped": {"affine": PERMUTED},
    "mirrored": {"affine": MIRRORED},
    "big-endian": {"affine": OBLIQUE, "endianness": ">"},
    "NIfTI-2": {"affine": OBLIQUE, "version": 2},
    "NIfTI-2, big-endian": {"affine": PERMUTED, "version": 2, "endianness": ">"},
    "qform alone": {"affine": OBLIQUE, "sform_code": 0, "qform_code": 3},
    "sform alone": {"affine": OBLIQUE, "sform_code": 4, "qform_code": 0},
    "two orientations that differ": {"affine": OBLIQUE, "qoffset_x": -8, "sform_code": 2},
    "scaled": {"affine": OBLIQUE, "scl_slope": 2.5, "scl_inter": -1000},
    "behind an extension": {"affine": OBLIQUE, "vox_offset": 352},
    "micrometres": {"affine": OBLIQUE, "xyzt_units": 3, "dim_info": 57, "slice_code": 1, "slice_end": 5},
}

# SimpleITK 2.5.7 knows no NIfTI-2.
READ_BY_SIMPLEITK = [name for name, options in INPUTS.items() if "version" not in options]


def load(path: Path) -> Any:  # noqa: ANN401 - nibabel's own
    """Return the image that nibabel reads."""
    return nib.load(path)


@pytest.fixture(params=[*INPUTS.values()], ids=[*INPUTS])
def scan(request: pytest.FixtureRequest, nifti: Nifti, tmp_path: Path) -> Path:
    """Return a scan of 4 x 5 x 6 voxels in each geometry."""
    path = tmp_path / "scan.nii"
    path.write_bytes(nifti(**request.param))
    return path


@pytest.fixture
def volume(nifti: Nifti, tmp_path: Path) -> Volume:
    """Return an oblique scan of 4 x 5 x 6 voxels."""
    path = tmp_path / "scan.nii"
    path.write_bytes(nifti())
    return decode_scan(path)


@pytest.fixture(name="mask", scope="module")
def mask_() -> npt.NDArray[np.uint8]:
    """Return an asymmetric mask of the labels 0, 1 and 2."""
    return (np.arange(120) * 7 % 11 % 3).reshape(4, 5, 6).astype(np.uint8)


@pytest.fixture(name="confidence", scope="module")
def confidence_() -> npt.NDArray[np.float32]:
    """Return confidences of three classes from 1/3 to 1."""
    return np.linspace(1 / 3, 1, 120, dtype=np.float32).reshape(4, 5, 6)


def saved(content: bytes, folder: Path) -> Path:
    """Write a result beside the scan."""
    path = folder / "result.nii.gz"
    path.write_bytes(content)
    return path


def header_fields(path: Path) -> dict[str, Any]:
    """Return the fields of a file's header, read without checks or repairs."""
    content = path.read_bytes()
    content = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    header_type: type[nib.Nifti1Header]
    header_type, size = (
        (nib.Nifti2Header, 540)
        if 540 in (content[0] + 256 * content[1], content[3] + 256 * content[2])
        else (nib.Nifti1Header, 348)
    )
    header = header_type(content[:size], check=False)
    return {name: np.asarray(header[name]).tolist() for name in header.structarr.dtype.names}


def same_place(image: SimpleITK.Image, other: SimpleITK.Image) -> None:
    """Compare the grids of two SimpleITK images to the last bit."""
    assert image.GetSize() == other.GetSize()
    assert image.GetSpacing() == other.GetSpacing()
    assert image.GetOrigin() == other.GetOrigin()
    assert image.GetDirection() == other.GetDirection()


def test_results_repeat_the_geometry_of_the_scan(
    scan: Path, mask: npt.NDArray[np.uint8], confidence: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    """Dimensions, codes, quaternion and matrix equal the scan's to the last bit, in the scan's version of NIfTI."""
    header, expected = decode_scan(scan).header, header_fields(scan)

    for content in (encode_mask(mask, header), encode_confidence(confidence, header, 3)):
        actual = header_fields(saved(content, tmp_path))
        assert actual["sizeof_hdr"] == expected["sizeof_hdr"]
        assert {name: actual[name] for name in GEOMETRY} == {name: expected[name] for name in GEOMETRY}


def test_nibabel_reads_results_in_the_scans_place(
    scan: Path, mask: npt.NDArray[np.uint8], confidence: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    """The affine that nibabel computes is bit-identical, in the scan's own unit, and the voxels are the given ones."""
    volume, expected = decode_scan(scan), load(scan)

    image = load(saved(encode_mask(mask, volume.header), tmp_path))
    assert image.affine.tobytes() == expected.affine.tobytes()
    if image.header.get_xyzt_units()[0] == "micron":
        np.testing.assert_allclose(image.affine[:3], 1000 * volume.affine[:3], rtol=1e-12)
    else:
        assert image.affine.tobytes() == volume.affine.tobytes()
    assert image.get_data_dtype() == np.uint8
    assert np.array_equal(image.get_fdata(), mask)

    image = load(saved(encode_confidence(confidence, volume.header, 3), tmp_path))
    assert image.affine.tobytes() == expected.affine.tobytes()
    np.testing.assert_allclose(image.get_fdata(), confidence, rtol=0, atol=1 / 255)


@pytest.mark.parametrize("scan", [INPUTS[name] for name in READ_BY_SIMPLEITK], indirect=True, ids=READ_BY_SIMPLEITK)
def test_simpleitk_reads_results_in_the_scans_place(
    scan: Path, mask: npt.NDArray[np.uint8], confidence: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    """An independent reader gets size, spacing, origin and direction of the scan, and the same voxels."""
    volume, expected = decode_scan(scan), SimpleITK.ReadImage(scan)

    image = SimpleITK.ReadImage(saved(encode_mask(mask, volume.header), tmp_path))
    same_place(image, expected)
    assert image.GetPixelID() == SimpleITK.sitkUInt8
    assert np.array_equal(SimpleITK.GetArrayFromImage(image).T, mask)

    image = SimpleITK.ReadImage(saved(encode_confidence(confidence, volume.header, 3), tmp_path))
    same_place(image, expected)
    np.testing.assert_allclose(SimpleITK.GetArrayFromImage(image).T, confidence, rtol=0, atol=1 / 255)


def test_real_scans_keep_their_geometry(spinal_cord: Path, tmp_path: Path) -> None:
    """Nibabel and SimpleITK see the mask of each real spinal cord volume at the place of the volume."""
    paths = sorted(spinal_cord.rglob("*.nii.gz"))
    assert len(paths) >= 10

    for path in paths:
        volume = decode_scan(path)
        result = saved(encode_mask(np.ones(volume.shape, np.uint8), volume.header), tmp_path)
        assert load(result).affine.tobytes() == load(path).affine.tobytes()
        same_place(SimpleITK.ReadImage(result), SimpleITK.ReadImage(path))


def test_a_mask_is_a_label_image(volume: Volume, mask: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    """The intent code is 1002 (NIFTI_INTENT_LABEL), and the display range ends at the largest label."""
    fields = header_fields(saved(encode_mask(mask, volume.header), tmp_path))

    assert fields["intent_code"] == 1002
    assert fields["intent_name"] == b""
    assert (fields["datatype"], fields["bitpix"]) == (2, 8)
    assert (fields["scl_slope"], fields["scl_inter"]) == (1, 0)
    assert (fields["cal_min"], fields["cal_max"]) == (0, 2)


def test_a_confidence_map_is_an_estimate(volume: Volume, confidence: npt.NDArray[np.float32], tmp_path: Path) -> None:
    """The intent code is 1001 (NIFTI_INTENT_ESTIMATE), with 8 bits, a slope just below 1/255 and a display range of 0 to 1."""
    fields = header_fields(saved(encode_confidence(confidence, volume.header, 3), tmp_path))

    assert fields["intent_code"] == 1001
    assert (fields["datatype"], fields["bitpix"]) == (2, 8)
    assert 0 < 1 / 255 - float(fields["scl_slope"]) < 1e-9
    assert fields["scl_inter"] == 0
    assert (fields["cal_min"], fields["cal_max"]) == (0, 1)


def test_an_empty_mask_is_encoded(volume: Volume, tmp_path: Path) -> None:
    """A scan without structures has a mask of zeros."""
    image = load(saved(encode_mask(np.zeros((4, 5, 6), np.uint8), volume.header), tmp_path))

    assert not image.get_fdata().any()


@pytest.mark.parametrize("classes", range(2, 17))
def test_confidence_stays_between_1_over_c_and_1(classes: int, volume: Volume, tmp_path: Path) -> None:
    """Both readers get values in [1/C, 1], within 1/255 of those given, for 2 to 16 classes."""
    given = np.linspace(1 / classes, 1, 120, dtype=np.float32).reshape(4, 5, 6)

    path = saved(encode_confidence(given, volume.header, classes), tmp_path)

    for actual in (load(path).get_fdata(), SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)).T):
        assert actual.min() >= 1 / classes
        assert actual.max() <= 1
        np.testing.assert_allclose(actual, given, rtol=0, atol=1 / 255)


@given(value=st.floats(float(np.float32(1 / 3)), 1, width=32), classes=st.integers(3, 16))
def test_any_confidence_is_kept_within_1_over_255(value: float, classes: int) -> None:
    """A value between 1/C and 1 moves by at most one step and stays in the range."""
    header = nib.Nifti1Header()
    header.set_data_shape((1, 1, 1))
    content = encode_confidence(np.full((1, 1, 1), value, np.float32), header.binaryblock, classes)

    actual = float(nib.Nifti1Image.from_bytes(gzip.decompress(content)).get_fdata()[0, 0, 0])

    assert 1 / classes <= actual <= 1
    assert abs(actual - value) <= 1 / 255


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_free_text_of_the_scan_is_left_out(
    version: int, endianness: str, nifti: Nifti, canary: str, tmp_path: Path
) -> None:
    """No text field of the scan's header, which may name a patient, is repeated in a result."""
    path = tmp_path / "scan.nii"
    path.write_bytes(nifti(version=version, endianness=endianness))
    header, ones = decode_scan(path).header, np.ones((4, 5, 6))
    assert canary.encode() in header

    for content in (encode_mask(ones.astype(np.uint8), header), encode_confidence(ones.astype(np.float32), header, 3)):
        unpacked = gzip.decompress(content)
        assert canary.encode() not in unpacked
        assert b"research use only" in unpacked


def test_the_same_case_gives_the_same_bytes(
    volume: Volume,
    mask: npt.NDArray[np.uint8],
    confidence: npt.NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The files depend on neither the time nor the memory layout of the arrays."""
    first = (
        encode_mask(mask, volume.header),
        encode_confidence(confidence, volume.header, 3),
    )

    monkeypatch.setattr("time.time", lambda: 4e9)
    second = (
        encode_mask(np.asfortranarray(mask), volume.header),
        encode_confidence(np.asfortranarray(confidence), volume.header, 3),
    )

    assert first == second


@pytest.mark.parametrize(("voxel_type", "step"), [("uint8", 1 / 255), ("uint16", 1 / 65535)])
@pytest.mark.parametrize("classes", [2, 3, 7, 16])
def test_codes_stay_in_range_in_both_readers(
    voxel_type: VoxelType, step: float, classes: int, volume: Volume, tmp_path: Path
) -> None:
    """With either slope nibabel and SimpleITK read values in [1/C, 1], within one step of those given."""
    given = np.linspace(1 / classes, 1, 120, dtype=np.float32).reshape(4, 5, 6)
    codes = to_codes(given, voxel_type, least=1 / classes)

    path = saved(gzip.compress(map_header(volume.header, voxel_type) + codes.tobytes(order="F")), tmp_path)

    for actual in (load(path).get_fdata(), SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)).T):
        assert actual.min() >= 1 / classes
        assert actual.max() <= 1
        np.testing.assert_allclose(actual, given, rtol=0, atol=step)


def test_floats_are_kept_as_they_are() -> None:
    """float32 values are neither rounded nor clipped."""
    given = np.array([0.1, 1 + 1e-7], np.float32)

    assert to_codes(given, "float32", least=0.5).tobytes() == given.tobytes()


def test_several_volumes_stand_along_the_fourth_axis(volume: Volume, tmp_path: Path) -> None:
    """The file has four dimensions, the scan's affine and one byte for each voxel of each volume."""
    array = np.arange(240).reshape(4, 5, 6, 2).astype(np.uint8)

    image = load(saved(gzip.compress(map_header(volume.header, "uint8", 2) + array.tobytes(order="F")), tmp_path))

    assert image.shape == (4, 5, 6, 2)
    assert image.affine.tobytes() == volume.affine.tobytes()
    assert np.array_equal(image.dataobj.get_unscaled(), array)


def test_a_header_without_free_text_keeps_its_geometry(scan: Path, canary: str) -> None:
    """Only the text is removed: results with this header are the same."""
    header = decode_scan(scan).header

    actual = without_free_text(header)

    assert len(actual) == len(header)
    assert canary.encode() not in actual
    mask = np.ones((4, 5, 6), np.uint8)
    assert encode_mask(mask, actual) == encode_mask(mask, header)
