import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK

from service.result.dicom.objects import write_objects
from service.result.dicom.outcome import Outcome
from service.result.dicom.pageobjects import TITLE
from service.result.dicom.picture import draw_page
from tests.dicom_checks import faults_of, program


def test_the_capture_is_the_page(outcome: Outcome, tmp_path: Path) -> None:
    """SimpleITK reads the pixels that were drawn; dciodvfy finds no error."""
    write_objects(outcome, tmp_path, ["sc"])
    image = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(tmp_path / "sc.dcm"))

    np.testing.assert_array_equal(image.reshape(draw_page(outcome).shape), draw_page(outcome))
    assert faults_of(tmp_path / "sc.dcm") == []


def test_the_capture_belongs_to_the_study(outcome: Outcome, tmp_path: Path) -> None:
    """It stands in a series of its own, as modality OT, and not as an original image."""
    write_objects(outcome, tmp_path, ["sc"])
    made = pydicom.dcmread(tmp_path / "sc.dcm")

    assert made.StudyInstanceUID == outcome.images[0].StudyInstanceUID
    assert made.SeriesInstanceUID != outcome.images[0].SeriesInstanceUID
    assert made.Modality == "OT"
    assert made.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage


def test_the_document_is_a_pdf(outcome: Outcome, tmp_path: Path) -> None:
    """DCMTK extracts a PDF of the length that the object states; dciodvfy finds no error."""
    write_objects(outcome, tmp_path, ["pdf"])
    assert faults_of(tmp_path / "pdf.dcm") == []

    subprocess.run([program("dcm2pdf", "dcmtk"), str(tmp_path / "pdf.dcm"), str(tmp_path / "page.pdf")], check=True)
    content = (tmp_path / "page.pdf").read_bytes()
    assert content.startswith(b"%PDF-")
    assert content.rstrip(b"\0\n").endswith(b"%%EOF")
    made = pydicom.dcmread(tmp_path / "pdf.dcm")
    assert len(content) in (made.EncapsulatedDocumentLength, made.EncapsulatedDocumentLength + 1)
    if pdfinfo := shutil.which("pdfinfo"):
        assert b"Pages:" in subprocess.run([pdfinfo, tmp_path / "page.pdf"], capture_output=True, check=True).stdout


def test_the_document_says_what_it_is_for_and_names_nobody(outcome: Outcome, tmp_path: Path) -> None:
    """The title says research use; the patient stands in the attributes, not in the PDF."""
    write_objects(outcome, tmp_path, ["pdf"])
    made = pydicom.dcmread(tmp_path / "pdf.dcm")

    assert made.DocumentTitle == TITLE == "Summary by AI, research use only"
    assert made.MIMETypeOfEncapsulatedDocument == "application/pdf"
    assert b"CANARY" not in made.EncapsulatedDocument
    assert len(made.SourceInstanceSequence) == 8
