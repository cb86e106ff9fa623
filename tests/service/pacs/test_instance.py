import io
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, SecondaryCaptureImageStorage

from service.errors import PacsBadResponse
from service.pacs.instance import content_digest, read_instance, read_series


def saved(image: Dataset) -> bytes:
    """Return a dataset as a file."""
    file = io.BytesIO()
    image.save_as(file)
    return file.getvalue()


def changed(content: bytes, **tags: object) -> bytes:
    """Return a file with changed attributes."""
    image = dcmread(io.BytesIO(content))
    for name, value in tags.items():
        setattr(image, name, value)
    return saved(image)


@pytest.fixture
def content(series_files: list[Path]) -> bytes:
    """Return a DICOM file."""
    return series_files[0].read_bytes()


def test_a_file_names_its_study_series_and_instance(content: bytes) -> None:
    """The attributes of its series are read, too."""
    instance = read_instance(content)
    assert (instance.study, instance.series, instance.uid, instance.ours) == ("1.2.4", "1.2.5", "1.2.3.1", False)
    series = read_series(content, 6)
    assert (series.study, series.uid, series.modality, series.instances) == ("1.2.4", "1.2.5", "CT", 6)


def test_objects_of_this_service_are_recognised(content: bytes) -> None:
    """By Manufacturer, or by Contributing Equipment in an object that was processed elsewhere."""
    assert read_instance(changed(content, Manufacturer=" calibrant")).ours
    part = Dataset()
    part.Manufacturer = "Calibrant"
    assert read_instance(changed(content, ContributingEquipmentSequence=Sequence([part]))).ours


def test_the_digest_ignores_what_a_pacs_may_rewrite(content: bytes) -> None:
    """Patient name, private elements, meta information and native encoding do not change it."""
    image = dcmread(io.BytesIO(content))
    image.PatientName, image.AccessionNumber = "CORRECTED^NAME", "77"
    image.add_new(0x00990010, "LO", "somebody's")
    image.file_meta.ImplementationVersionName = "PACS"
    assert content_digest(saved(image)) == content_digest(content)
    image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    file = io.BytesIO()
    image.save_as(file, implicit_vr=True, little_endian=True)
    assert content_digest(file.getvalue()) == content_digest(content)


def test_other_content_has_another_digest(content: bytes) -> None:
    """One bit of the voxels, another size or another UID changes it."""
    voxels = bytearray(dcmread(io.BytesIO(content)).PixelData)
    voxels[0] ^= 1
    digests = {
        content_digest(content),
        content_digest(changed(content, PixelData=bytes(voxels))),
        content_digest(changed(content, SOPInstanceUID="1.2.9")),
        content_digest(changed(content, Rows=1)),
    }
    assert len(digests) == 4


def test_a_page_drawn_again_is_the_same_page(content: bytes) -> None:
    """Its pixels show the time, but its UID follows from the result."""
    page = changed(content, SOPClassUID=SecondaryCaptureImageStorage)
    later = changed(page, PixelData=bytes(40))
    assert content_digest(page) == content_digest(later) != content_digest(content)
    assert content_digest(changed(page, SOPInstanceUID="1.2.9")) != content_digest(page)


@pytest.mark.parametrize("damaged", [b"", b"garbage" * 99, bytes(128) + b"DICM" + b"garbage" * 99])
@pytest.mark.parametrize("read", [read_instance, content_digest])
def test_a_damaged_file_is_a_bad_response(damaged: bytes, read: Callable[[bytes], object]) -> None:
    """The message repeats nothing of the file."""
    with pytest.raises(PacsBadResponse) as caught:
        read(damaged)
    assert "garbage" not in caught.value.detail


def test_a_deflated_file_is_not_inflated(content: bytes) -> None:
    """The size of the inflated file would be unlimited."""
    image = dcmread(io.BytesIO(content))
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    with pytest.raises(PacsBadResponse, match="deflated"):
        read_instance(saved(image))
