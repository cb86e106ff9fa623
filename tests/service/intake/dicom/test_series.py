import copy
import io
import random
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import SimpleITK
from highdicom import get_volume_from_series
from pydicom import uid
from pydicom.dataset import Dataset

from service import errors
from service.errors import ScanError
from service.intake.dicom import series as reader
from service.intake.formats import archive
from service.intake.formats.geometry import lps_to_ras
from service.volume import Volume
from tests.dicom_series import series_of_array
from tests.service.intake.dicom.test_instance import enhanced
from tests.service.intake.formats.contract import ScanFormatContract

Slices = Callable[..., list[Dataset]]
Save = Callable[[Dataset], bytes]
Zip = Callable[..., bytes]


@pytest.fixture
def images(slices_of: Slices) -> list[Dataset]:
    """Return sixteen oblique CT images in Hounsfield units."""
    array = np.random.default_rng(2).integers(0, 3000, (6, 7, 16)).astype(np.uint16)
    affine = np.eye(4)
    affine[:3, :3] = nib.eulerangles.euler2mat(0.3, -0.5, 0.9) * [0.75, 0.8, 2.5]
    affine[:3, 3] = (-20, 30, -40)
    return slices_of(array, affine, slope="1")


@pytest.fixture(scope="module")
def real_images(real_series: Path) -> list[Dataset]:
    """Return the 78 images of a real CT series."""
    return [pydicom.dcmread(path) for path in sorted(real_series.iterdir())]


def decode(content: bytes) -> Volume:
    """Return the volume of a zip after checking it."""
    reader.check(io.BytesIO(content))
    return reader.decode(io.BytesIO(content))


def refuse(content: bytes) -> ScanError:
    """Return the error that both checking and decoding raise for a zip."""
    with pytest.raises(ScanError) as checking:
        reader.check(io.BytesIO(content))
    with pytest.raises(ScanError) as decoding:
        reader.decode(io.BytesIO(content))
    assert type(checking.value) is type(decoding.value)
    assert checking.value.detail == decoding.value.detail
    return checking.value


class SeriesInZip:
    """The two modules that read a zip of a series: one recognises the zip, the other reads the series."""

    recognise = staticmethod(archive.recognise)
    decode = staticmethod(reader.decode)
    check = staticmethod(reader.check)


class TestDicomSeries(ScanFormatContract):
    """A zip of a DICOM series is read as every format is."""

    reader = SeriesInZip()

    @pytest.fixture
    def sample(self, slices_of: Slices, zip_of: Zip) -> bytes:
        """Return the phantom as a zip of CT images."""
        return zip_of(slices_of())


def from_itk(paths: list[Path]) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.float64]]:
    """Return voxels (i, j, k) and RAS affine of a good series as ITK and GDCM read it."""
    series = SimpleITK.ImageSeriesReader()
    names = series.GetGDCMSeriesFileNames(str(paths[0].parent))
    series.SetFileNames(names)
    image = series.Execute()
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).T, lps_to_ras(lps)


def test_a_real_series_is_read_as_by_itk(real_series: Path, real_images: list[Dataset], zip_of: Zip) -> None:
    """Voxels in Hounsfield units and affine of a real CT of 78 slices equal those of ITK and GDCM."""
    array, affine = from_itk(sorted(real_series.iterdir()))

    volume = decode(zip_of(real_images))

    np.testing.assert_array_equal(volume.array_CDHW[0], array)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-6)
    assert volume.warnings == ()


def test_a_series_of_another_scanner_is_read_as_by_itk(dcmqi_ct: Path, zip_of: Zip) -> None:
    """Slices with signed voxels and damaged private tags are read as by ITK, which keeps their padding of -3024."""
    paths = sorted((dcmqi_ct / "ct-3slice").iterdir())
    array, affine = from_itk(paths)

    volume = decode(zip_of({path.name: path.read_bytes() for path in paths}))

    assert volume.padding is not None
    np.testing.assert_array_equal(volume.padding, array == -3024)
    np.testing.assert_array_equal(volume.array_CDHW[0], np.maximum(array, -1024))
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)


def test_an_oblique_series_is_read_as_by_itk_and_highdicom(
    images: list[Dataset], zip_of: Zip, dicom_file: Save, tmp_path: Path
) -> None:
    """Files may have any order; intensities include the intercept, and axes are column, row, slice."""
    random.Random(0).shuffle(images)  # noqa: S311 - a test's seed
    for n, image in enumerate(images):
        (tmp_path / str(n)).write_bytes(dicom_file(image))
    array, affine = from_itk(sorted(tmp_path.iterdir()))
    other = get_volume_from_series(images)

    volume = decode(zip_of(images))

    np.testing.assert_array_equal(volume.array_CDHW[0], array)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-4)
    # highdicom counts slices along column x row.
    np.testing.assert_array_equal(volume.array_CDHW[0], other.array.T[:, :, ::-1])


def test_each_slice_has_its_own_slope(images: list[Dataset], zip_of: Zip) -> None:
    """PET and some MR series have a different slope for each slice."""
    expected = decode(zip_of(images)).array_CDHW[0] + 1024
    for k, image in enumerate(images):
        image.RescaleSlope, image.RescaleIntercept = str(k + 1), "0"

    np.testing.assert_array_equal(decode(zip_of(images)).array_CDHW[0], expected * np.arange(1, 17))


def test_other_files_are_left_out_with_a_warning(images: list[Dataset], zip_of: Zip, dicom_file: Save) -> None:
    """Text, a nested zip and a report are counted in warnings."""
    report = copy.deepcopy(images[0])
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = uid.BasicTextSRStorage
    files = {str(n): dicom_file(image) for n, image in enumerate(images)}
    files |= {"a.txt": b"letter", "b.zip": zip_of({"a": b"a"}), "report": dicom_file(report)}

    assert decode(zip_of(files)).warnings == (
        "2 files of the zip are not DICOM and were left out.",
        "1 DICOM files of the zip are no CT, MR or PET images and were left out.",
    )


def test_a_zip_without_images_is_refused(zip_of: Zip, canary: str) -> None:
    """The message counts the files that were found instead."""
    refusal = refuse(zip_of({canary: b"letter", "b": b""}))

    assert type(refusal) is errors.NoDicom
    assert "0 other DICOM files and 2 files that are not DICOM" in refusal.detail
    assert type(refuse(zip_of({}))) is errors.NoDicom


def test_two_series_are_refused_by_name(images: list[Dataset], zip_of: Zip) -> None:
    """No series is chosen for the user; each is named by its UID, so that the user can."""
    images[3].SeriesInstanceUID = "1.2.99.7"
    images[4].SeriesInstanceUID = "1.2.99.8"
    refusal = refuse(zip_of(images))

    assert type(refusal) is errors.MultipleSeries
    assert refusal.detail.startswith(
        "3 series were found; one is expected: 1.2.5 (CT, 14 images); 1.2.99.7 (CT, 1 image"
    )


def test_two_frames_of_reference_are_refused(images: list[Dataset], zip_of: Zip) -> None:
    """Positions in different frames of reference cannot be compared."""
    images[3].FrameOfReferenceUID = "1.2.99.7"
    assert type(refuse(zip_of(images))) is errors.MultipleSeries


@pytest.mark.parametrize("marked", [True, False], ids=["by its type", "by its orientation"])
def test_a_localizer_is_left_out_with_a_warning(marked: bool, images: list[Dataset], zip_of: Zip) -> None:  # noqa: FBT001 - a parameter of the test
    """A localizer is recognised by its type or by its orientation; ITK would stack it with the rest."""
    expected = decode(zip_of(images))
    localizer = copy.deepcopy(images[0])
    localizer.SOPInstanceUID = localizer.file_meta.MediaStorageSOPInstanceUID = uid.UID("1.2.77")
    localizer.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    if marked:
        localizer.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    volume = decode(zip_of([localizer, *images]))

    np.testing.assert_array_equal(volume.array_CDHW, expected.array_CDHW)
    np.testing.assert_array_equal(volume.affine, expected.affine)
    assert volume.warnings == (
        "1 images of the series are localizers or lie in another orientation, and were left out.",
    )


@pytest.mark.parametrize("tag", ["ImageOrientationPatient", "PixelSpacing"])
def test_several_stacks_are_refused(tag: str, images: list[Dataset], zip_of: Zip) -> None:
    """Four images of another orientation or voxel size are too many to be localizers."""
    for image in images[:4]:
        setattr(image, tag, [0, 1, 0, 0, 0, -1] if tag == "ImageOrientationPatient" else [1, 1])
    refusal = refuse(zip_of(images))

    assert type(refusal) is errors.MultipleSeries
    assert "2 stacks of different orientation, size or voxel size, of 4, 12 images" in refusal.detail


def test_orientations_rounded_differently_are_one(images: list[Dataset], zip_of: Zip) -> None:
    """A difference of 0.0001 is rounding, not another orientation."""
    image = images[5]
    image.ImageOrientationPatient = [f"{float(cosine):.4f}" for cosine in image.ImageOrientationPatient]

    assert decode(zip_of(images)).shape == (6, 7, 16)


def test_copies_are_left_out_with_a_warning(images: list[Dataset], zip_of: Zip) -> None:
    """The same file under another name counts once."""
    expected = decode(zip_of(images))
    volume = decode(zip_of([*images, images[4], images[5]]))

    np.testing.assert_array_equal(volume.array_CDHW, expected.array_CDHW)
    assert volume.warnings == ("2 files of the zip are copies of others and were left out.",)


@pytest.mark.parametrize("tag", ["PixelData", "ImagePositionPatient", "RescaleSlope"])
def test_one_identifier_for_two_images_is_refused(
    tag: str, images: list[Dataset], zip_of: Zip, dicom_file: Save
) -> None:
    """If voxels, position or slope differ, it is unclear which image is meant."""
    other = pydicom.dcmread(io.BytesIO(dicom_file(images[4])))
    setattr(other, tag, {"PixelData": bytes(84), "ImagePositionPatient": [1, 2, 3], "RescaleSlope": "2"}[tag])

    assert type(refuse(zip_of([*images, other]))) is errors.DuplicateInstance


def test_time_points_are_refused(slices_of: Slices, zip_of: Zip) -> None:
    """Two different images at each position are refused."""
    later = slices_of(np.full((4, 5, 6), 7, np.int16))
    for n, image in enumerate(later):
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = uid.UID(f"1.2.8.{n}")
    refusal = refuse(zip_of([*slices_of(), *later]))

    assert type(refusal) is errors.DuplicateInstance
    assert refusal.detail.startswith("6 of 12 slices share their position with a different slice")


@pytest.mark.parametrize(
    ("tag", "values", "words"),
    [
        ("TemporalPositionIdentifier", ("1", "2"), "2 time points were found"),
        ("EchoTime", ("4.6", "92"), "2 echo times were found"),
        ("AcquisitionNumber", ("1", "2"), "2 acquisitions were found"),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]), "2 kinds of image were found"),
    ],
)
def test_a_refusal_names_what_distinguishes_the_images(
    tag: str, values: tuple[object, object], words: str, slices_of: Slices, zip_of: Zip
) -> None:
    """Time points, echoes, acquisitions or image types are counted, and none is chosen."""
    first, later = slices_of(), slices_of(np.full((4, 5, 6), 7, np.int16))
    for n, (one, other) in enumerate(zip(first, later, strict=True)):
        other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = uid.UID(f"1.2.8.{n}")
        setattr(one, tag, values[0])
        setattr(other, tag, values[1])
    refusal = refuse(zip_of([*first, *later]))

    assert type(refusal) is errors.DuplicateInstance
    assert words in refusal.detail
    assert "92" not in refusal.detail


def test_two_echoes_beside_each_other_are_uneven_for_a_reason(slices_of: Slices, zip_of: Zip) -> None:
    """Interleaved slices of two echoes are refused, and the message says what was mixed."""
    first, later = slices_of(), slices_of(np.full((4, 5, 6), 7, np.int16))
    for n, (one, other) in enumerate(zip(first, later, strict=True)):
        other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = uid.UID(f"1.2.8.{n}")
        other.ImagePositionPatient[2] = float(other.ImagePositionPatient[2]) + 0.7
        one.EchoTime, other.EchoTime = "4.6", "92"
    refusal = refuse(zip_of([*first, *later]))

    assert type(refusal) is errors.IrregularSpacing
    assert "2 echo times were found" in refusal.detail


def test_a_volume_of_two_acquisitions_is_one(slices_of: Slices, zip_of: Zip) -> None:
    """Several acquisition numbers along one stack are accepted as long as no position is shared."""
    images = slices_of()
    for k, image in enumerate(images):
        image.AcquisitionNumber = 1 + k // 3

    assert decode(zip_of(images)).shape == (4, 5, 6)


@pytest.mark.parametrize("placed", [True, False], ids=["with positions", "without"])
def test_secondary_captures_need_a_place(placed: bool, images: list[Dataset], zip_of: Zip) -> None:  # noqa: FBT001 - a parameter of the test
    """Some scanners store series as secondary captures; a screen shot without a position is refused."""
    expected = decode(zip_of(images))
    for image in images:
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
        if not placed:
            del image.ImagePositionPatient
    if placed:
        np.testing.assert_array_equal(decode(zip_of(images)).array_CDHW, expected.array_CDHW)
    else:
        refusal = refuse(zip_of(images))
        assert type(refusal) is errors.MissingOrientation
        assert "not screen shots" in refusal.detail


def test_an_enhanced_object_is_the_series_that_it_was_made_of(zip_of: Zip) -> None:
    """Single MR images packed into one object by highdicom's converter give the same volume at the same place."""
    from highdicom.legacy import LegacyConvertedEnhancedMRImage

    affine = np.eye(4)
    affine[:3, :3] = nib.eulerangles.euler2mat(0.3, -0.5, 0.9) * [0.75, 0.8, 2.5]
    array = np.random.default_rng(2).integers(0, 3000, (6, 7, 16)).astype(np.int16)
    images = series_of_array(array, affine)
    whole = LegacyConvertedEnhancedMRImage(
        legacy_datasets=images,
        series_instance_uid="1.2.3",
        series_number=1,
        sop_instance_uid="1.2.4",
        instance_number=1,
    )
    expected, volume = decode(zip_of(images)), decode(zip_of([whole]))

    np.testing.assert_array_equal(volume.array_CDHW, expected.array_CDHW)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-6)


def test_odd_text_and_private_attributes_do_no_harm(images: list[Dataset], zip_of: Zip, dicom_file: Save) -> None:
    """Unknown character sets, undecodable text and private attributes do not affect the voxels."""
    expected = decode(zip_of(images)).array_CDHW
    for image in images:
        image.SpecificCharacterSet = "ISO_IR 192"
        image.add_new(0x00091010, "LO", "CALIBRANT TEST")
        image.add_new(0x00091011, "UN", bytes(range(256)) * 99)
        image.PatientID = "\u00ff"
    odd = {str(n): dicom_file(image).replace(b"ISO_IR 192", b"ISO_IR 999") for n, image in enumerate(images)}

    np.testing.assert_array_equal(decode(zip_of(odd)).array_CDHW, expected)


def test_monochrome1_gives_a_warning(images: list[Dataset], zip_of: Zip) -> None:
    """Intensities are used as stored, and a warning says so."""
    expected = decode(zip_of(images)).array_CDHW
    for image in images:
        image.PhotometricInterpretation = "MONOCHROME1"
    volume = decode(zip_of(images))

    np.testing.assert_array_equal(volume.array_CDHW, expected)
    assert volume.warnings == (
        "The images ask to be displayed inverted (MONOCHROME1); their intensities were used as stored.",
    )


FAULTS: dict[str, tuple[Callable[[list[Dataset]], list[Dataset]], type[ScanError]]] = {
    "a slice is missing": (lambda images: images[:30] + images[31:], errors.MissingSlices),
    "four slices are missing": (lambda images: images[:30] + images[34:], errors.MissingSlices),
    "tilted by 15 degrees": (lambda images: _moved(images, lambda k: [0, k * 2 * 0.268, 0]), errors.GantryTilt),
    "30 % more and less": (lambda images: _moved(images, lambda k: [0, 0, k % 2 * 0.6]), errors.IrregularSpacing),
    "mixed sizes": (lambda images: _cropped(images, 20), errors.MultipleSeries),
}


def _moved(images: list[Dataset], by_mm: Callable[[int], list[float]]) -> list[Dataset]:
    for k, image in enumerate(images):
        image.ImagePositionPatient = [a + b for a, b in zip(image.ImagePositionPatient, by_mm(k), strict=True)]
    return images


def _cropped(images: list[Dataset], count: int) -> list[Dataset]:
    for image in images[:count]:
        image.Rows //= 2
        image.PixelData = image.PixelData[: image.Rows * image.Columns * 2]
    return images


@pytest.mark.parametrize(("edit", "error"), FAULTS.values(), ids=FAULTS)
def test_a_real_series_with_a_fault_is_refused(
    edit: Callable[[list[Dataset]], list[Dataset]], error: type[ScanError], real_series: Path, zip_of: Zip
) -> None:
    """Faults that ITK's series reader accepts silently are refused with their own error."""
    images: list[Dataset] = [pydicom.dcmread(path) for path in sorted(real_series.iterdir())]

    assert type(refuse(zip_of(edit(images)))) is error


def test_declared_padding_is_marked_and_gets_the_lowest_other_intensity(slices_of: Slices, zip_of: Zip) -> None:
    """The mask lies where the padding was stored; no intensity of the volume comes from padding."""
    array = np.random.default_rng(4).integers(100, 900, (6, 7, 5)).astype("<i2")
    nothing = np.random.default_rng(5).random(array.shape) < 0.3
    nothing[..., 1] = False
    padded = np.where(nothing, -2000, array).astype("<i2")
    images = slices_of(padded, slope="2")
    for image in images:
        image.PixelPaddingValue = -2000

    volume = decode(zip_of(images))

    assert volume.padding is not None
    np.testing.assert_array_equal(volume.padding, nothing)
    expected = array * 2.0 - 1024
    np.testing.assert_array_equal(volume.array_CDHW[0], np.where(nothing, expected[~nothing].min(), expected))
    assert volume.warnings == ()


def test_a_padding_that_no_voxel_has_changes_nothing(slices_of: Slices, zip_of: Zip) -> None:
    """Most scanners declare a padding in every file, also where none is used."""
    array = np.random.default_rng(4).integers(100, 900, (6, 7, 5)).astype("<i2")
    images = slices_of(array)
    plain = decode(zip_of(images))
    for image in images:
        image.PixelPaddingValue = -2000

    volume = decode(zip_of(images))

    assert volume.padding is None
    np.testing.assert_array_equal(volume.array_CDHW, plain.array_CDHW)


def test_a_file_of_all_frames_is_read_without_a_zip(slices_of: Slices, zip_of: Zip, dicom_file: Save) -> None:
    """It is the same volume as from a zip of it."""
    whole = enhanced(slices_of())
    content = dicom_file(whole)

    volume, zipped = decode(content), decode(zip_of([whole]))

    np.testing.assert_array_equal(volume.array_CDHW, zipped.array_CDHW)
    np.testing.assert_array_equal(volume.affine, zipped.affine)
    assert volume.shape == (4, 5, 6)


def test_files_without_preambles_are_read(slices_of: Slices, zip_of: Zip, dicom_file: Save) -> None:
    """The volume is that of whole files; data sets without any header are named."""
    images = slices_of()
    cut = {str(n): dicom_file(image)[132:] for n, image in enumerate(images)}
    np.testing.assert_array_equal(decode(zip_of(cut)).array_CDHW, decode(zip_of(images)).array_CDHW)

    alone = {name: content[content.index(b"\x08\x00\x08\x00") :] for name, content in cut.items()}
    refusal = refuse(zip_of(alone))
    assert type(refusal) is errors.NoDicom
    assert "without the header of a DICOM file" in refusal.detail


@pytest.mark.parametrize("kind", ["single frames", "one file of all frames"])
def test_a_diffusion_series_is_named(kind: str, slices_of: Slices, zip_of: Zip) -> None:
    """Two b-values at each place: the message says so, and what to send."""
    images = slices_of()
    for number, image in enumerate(copy.deepcopy(images)):
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = uid.UID(f"1.2.9.{number}")
        image.PixelData = image.PixelData[2:] + image.PixelData[:2]
        images.append(image)
    if kind == "single frames":
        for number, image in enumerate(images):
            image.DiffusionBValue = 0.0 if number < 6 else 800.0
    else:
        whole = enhanced(images)
        for number, frame in enumerate(whole.PerFrameFunctionalGroupsSequence):
            diffusion = Dataset()
            diffusion.DiffusionBValue = 0.0 if number < 6 else 800.0
            frame.MRDiffusionSequence = pydicom.Sequence([diffusion])
        images = [whole]

    refusal = refuse(zip_of(images))

    assert type(refusal) is errors.DuplicateInstance
    assert "2 b-values were found. This is a diffusion series" in refusal.detail


def test_d7_a_study_that_cannot_be_read_is_refused_by_the_check(
    slices_of: Slices, dicom_file: Save, zip_of: Zip
) -> None:
    """Found by `make fuzz`: a type that no standard knows ended the decoder, after the 202."""
    files = {str(k): dicom_file(image) for k, image in enumerate(slices_of())}
    at = files["0"].index(b"\x20\x00\x0d\x00UI")
    files["0"] = files["0"][: at + 4] + b"U\xc9" + files["0"][at + 6 :]

    assert type(refuse(zip_of(files))) is errors.InvalidHeader
