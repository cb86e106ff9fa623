import os
import time
from pathlib import Path

import pytest
from pydicom import dcmread

from service.errors import SeriesNotFound
from service.pacs.spool import KEEP_S, Spool

STUDY, SERIES = "1.2.4", "1.2.5"


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """Return an empty spool."""
    (tmp_path / "received").mkdir()
    return Spool(tmp_path / "received")


def fill(spool: Spool, files: list[Path]) -> None:
    """Keep files, as a sender would have them kept."""
    for path in files:
        spool.keep(STUDY, SERIES, str(dcmread(path).SOPInstanceUID), path.read_bytes())


def test_what_is_kept_is_a_source(spool: Spool, series_files: list[Path]) -> None:
    """Found by either UID, listed and fetched like a series of a PACS; the same instance again is one."""
    fill(spool, series_files)
    fill(spool, series_files[:2])
    (found,) = spool.find_series(series=SERIES)
    assert (found.study, found.modality, found.instances) == (STUDY, "CT", 6)
    assert spool.find_series(study="1.2.99") == []
    assert spool.find_instances(STUDY, SERIES) == [f"1.2.3.{k + 1}" for k in range(6)]
    assert sorted(spool.fetch_series(STUDY, SERIES)) == sorted(path.read_bytes() for path in series_files)
    with pytest.raises(SeriesNotFound):
        spool.find_instances(STUDY, "1.2.99")


def test_a_series_with_a_gap_is_not_whole(spool: Spool, series_files: list[Path]) -> None:
    """Slices come in any order; the spacing tells that one is missing."""
    fill(spool, [*series_files[:2], *series_files[3:]])
    assert not spool.is_whole(STUDY, SERIES)
    fill(spool, series_files)
    assert spool.is_whole(STUDY, SERIES)


def test_a_series_that_tells_its_number_is_waited_for(spool: Spool, series_files: list[Path]) -> None:
    """Without a gap, but fewer than Images in Acquisition."""
    for path in series_files:
        image = dcmread(path)
        image.ImagesInAcquisition = 6
        image.save_as(path)
    fill(spool, series_files[:5])
    assert not spool.is_whole(STUDY, SERIES)
    fill(spool, series_files)
    assert spool.is_whole(STUDY, SERIES)


def test_arrivals_tell_how_long_nothing_came(spool: Spool, series_files: list[Path], tmp_path: Path) -> None:
    """What has lain for an hour is erased."""
    fill(spool, series_files)
    (arrival,) = spool.arrivals(time.time() + 7)
    assert (arrival.study, arrival.series, arrival.count) == (STUDY, SERIES, 6)
    assert 7 <= arrival.idle_s < 30
    assert spool.arrivals(time.time() + KEEP_S + 60) == []
    assert list((tmp_path / "received").iterdir()) == []


def test_names_of_files_tell_nothing(spool: Spool, tmp_path: Path, series_files: list[Path]) -> None:
    """A UID is what a stranger sent: it leads nowhere."""
    spool.keep("../../etc", "../passwd", "../../shadow", series_files[0].read_bytes())
    found = [path for path in tmp_path.rglob("*") if path.is_file() and path not in series_files]
    assert len(found) == 1
    assert found[0].parent.parent == tmp_path / "received"
    assert os.path.commonpath([found[0], tmp_path / "received"]) == str(tmp_path / "received")


def test_what_is_no_dicom_is_left_until_it_is_erased(spool: Spool) -> None:
    """It is nobody's series."""
    spool.keep(STUDY, SERIES, "1.2.3", b"garbage" * 99)
    assert spool.arrivals(time.time()) == []
