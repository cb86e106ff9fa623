from pathlib import Path

import numpy as np
import pydicom
import SimpleITK

from service.result.dicom.objects import write_objects
from service.result.dicom.outcome import Outcome
from service.result.dicom.picture import draw_page
from tests.dicom_checks import faults_of


def test_the_capture_is_the_page(outcome: Outcome, tmp_path: Path) -> None:
    """SimpleITK reads the pixels that were drawn; dciodvfy finds no error."""
    write_objects(outcome, tmp_path, ["sc"])
    image = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(tmp_path / "sc.dcm"))

    np.testing.assert_array_equal(image.reshape(draw_page(outcome).shape), draw_page(outcome))
    assert faults_of(tmp_path / "sc.dcm") == []


def test_the_capture_belongs_to_the_study(outcome: Outcome, tmp_path: Path) -> None:
    """In a series of its own, as modality OT, and not as an original image."""
    write_objects(outcome, tmp_path, ["sc"])
    made = pydicom.dcmread(tmp_path / "sc.dcm")

    assert made.StudyInstanceUID == outcome.images[0].StudyInstanceUID
    assert made.SeriesInstanceUID != outcome.images[0].SeriesInstanceUID
    assert made.Modality == "OT"
    assert made.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage
