import datetime as dt
import io
from pathlib import Path

import numpy as np
import pydicom

from service.derived.refusal import write_refusal
from service.intake.dicom.series import decode
from tests.dicom_checks import faults_of
from tests.dicom_series import series_of_array, zip_of_series


def test_a_refusal_is_a_report_in_the_study(tiny_bundle: Path, tmp_path: Path) -> None:
    """It says why, is marked, and belongs to the patient and study of the series; it holds no measurement."""
    images = series_of_array(np.ones((6, 5, 4), np.int16), np.eye(4))
    source = decode(io.BytesIO(zip_of_series(images))).source
    assert source is not None

    write_refusal(
        source, tmp_path, tiny_bundle, "Modality is CT; accepted: MR.", dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    )

    report = pydicom.dcmread(tmp_path / "sr.dcm")
    assert (report.StudyInstanceUID, report.PatientID) == (images[0].StudyInstanceUID, images[0].PatientID)
    assert report.SeriesDescription.startswith("WITHDRAWN: ")
    texts = [element.value for element in report.iterall() if element.keyword == "TextValue"]
    assert "Modality is CT; accepted: MR." in texts
    assert "Refused: the model is not made for this series, which was not segmented." in texts
    assert "NUM" not in {element.value for element in report.iterall() if element.keyword == "ValueType"}
    assert faults_of(tmp_path / "sr.dcm") == []
