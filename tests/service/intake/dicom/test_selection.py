import io
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
from pydicom.dataset import Dataset

from service.errors import InvalidRequest, MultipleSeries
from service.intake.dicom import selection
from service.intake.dicom import series as reader

Slices = Callable[..., list[Dataset]]
Zip = Callable[..., bytes]


@pytest.fixture(name="two")
def two_(slices_of: Slices, dicom_file: Callable[[Dataset], bytes], zip_of: Zip) -> bytes:
    """Return a zip of two series, 1.2.5 of six images and 1.2.55 of four, and files of neither."""
    files = {"letter.txt": b"text", "damaged": bytes(128) + b"DICM" + b"text" * 50}
    for number, image in enumerate(slices_of()):
        files[f"a{number}"] = dicom_file(image)
    for number, image in enumerate(slices_of(np.arange(80, dtype=np.int16).reshape(4, 5, 4))):
        image.SeriesInstanceUID, image.SOPInstanceUID, image.SeriesNumber = "1.2.55", f"1.2.9.{number}", 7
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        files[f"b{number}"] = dicom_file(image)
    del files["damaged"]
    return zip_of(files)


def select(content: bytes, series: str) -> bytes:
    """Return the zip of one series."""
    out = io.BytesIO()
    selection.select(io.BytesIO(content), series, out)
    return out.getvalue()


@pytest.mark.parametrize(("uid", "slices"), [("1.2.5", 6), ("1.2.55", 4)])
def test_the_chosen_series_alone_is_left(uid: str, slices: int, two: bytes) -> None:
    """It is read like a zip of that series; the same choice gives the same bytes."""
    with pytest.raises(MultipleSeries, match=r"1\.2\.5 \(CT, 6 images\); 1\.2\.55 \(CT, series 7, 4 images\)"):
        reader.check(io.BytesIO(two))

    chosen = select(two, uid)

    assert reader.decode(io.BytesIO(chosen)).shape == (4, 5, slices)
    assert select(two, uid) == chosen
    with zipfile.ZipFile(io.BytesIO(chosen)) as archive:
        assert len(archive.namelist()) == slices


def test_a_series_that_is_not_there_is_refused(two: bytes, nifti: Zip, canary: str) -> None:
    """The message names the series that are there, and nothing else of the file; other formats have no series."""
    with pytest.raises(InvalidRequest, match=r"It holds 1\.2\.5 \(CT, 6 images\); 1\.2\.55") as refusal:
        select(two, "1.2.6")
    assert canary not in refusal.value.detail

    with pytest.raises(InvalidRequest, match="DICOM files only"):
        select(nifti(), "1.2.5")


def test_unreadable_files_are_left_out(slices_of: Slices, dicom_file: Callable[[Dataset], bytes], zip_of: Zip) -> None:
    """They belong to no series."""
    files = {str(n): dicom_file(image) for n, image in enumerate(slices_of())}
    files["damaged"] = bytes(128) + b"DICM" + bytes(500)

    assert reader.decode(io.BytesIO(select(zip_of(files), "1.2.5"))).shape == (4, 5, 6)
