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
    """Return the file of a dataset that was read from one."""
    file = io.BytesIO()
    image.save_as(file)
    return file.getvalue()


def changed(content: bytes, **tags: object) -> bytes:
    """Return a file with other values."""
    image = dcmread(io.BytesIO(content))
    for name, value in tags.items():
        setattr(image, name, value)
    return saved(image)


@pytest.fixture
def content(series_files: list[Path]) -> bytes:
    """Return a DICOM file."""
    return series_files[0].read_bytes()


def test_a_file_says_where_it_belongs(content: bytes) -> None:
    """Study, series and instance, and what its series is like."""
    found = read_instance(content)
    assert (found.study, found.series, found.uid, found.ours) == ("1.2.4", "1.2.5", "1.2.3.1", False)
    series = read_series(content, 6)
    assert (series.study, series.uid, series.modality, series.instances) == ("1.2.4", "1.2.5", "CT", 6)


def test_what_this_service_had_a_part_in_is_known(content: bytes) -> None:
    """Manufacturer, and Contributing Equipment of an object that somebody else passed on."""
    assert read_instance(changed(content, Manufacturer=" calibrant")).ours
    part = Dataset()
    part.Manufacturer = "Calibrant"
    assert read_instance(changed(content, ContributingEquipmentSequence=Sequence([part]))).ours


def test_the_digest_survives_what_a_pacs_may_rewrite(content: bytes) -> None:
    """Another name, a private element, other meta information and another native encoding say the same."""
    image = dcmread(io.BytesIO(content))
    image.PatientName, image.AccessionNumber = "CORRECTED^NAME", "77"
    image.add_new(0x00990010, "LO", "somebody's")
    image.file_meta.ImplementationVersionName = "PACS"
    assert content_digest(saved(image)) == content_digest(content)
    image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    file = io.BytesIO()
    image.save_as(file, implicit_vr=True, little_endian=True)
    assert content_digest(file.getvalue()) == content_digest(content)


def test_the_digest_tells_other_content(content: bytes) -> None:
    """One bit of the voxels, or another identifier."""
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
    """It prints when it was made; its identifier follows from the result."""
    page = changed(content, SOPClassUID=SecondaryCaptureImageStorage)
    later = changed(page, PixelData=bytes(40))
    assert content_digest(page) == content_digest(later) != content_digest(content)
    assert content_digest(changed(page, SOPInstanceUID="1.2.9")) != content_digest(page)


@pytest.mark.parametrize("damaged", [b"", b"garbage" * 99, bytes(128) + b"DICM" + b"garbage" * 99])
@pytest.mark.parametrize("read", [read_instance, content_digest])
def test_damage_has_a_name(damaged: bytes, read: Callable[[bytes], object]) -> None:
    """And the message repeats nothing of the file."""
    with pytest.raises(PacsBadResponse) as caught:
        read(damaged)
    assert "garbage" not in caught.value.detail


def test_a_deflated_file_is_not_inflated(content: bytes) -> None:
    """Nothing bounds what it would become."""
    image = dcmread(io.BytesIO(content))
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    with pytest.raises(PacsBadResponse, match="deflated"):
        read_instance(saved(image))
