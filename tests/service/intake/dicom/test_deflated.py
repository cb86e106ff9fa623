import zlib
from collections.abc import Callable

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset

from service.errors import ArchiveTooLarge, PayloadTruncated
from service.intake.dicom.deflated import inflated
from service.intake.dicom.instance import read_instance
from service.intake.formats.archive import Unpacked

Save = Callable[[Dataset], bytes]


@pytest.fixture(name="image")
def image_(slices_of: Callable[..., list[Dataset]]) -> Dataset:
    """Return an image that asks to be deflated."""
    image = slices_of()[0]
    image.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    return image


def test_a_deflated_file_has_the_voxels_of_a_plain_one(image: Dataset, dicom_file: Save) -> None:
    """It is read as an explicit little-endian file."""
    (one,) = read_instance(dicom_file(image), with_voxels=True)

    np.testing.assert_array_equal(one.intensities(), image.pixel_array)


def test_any_other_file_is_returned_as_it_is(slices_of: Callable[..., list[Dataset]], dicom_file: Save) -> None:
    """A native file, one without group length, and no DICOM at all."""
    content = dicom_file(slices_of()[0])

    for other in (content, content[:132] + content[144:], b"", bytes(500)):
        assert inflated(other) == other


def test_a_file_that_inflates_without_end_is_refused(image: Dataset, dicom_file: Save) -> None:
    """No more than the limit, and a byte, is ever inflated: 100 MB in 100 kB cost neither time nor memory."""
    content = dicom_file(image)
    stream = zlib.compressobj(9, wbits=-15)
    bomb = stream.compress(bytes(100 << 20)) + stream.flush()
    start = content.index(uid.DeflatedExplicitVRLittleEndian.encode()) + 22
    length = int.from_bytes(content[140:144], "little")
    assert start < 144 + length

    with pytest.raises(ArchiveTooLarge, match="more than 1048576 bytes"):
        inflated(content[: 144 + length] + bomb, Unpacked(1 << 20))


def test_f10_all_deflated_files_of_a_zip_share_one_limit(image: Dataset, dicom_file: Save) -> None:
    """What the first inflates to is no longer there for the second."""
    content = dicom_file(image)
    unpacked = Unpacked(len(inflated(content)) + 100)
    inflated(content, unpacked)

    with pytest.raises(ArchiveTooLarge):
        inflated(content, unpacked)


def test_a_damaged_stream_is_refused(image: Dataset, dicom_file: Save) -> None:
    """A stream that is cut, and one that is none."""
    content = dicom_file(image)
    length = 144 + int.from_bytes(content[140:144], "little")

    for bad in (content[:-20], content[:length] + b"\xff" * 100):
        with pytest.raises(PayloadTruncated):
            inflated(bad)
