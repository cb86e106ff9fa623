from pathlib import Path

import pytest

from service.errors import NoSourceSeries, ResultExpired
from service.result import files


def test_dicom_results_need_four_files(tmp_path: Path) -> None:
    """Mask, confidence, summary and the headers of the series are all needed."""
    needed = (files.SOURCE, files.MASK, files.CONFIDENCE, files.SUMMARY)
    for name in needed:
        (tmp_path / name).touch()
    assert files.offers_dicom(tmp_path)

    for name in needed:
        (tmp_path / name).unlink()
        assert not files.offers_dicom(tmp_path)
        (tmp_path / name).touch()


def test_only_a_series_has_dicom_results(tmp_path: Path) -> None:
    """Without the headers of a series there is no study that a DICOM object could belong to."""
    with pytest.raises(NoSourceSeries, match="NIfTI"):
        files.reject_without_series(tmp_path)
    (tmp_path / files.SOURCE).touch()

    files.reject_without_series(tmp_path)
    assert files.holds_series(tmp_path)


def test_without_logits_later_computations_are_refused(tmp_path: Path) -> None:
    """The error says how to get the logits again."""
    with pytest.raises(ResultExpired, match="Segment the scan again"):
        files.reject_without_logits(tmp_path)
    (tmp_path / files.LOGITS).touch()

    files.reject_without_logits(tmp_path)
