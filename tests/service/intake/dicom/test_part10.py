from collections.abc import Callable

import pytest
from pydicom import uid
from pydicom.dataset import Dataset

from service.intake.dicom.part10 import completed, lacks_header, recognise

Save = Callable[[Dataset], bytes]


@pytest.fixture(name="content")
def content_(slices_of: Callable[..., list[Dataset]], dicom_file: Save) -> bytes:
    """Return a DICOM file."""
    return dicom_file(slices_of()[0])


@pytest.mark.parametrize("without", [0, 128, 132])
def test_a_file_without_its_preamble_is_recognised_and_completed(without: int, content: bytes) -> None:
    """Without 128 bytes it begins with the prefix, without 132 with group 0002."""
    assert recognise(content[without:][:132])
    assert not lacks_header(content[without:][:132])
    assert completed(content[without:])[128:] == content[128:]


@pytest.mark.parametrize("start", [b"", b"DICM", b"PK\x03\x04", b"\x02\x00\x00\x00", b"\x5c\x01\x00\x00", bytes(132)])
def test_other_files_are_not_recognised(start: bytes) -> None:
    """Zip, NIfTI, zeros and fragments are no DICOM."""
    assert not recognise(start)
    assert not lacks_header(start)


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian])
def test_a_data_set_alone_is_named(syntax: uid.UID, slices_of: Callable[..., list[Dataset]], dicom_file: Save) -> None:
    """It begins with group 0008 in either form."""
    image = slices_of()[0]
    image.file_meta.TransferSyntaxUID = syntax
    content = dicom_file(image)
    alone = content[content.index(b"\x08\x00\x08\x00") :]

    assert lacks_header(alone[:132])
    assert not recognise(alone[:132])
