import copy
import hashlib
import random
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from service import errors
from service.errors import ScanError
from service.intake.dicom.instance import Slice, read_instance
from tests.dicom_checks import program

Slices = Callable[..., list[Dataset]]
Save = Callable[[Dataset], bytes]


@pytest.fixture
def image(slices_of: Slices) -> Dataset:
    """Return the third CT image of the phantom."""
    return slices_of()[2]


def read(content: bytes) -> Slice:
    """Return the one slice of a file."""
    (image,) = read_instance(content, with_voxels=True)
    return image


def test_a_slice_has_the_values_of_its_tags(image: Dataset, dicom_file: Save) -> None:
    """Position, directions and spacing are as written, voxels as pydicom decodes them."""
    image_slice = read(dicom_file(image))

    assert (image_slice.series, image_slice.instance, image_slice.frame, image_slice.frame_of_reference) == (
        "1.2.5",
        "1.2.3.3",
        0,
        "1.2.6",
    )
    assert (image_slice.localizer, image_slice.inverted, image_slice.shape, image_slice.rescale) == (
        False,
        False,
        (5, 4),
        (1.0, 0.0),
    )
    np.testing.assert_allclose(image_slice.position_mm, image.ImagePositionPatient)
    np.testing.assert_allclose(image_slice.orientation.ravel(), image.ImageOrientationPatient, atol=1e-6)
    np.testing.assert_allclose(image_slice.spacing_mm, [1.5, 1], atol=1e-3)
    assert image_slice.digest == hashlib.sha256(image.PixelData).digest()
    np.testing.assert_array_equal(image_slice.intensities(), image.pixel_array)
    assert image_slice.intensities().dtype == np.float32


def test_slope_and_intercept_are_applied(image: Dataset, dicom_file: Save) -> None:
    """Intensities are slope * stored + intercept, e.g. Hounsfield units."""
    image.RescaleSlope, image.RescaleIntercept = "0.5", "-1024"

    np.testing.assert_array_equal(read(dicom_file(image)).intensities(), image.pixel_array * 0.5 - 1024)


def test_monochrome1_is_not_inverted(image: Dataset, dicom_file: Save) -> None:
    """It is about the display (PS3.3 C.7.6.3.1.2) and does not change the intensities."""
    image.PhotometricInterpretation = "MONOCHROME1"
    image_slice = read(dicom_file(image))

    assert image_slice.inverted
    np.testing.assert_array_equal(image_slice.intensities(), image.pixel_array)


def test_checking_keeps_no_voxels(image: Dataset, dicom_file: Save) -> None:
    """A series of a thousand slices is checked without holding all voxels in memory."""
    (image_slice,) = read_instance(dicom_file(image), with_voxels=False)
    assert image_slice.dataset is None


def slices_or_refusal(content: bytes) -> list[Slice] | ScanError:
    """Read a file; any exception but a ScanError is passed on."""
    try:
        return read_instance(content, with_voxels=True)
    except ScanError as refusal:
        return refusal


@pytest.mark.parametrize(
    "transfer_syntax",
    [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless],
    ids=lambda syntax: syntax.keyword,
)
def test_lossless_transfer_syntaxes_give_the_same_voxels(
    transfer_syntax: uid.UID, slices_of: Slices, dicom_file: Save
) -> None:
    """Voxels compressed by pydicom's encoders are decoded to the same values as uncompressed ones."""
    array = np.random.default_rng(3).integers(0, 4000, (64, 48, 2)).astype(np.uint16)
    image = slices_of(array)[1]
    if transfer_syntax.is_compressed:
        image.compress(transfer_syntax, generate_instance_uid=False)
    else:
        image.file_meta.TransferSyntaxUID = transfer_syntax

    np.testing.assert_array_equal(read(dicom_file(image)).intensities(), array[..., 1].T)


@pytest.mark.parametrize(("predictor", "syntax"), [("+e1", uid.JPEGLosslessSV1), ("+el", uid.JPEGLossless)])
def test_jpeg_lossless_of_dcmtk_is_read(
    predictor: str, syntax: uid.UID, slices_of: Slices, dicom_file: Save, tmp_path: Path
) -> None:
    """The encoding of older archives, written by DCMTK, is decoded by GDCM to the same voxels."""
    array = np.random.default_rng(4).integers(0, 4000, (64, 48, 2)).astype(np.uint16)
    (tmp_path / "native.dcm").write_bytes(dicom_file(slices_of(array)[1]))
    command = [program("dcmcjpeg", "dcmtk"), predictor, "+un", "native.dcm", "packed.dcm"]
    subprocess.run(command, check=True, cwd=tmp_path)
    content = (tmp_path / "packed.dcm").read_bytes()

    assert syntax.encode() in content
    np.testing.assert_array_equal(read(content).intensities(), array[..., 1].T)


@pytest.mark.parametrize(("process", "syntax"), [("+eb", uid.JPEGBaseline8Bit), ("+ee", uid.JPEGExtended12Bit)])
def test_lossy_jpeg_of_dcmtk_is_read(
    process: str, syntax: uid.UID, slices_of: Slices, dicom_file: Save, tmp_path: Path
) -> None:
    """Baseline and extended are decoded by GDCM, to about the voxels that were encoded."""
    i, j, k = np.indices((64, 48, 2))
    array = (60 + i + j + 20 * k).astype(np.uint8)
    (tmp_path / "native.dcm").write_bytes(dicom_file(slices_of(array)[1]))
    command = [program("dcmcjpeg", "dcmtk"), process, "+un", "native.dcm", "packed.dcm"]
    subprocess.run(command, check=True, cwd=tmp_path)
    content = (tmp_path / "packed.dcm").read_bytes()

    assert syntax.encode() in content
    np.testing.assert_allclose(read(content).intensities(), array[..., 1].T, atol=4)


def test_zeros_behind_the_voxels_are_padding(image: Dataset, dicom_file: Save) -> None:
    """Some archives pad the element, or the whole file, to a block's size; other bytes are a fault."""
    expected = image.pixel_array
    padded = dicom_file(image)
    image.add_new(0xFFFCFFFC, "OB", bytes(126))
    with_trailer = dicom_file(image)
    del image[0xFFFCFFFC]
    image.PixelData = image.PixelData + bytes(24)

    for content in (padded + bytes(512), with_trailer, dicom_file(image)):
        np.testing.assert_array_equal(read(content).intensities(), expected)


@pytest.mark.parametrize("without", [128, 132])
def test_a_file_without_its_preamble_is_read(without: int, image: Dataset, dicom_file: Save) -> None:
    """Some archives store files from the prefix, or from group 0002, on."""
    np.testing.assert_array_equal(read(dicom_file(image)[without:]).intensities(), image.pixel_array)


def test_a_mosaic_is_named(image: Dataset, dicom_file: Save) -> None:
    """Its tiles would be taken for one slice."""
    image.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    with pytest.raises(errors.UnsupportedDimensions, match="Siemens"):
        read_instance(dicom_file(image), with_voxels=False)


@pytest.mark.parametrize(
    ("group", "creator", "element"), [(0x19, "SIEMENS MR HEADER", 0x0C), (0x43, "GEMS_PARM_01", 0x39)]
)
def test_a_private_b_value_tells_acquisitions_apart(
    group: int, creator: str, element: int, image: Dataset, dicom_file: Save
) -> None:
    """Older scanners write no other."""
    before = read(dicom_file(image)).acquired
    image.private_block(group, creator, create=True).add_new(element, "IS", "800")

    after = read(dicom_file(image)).acquired

    (changed,) = [one for one, other in zip(after, before, strict=True) if one != other]
    assert changed == "800"


@pytest.mark.parametrize("length", [0xFFFFFFF0, 0x7FFFFFFF], ids=["4 GB", "2 GB"])
def test_a_name_longer_than_the_file_is_a_refusal(length: int, image: Dataset, dicom_file: Save) -> None:
    """A claimed length does not allocate memory."""
    content = dicom_file(image)
    at = content.index(b"\x10\x00\x10\x00PN")
    long = content[:at] + b"\x10\x00\x10\x00UT\0\0" + length.to_bytes(4, "little") + content[at + 8 :]
    tracemalloc.start()
    with pytest.raises(ScanError):
        read_instance(long, with_voxels=False)
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def test_big_endian_voxels_are_read(slices_of: Slices, dicom_file: Save) -> None:
    """The retired byte order still occurs in archives."""
    image = slices_of()[2]
    expected = image.pixel_array
    image["PixelData"].value = expected.astype(">i2").tobytes()
    image.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian

    np.testing.assert_array_equal(read(dicom_file(image)).intensities(), expected)


@pytest.mark.parametrize(
    ("transfer_syntax", "name"),
    [
        (uid.MPEG2MPML, r"MPEG2 Main Profile .* \(1\.2\.840\.10008\.1\.2\.4\.100\)"),
        (uid.UID("1.2.840.10008.1.2.4.94"), r"JPIP Referenced \("),
    ],
)
def test_other_transfer_syntaxes_are_named(
    transfer_syntax: uid.UID, name: str, image: Dataset, dicom_file: Save
) -> None:
    """By the standard's name and number, never by the file's text."""
    del image.PixelData
    image.file_meta.TransferSyntaxUID = transfer_syntax
    with pytest.raises(errors.UnsupportedTransferSyntax, match=name):
        read_instance(dicom_file(image), with_voxels=False)


def test_a_private_transfer_syntax_is_not_repeated(image: Dataset, dicom_file: Save) -> None:
    """The file's text may be anything."""
    content = dicom_file(image).replace(uid.ExplicitVRLittleEndian.encode() + b"\0", b"1.2.840.113619.5.2\0\0", 1)
    with pytest.raises(errors.UnsupportedTransferSyntax, match="that the standard does not list") as refusal:
        read_instance(content, with_voxels=False)
    assert "113619" not in refusal.value.detail


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless])
def test_a_damaged_stream_is_refused_when_it_is_decoded(syntax: uid.UID, slices_of: Slices, dicom_file: Save) -> None:
    """A stream of zeros and one of other dimensions are refused."""
    image = slices_of(np.ones((64, 64, 1), np.int16))[0]
    image.compress(syntax, generate_instance_uid=False)
    good = image.PixelData
    image.PixelData = good[:16] + bytes(len(good) - 16)
    damaged = read(dicom_file(image))
    image.PixelData, image.Rows = good, 65
    smaller = read(dicom_file(image))

    for bad in (damaged, smaller):
        with pytest.raises(errors.UndecodableVoxels):
            bad.intensities()


@pytest.mark.parametrize("sop_class", [uid.SegmentationStorage, uid.RTStructureSetStorage, uid.BasicTextSRStorage])
def test_other_objects_have_no_slices(sop_class: uid.UID, image: Dataset, dicom_file: Save) -> None:
    """Segmentations, structure sets and reports are skipped."""
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = sop_class
    assert read_instance(dicom_file(image), with_voxels=True) == []


def test_a_dicomdir_has_no_slices(image: Dataset, dicom_file: Save) -> None:
    """A DICOMDIR is skipped, since it refers to other files."""
    image.file_meta.MediaStorageSOPClassUID = uid.MediaStorageDirectoryStorage
    image.SOPClassUID = uid.MediaStorageDirectoryStorage
    assert read_instance(dicom_file(image), with_voxels=True) == []


REFUSED = [
    ({"ImagePositionPatient": None}, errors.MissingOrientation),
    ({"ImageOrientationPatient": None}, errors.MissingOrientation),
    ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, errors.InvalidAffine),
    ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, errors.InvalidAffine),
    ({"ImageOrientationPatient": [1e30, 0, 0, 0, 1, 0]}, errors.InvalidAffine),
    ({"ImagePositionPatient": [1e9, 0, 0]}, errors.InvalidAffine),
    ({"PixelSpacing": None}, errors.InvalidSpacing),
    ({"PixelSpacing": [0, 1]}, errors.InvalidSpacing),
    ({"PixelSpacing": [1, -1]}, errors.InvalidSpacing),
    ({"PhotometricInterpretation": "RGB"}, errors.UnsupportedVoxelType),
    ({"PhotometricInterpretation": "PALETTE COLOR"}, errors.UnsupportedVoxelType),
    ({"SamplesPerPixel": 3}, errors.UnsupportedVoxelType),
    ({"BitsAllocated": 1}, errors.UnsupportedVoxelType),
    ({"BitsAllocated": 64}, errors.UnsupportedVoxelType),
    ({"ModalityLUTSequence": Sequence([Dataset()])}, errors.UnsupportedVoxelType),
    ({"RescaleSlope": "0"}, errors.InvalidHeader),
    ({"Rows": 6}, errors.PayloadTruncated),
    ({"Rows": 4}, errors.PayloadTooLong),
    ({"NumberOfFrames": "2"}, errors.PayloadTruncated),
    ({"PixelData": None}, errors.PayloadTruncated),
    ({"Rows": None}, errors.InvalidHeader),
    ({"SeriesInstanceUID": None}, errors.InvalidHeader),
]


@pytest.mark.parametrize(("tags", "error"), REFUSED, ids=str)
def test_each_fault_is_refused_for_its_own_reason(
    tags: dict[str, Any], error: type[ScanError], image: Dataset, dicom_file: Save, canary: str
) -> None:
    """Headers are checked before any voxel is decoded, and messages repeat nothing of them."""
    for name, value in tags.items():
        if value is None:
            delattr(image, name)
        else:
            setattr(image, name, value)

    with pytest.raises(ScanError) as refusal:
        read_instance(dicom_file(image), with_voxels=False)

    assert type(refusal.value) is error
    assert canary not in refusal.value.detail


def test_numbers_that_are_none_are_refused(image: Dataset, dicom_file: Save) -> None:
    """A decimal string of NaN, which Python would accept, is refused."""
    image.ImagePositionPatient = ["1.25", "20", "34"]
    content = dicom_file(image).replace(b"1.25", b"nan ")
    with pytest.raises(errors.InvalidAffine):
        read_instance(content, with_voxels=False)


def test_directions_are_made_orthonormal(image: Dataset, dicom_file: Save) -> None:
    """Files round directions to as few as three digits; the grid is rectangular all the same."""
    image.ImageOrientationPatient = ["0.866", "-0.499", "0.03", "0.5", "0.866", "0"]
    image_slice = read(dicom_file(image))

    np.testing.assert_allclose(image_slice.orientation @ image_slice.orientation.T, np.eye(2), atol=1e-15)
    np.testing.assert_allclose(image_slice.orientation.ravel(), image.ImageOrientationPatient, atol=2e-3)


def test_nesting_without_end_is_a_refusal(image: Dataset, dicom_file: Save) -> None:
    """20,000 nested sequences, which crash other readers, are refused."""
    nested = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 20_000
    content = dicom_file(image)
    at = content.index(b"\x08\x00\x60\x00CS")
    with pytest.raises(ScanError):
        read_instance(content[:at] + nested + content[at:], with_voxels=False)


@pytest.mark.parametrize("seed", range(150))
def test_a_damaged_file_is_read_or_refused_never_a_crash(
    seed: int, image: Dataset, dicom_file: Save, canary: str
) -> None:
    """Whatever bytes are changed, the outcome is slices or a ScanError without the file's text."""
    chance = random.Random(seed)  # noqa: S311 - a test's seed
    content = bytearray(dicom_file(image))
    for _ in range(chance.randint(1, 6)):
        content[chance.randrange(128, len(content))] = chance.randrange(256)

    outcome = slices_or_refusal(bytes(content))

    if isinstance(outcome, ScanError):
        assert canary not in outcome.detail


def enhanced(images: list[Dataset]) -> Dataset:
    """Return an enhanced CT object made of single-frame ones (PS3.3 C.7.6.16)."""
    one = copy.deepcopy(images[0])
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = uid.EnhancedCTImageStorage
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, plane.ImageOrientationPatient = one.PixelSpacing, one.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([plane])
    one.SharedFunctionalGroupsSequence = Sequence([shared])
    one.PerFrameFunctionalGroupsSequence = Sequence([])
    for number, image in enumerate(images):
        frame, place, rescale = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = image.ImagePositionPatient
        rescale.RescaleSlope, rescale.RescaleIntercept = str(number + 1), "-10"
        frame.PlanePositionSequence = Sequence([place])
        frame.PixelValueTransformationSequence = Sequence([rescale])
        one.PerFrameFunctionalGroupsSequence.append(frame)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(one, name)
    one.NumberOfFrames = len(images)
    one["PixelData"].value = b"".join(image.PixelData for image in images)
    return one


@pytest.mark.parametrize("compress", [False, True], ids=["native", "RLE"])
def test_frames_of_an_enhanced_object_are_slices(compress: bool, slices_of: Slices, dicom_file: Save) -> None:  # noqa: FBT001 - a parameter of the test
    """Each frame has its own position and slope, and shares the common attributes."""
    images = slices_of()
    whole = enhanced(images)
    if compress:
        whole.compress(uid.RLELossless, generate_instance_uid=False)

    frames = read_instance(dicom_file(whole), with_voxels=True)

    assert [frame.frame for frame in frames] == list(range(6))
    for number, (frame, single) in enumerate(zip(frames, images, strict=True)):
        np.testing.assert_allclose(frame.position_mm, single.ImagePositionPatient)
        np.testing.assert_allclose(frame.spacing_mm, single.PixelSpacing)
        np.testing.assert_array_equal(frame.intensities(), single.pixel_array * (number + 1.0) - 10)
    assert len({frame.digest for frame in frames}) == 6


def test_an_enhanced_object_without_places_is_refused(slices_of: Slices, dicom_file: Save) -> None:
    """A frame without its functional group has no position."""
    whole = enhanced(slices_of())
    del whole.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence
    with pytest.raises(errors.MissingOrientation):
        read_instance(dicom_file(whole), with_voxels=False)
    del whole.PerFrameFunctionalGroupsSequence[5]
    with pytest.raises(ScanError):
        read_instance(dicom_file(whole), with_voxels=False)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.RLELossless])
@pytest.mark.parametrize(
    ("stored_type", "declared", "limit", "expected"),
    [
        ("<i2", -2000, None, (-2000, -2000)),
        ("<i2", -2000, -1998, (-2000, -1998)),
        ("<i2", -1998, -2000, (-2000, -1998)),
        ("<u2", 0, None, (0, 0)),
        ("<u2", 65535, 65000, (65000, 65535)),
    ],
    ids=str,
)
def test_declared_padding_is_found_among_the_stored_values(  # noqa: PLR0913, PLR0917 - a parameter is a case
    syntax: uid.UID,
    stored_type: str,
    declared: int,
    limit: int | None,
    expected: tuple[int, int],
    slices_of: Slices,
    dicom_file: Save,
) -> None:
    """Pixel Padding Value, with a range limit on either side of it, is compared before slope and intercept."""
    array = np.random.default_rng(1).integers(100, 900, (6, 7, 3)).astype(stored_type)
    array[:2, 3, 2], array[5, 6, 2] = expected
    image = slices_of(array, slope="2.5")[2]
    image.PixelPaddingValue = declared
    if limit is not None:
        image.PixelPaddingRangeLimit = limit
    if syntax.is_compressed:
        image.compress(syntax, generate_instance_uid=False)
    image.file_meta.TransferSyntaxUID = syntax

    one = read(dicom_file(image))
    intensities, padding = one.intensities_and_padding()

    assert one.padding == expected
    assert padding is not None
    np.testing.assert_array_equal(padding, np.isin(array[..., 2].T, range(expected[0], expected[1] + 1)))
    np.testing.assert_array_equal(intensities, array[..., 2].T * 2.5 - 1024)


def test_a_negative_padding_may_be_written_as_unsigned(slices_of: Slices, dicom_file: Save) -> None:
    """Many scanners write US 63536 for -2000 in images of signed numbers."""
    array = np.random.default_rng(1).integers(0, 900, (6, 7, 3)).astype("<i2")
    image = slices_of(array)[0]
    content = dicom_file(image)
    image.add_new("PixelPaddingValue", "US", 63536)

    assert read(dicom_file(image)).padding == (-2000, -2000)
    assert read(content).padding is None
