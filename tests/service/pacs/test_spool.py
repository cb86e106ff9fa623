import os
import time
from pathlib import Path

import pytest
from pydicom import dcmread

from service.errors import SeriesNotFound
from service.pacs.spool import KEEP_S, Spool
from tests.service.pacs.contract import SERIES, STUDY, SeriesSourceContract


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """Return an empty spool."""
    (tmp_path / "received").mkdir()
    return Spool(tmp_path / "received")


def fill(spool: Spool, files: list[Path]) -> None:
    """Keep files as the receiver does."""
    for path in files:
        spool.keep(STUDY, SERIES, str(dcmread(path).SOPInstanceUID), path.read_bytes())


class TestSpool(SeriesSourceContract):
    """Received series are a source like those of a PACS."""

    @pytest.fixture
    def source(self, spool: Spool, series_files: list[Path]) -> Spool:
        """Return a spool that has received the series, two of its images twice."""
        fill(spool, series_files)
        fill(spool, series_files[:2])
        return spool


def test_files_come_back_byte_for_byte(spool: Spool, series_files: list[Path]) -> None:
    """A series that is not there is an error of its own."""
    fill(spool, series_files)
    assert sorted(spool.fetch_series(STUDY, SERIES)) == sorted(path.read_bytes() for path in series_files)
    with pytest.raises(SeriesNotFound):
        spool.find_instances(STUDY, "1.2.99")


def test_a_series_with_a_gap_is_not_whole(spool: Spool, series_files: list[Path]) -> None:
    """Slices may arrive in any order; their spacing shows that one is missing."""
    fill(spool, [*series_files[:2], *series_files[3:]])
    assert not spool.is_whole(STUDY, SERIES)
    fill(spool, series_files)
    assert spool.is_whole(STUDY, SERIES)


def test_a_series_with_fewer_images_than_announced_is_not_whole(spool: Spool, series_files: list[Path]) -> None:
    """Even without a gap, it must reach the number in Images in Acquisition."""
    for path in series_files:
        image = dcmread(path)
        image.ImagesInAcquisition = 6
        image.save_as(path)
    fill(spool, series_files[:5])
    assert not spool.is_whole(STUDY, SERIES)
    fill(spool, series_files)
    assert spool.is_whole(STUDY, SERIES)


def test_arrivals_say_how_long_no_image_came(spool: Spool, series_files: list[Path], tmp_path: Path) -> None:
    """A series without a new image for an hour is erased."""
    fill(spool, series_files)
    (arrival,) = spool.arrivals(time.time() + 7)
    assert (arrival.study, arrival.series, arrival.count) == (STUDY, SERIES, 6)
    assert 7 <= arrival.idle_s < 30
    assert spool.arrivals(time.time() + KEEP_S + 60) == []
    assert list((tmp_path / "received").iterdir()) == []


def test_uids_are_not_used_as_file_names(spool: Spool, tmp_path: Path, series_files: list[Path]) -> None:
    """UIDs that look like paths do not lead out of the spool."""
    spool.keep("../../etc", "../passwd", "../../shadow", series_files[0].read_bytes())
    (kept,) = (path for path in tmp_path.rglob("*") if path.is_file() and path not in series_files)
    assert kept.parent.parent == tmp_path / "received"
    assert os.path.commonpath([kept, tmp_path / "received"]) == str(tmp_path / "received")


def test_a_file_that_is_not_dicom_is_ignored(spool: Spool) -> None:
    """It belongs to no series and is erased in time."""
    spool.keep(STUDY, SERIES, "1.2.3", b"garbage" * 99)
    assert spool.arrivals(time.time()) == []
