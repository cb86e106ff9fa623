from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom.dataset import Dataset

from service.errors import AmbiguousSeries, PacsBadResponse, SeriesChanged, SeriesNotFound, UnsuitableSeries
from service.jobs.pacs.series import PacsRequest, choose_series, reject_other_images, reject_ours
from service.pacs.selection import Selection, Series, digest_of

CT, MR = Series("1.2", "1.2.1", "CT", instances=40), Series("1.2", "1.2.2", "MR", instances=20)
SEG = Series("1.2", "1.2.3", "SEG", instances=1)


def choose(*candidates: Series, series: str | None = None, **select: Any) -> Series:  # noqa: ANN401 - fields of a selection
    """Return the series that is chosen from what a source holds."""
    source: Any = SimpleNamespace(find_series=lambda **_: list(candidates))
    request = PacsRequest("lab", "clinic", "1.2", series, Selection(**select), "m@0", ("seg",), "clinic")
    return choose_series(source, request)


def test_one_series_is_chosen() -> None:
    """A series is chosen by UID, by selection, or because it is the only one; results are never chosen."""
    assert choose(CT, MR, series="1.2.2") == MR
    assert choose(CT, MR, modality="CT") == CT
    assert choose(CT, SEG) == CT


def test_nobody_guesses() -> None:
    """No fitting series, several, and a result are distinct errors."""
    with pytest.raises(SeriesNotFound, match="2 series"):
        choose(CT, MR, modality="PT")
    with pytest.raises(SeriesNotFound):
        choose(SEG)
    with pytest.raises(AmbiguousSeries, match="of 40, 20 images"):
        choose(CT, MR)
    with pytest.raises(UnsuitableSeries):
        choose(CT, SEG, series="1.2.3")


def test_other_images_than_those_that_were_asked_for_are_refused() -> None:
    """A changed series is another job; an incomplete answer may be requested again."""
    told = ["1.1", "1.2"]
    reject_other_images(["1.2", "1.1", "1.1"], told, digest_of(told))
    with pytest.raises(SeriesChanged, match="3 images"):
        reject_other_images(["1.1", "1.2", "1.3"], ["1.1", "1.2", "1.3"], digest_of(told))
    with pytest.raises(PacsBadResponse, match="1 images of a series of 2"):
        reject_other_images(["1.1"], told, digest_of(told))


def test_files_of_our_own_making_are_refused(
    slices_of: Callable[..., list[Dataset]], dicom_file: Callable[[Dataset], bytes]
) -> None:
    """Files made by this service are refused; others pass unchanged, and their UIDs are recorded."""
    images = slices_of()
    files = [dicom_file(image) for image in images]
    received: list[str] = []
    assert list(reject_ours(iter(files), received)) == files
    assert received == [image.SOPInstanceUID for image in images]
    images[3].Manufacturer = "Calibrant"
    with pytest.raises(UnsuitableSeries):
        list(reject_ours(iter([dicom_file(image) for image in images]), []))
