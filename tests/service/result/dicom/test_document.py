import shutil
import subprocess
from pathlib import Path

import pydicom

from service.result.dicom.document import TITLE
from service.result.dicom.objects import write_objects
from service.result.dicom.outcome import Outcome
from tests.dicom_checks import faults_of, program


def test_the_document_is_a_pdf(outcome: Outcome, tmp_path: Path) -> None:
    """DCMTK takes the PDF out of it, of the length that the object says; dciodvfy finds no error."""
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
    """The title is ours; the patient stands in the attributes, not in the PDF."""
    write_objects(outcome, tmp_path, ["pdf"])
    made = pydicom.dcmread(tmp_path / "pdf.dcm")

    assert made.DocumentTitle == TITLE == "Summary by AI, research use only"
    assert made.MIMETypeOfEncapsulatedDocument == "application/pdf"
    assert b"CANARY" not in made.EncapsulatedDocument
    assert len(made.SourceInstanceSequence) == 8
