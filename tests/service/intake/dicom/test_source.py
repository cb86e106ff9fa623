import io
import json
from collections.abc import Callable

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from service.intake.dicom.instance import read_instance
from service.intake.dicom.series import decode
from service.intake.dicom.source import MAX_HEAD_BYTES, MAX_VALUE_BYTES, SourceSeries, describe_source
from service.intake.dicom.stack import stack
from tests.dicom_series import CANARY_NAME, file_of, series_of_array, zip_of_series


def source_of(images: list[Dataset]) -> SourceSeries:
    """Return the kept headers of a series."""
    source = decode(io.BytesIO(zip_of_series(images))).source
    assert source is not None
    return SourceSeries.model_validate_json(source)


def test_slices_are_kept_in_the_order_of_k_with_their_true_places(series: list[Dataset]) -> None:
    """The order of the files does not matter; a position is the file's own, not one of the mean distance."""
    series[3].ImagePositionPatient[2] = float(series[3].ImagePositionPatient[2]) + 0.03
    source = source_of([series[n] for n in (5, 0, 7, 2, 3, 1, 6, 4)])

    assert [kept.instance for kept in source.slices] == [image.SOPInstanceUID for image in series]
    for kept, image in zip(source.slices, series, strict=True):
        assert kept.position_mm == tuple(float(mm) for mm in image.ImagePositionPatient)
        assert (kept.sop_class, kept.frame) == (pydicom.uid.MRImageStorage, None)


def test_patient_and_study_are_kept_without_voxels(series: list[Dataset]) -> None:
    """Attributes of patient, study and request are kept, but no voxels and no private attributes."""
    series[0].add_new(0x00091001, "LO", "private")
    series[0].PatientComments = "x" * (MAX_VALUE_BYTES + 1)
    source = source_of(series)
    identity = source.identity()

    for name in ("PatientName", "PatientID", "StudyInstanceUID", "AccessionNumber", "PatientAge", "StudyDescription"):
        assert identity[name].value == series[0][name].value
    assert not {0x7FE00010, 0x00091001, 0x00104000} & {int(tag) for tag in identity.keys()}  # noqa: SIM118 - a Dataset


def test_image_headers_are_anonymous(series: list[Dataset]) -> None:
    """The headers for highdicom hold UIDs and positions but nothing about the patient."""
    images = source_of(series).images()

    assert "CANARY" not in str(images)
    assert [image.SOPInstanceUID for image in images] == [image.SOPInstanceUID for image in series]
    np.testing.assert_allclose(images[4].ImagePositionPatient, [float(mm) for mm in series[4].ImagePositionPatient])
    assert {image.FrameOfReferenceUID for image in images} == {series[0].FrameOfReferenceUID}


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO_IR 144", "\u0414\u0436\u044e"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("ISO_IR 192", "Wang^XiaoDong=王^小东"),
    ],
)
def test_names_of_any_character_set_are_kept(character_set: str, name: str, series: list[Dataset]) -> None:
    """Names are decoded with the file's character set."""
    for image in series:
        image.SpecificCharacterSet, image.PatientName = character_set, name

    assert str(source_of(series).identity().PatientName) == name


def test_values_that_break_the_standard_do_not_stop_a_scan(series: list[Dataset]) -> None:
    """An unknown character set, a wrong date, a wrong age and a nested private sequence are tolerated."""
    inner = Dataset()
    inner.add_new(0x00091002, "UN", b"\x00\x01")
    for image in series:
        image.ReferencedStudySequence = Sequence([inner])
    content = [
        file_of(image).replace(b"ISO_IR 192", b"ISO_IR 999").replace(b"19010203", b"yesterdy").replace(b"099Y", b"old!")
        for image in series
    ]
    slices, _ = stack([read_instance(file, with_voxels=True)[0] for file in content])
    source = SourceSeries.model_validate_json(describe_source(slices) or "")

    assert str(source.identity().PatientName) == CANARY_NAME
    assert source.identity().PatientBirthDate == "yesterdy"


@pytest.mark.parametrize(("written", "kept"), [("0.5", 0.5), ("", 2.0), (None, 2.0), ("0", 2.0)])
def test_the_thickness_may_be_less_than_the_distance(written: str | None, kept: float, series: list[Dataset]) -> None:
    """If no valid thickness is given, the slice distance is used."""
    for image in series:
        image.SliceThickness = written
    source = source_of(series)

    assert source.slice_thickness_mm == pytest.approx(kept)
    assert source.slice_distance_mm == pytest.approx(2.0)


def test_a_slice_without_its_dataset_has_no_source(series: list[Dataset]) -> None:
    """Checking keeps no datasets and needs no source."""
    slices = [read_instance(file_of(image), with_voxels=False)[0] for image in series]
    with pytest.raises(ValueError, match="has no header to keep"):
        describe_source(slices)


def test_a_header_of_any_size_is_bounded(series: list[Dataset]) -> None:
    """With thousands of extra attributes the kept header stays small and still names the patient."""
    for image in series:
        for element in range(0x5000, 0x6000):
            image.add_new(0x00400000 + element, "LT", "x" * 1000)
    source = source_of(series)

    assert len(json.dumps(source.head)) < 2 * MAX_HEAD_BYTES
    assert str(source.identity().PatientName) == CANARY_NAME


def test_without_a_study_there_is_no_source(series: list[Dataset]) -> None:
    """The scan is decoded all the same, but DICOM results would have no study."""
    for image in series:
        del image.StudyInstanceUID
    volume = decode(io.BytesIO(zip_of_series(series)))

    assert volume.shape == (12, 10, 8)
    assert volume.source is None


def test_other_formats_have_no_source(nifti: Callable[..., bytes]) -> None:
    """A NIfTI scan has no patient, study or series."""
    from service.intake.formats import nifti as reader

    assert reader.decode(io.BytesIO(nifti())).source is None


def test_the_document_is_json(series: list[Dataset]) -> None:
    """The kept headers pass through the pipe of the sandbox as JSON."""
    source = decode(io.BytesIO(zip_of_series(series))).source
    assert source is not None
    assert json.loads(source)["rows"] == 10
    assert len(series_of_array(np.zeros((3, 3, 2), np.int16), np.eye(4))) == 2
