"""Outcome -> the page that sums it up, as Secondary Capture (PS3.3 A.8.1), which every viewer shows, or as PDF."""

import io
from typing import Final

from highdicom.base import SOPClass
from highdicom.sc import SCImage
from highdicom.sr import CodedConcept
from PIL import Image
from pydicom import uid
from pydicom.sr.codedict import codes

from service.result.dicom.outcome import Outcome, reference
from service.result.dicom.picture import draw_page

TITLE: Final = "Summary by AI, research use only"
"""Document Title (0042,0010) of the PDF."""

_DOTS_PER_INCH: Final = 100


def make_capture(outcome: Outcome) -> SOPClass:
    """Return the page as an RGB image."""
    made = SCImage.from_ref_dataset(
        ref_dataset=outcome.images[0],
        pixel_array=draw_page(outcome),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        transfer_syntax_uid=uid.ExplicitVRLittleEndian,
        **outcome.common("sc"),
    )
    return outcome.finish(made, "sc")


def make_document(outcome: Outcome) -> SOPClass:
    """Return the page as Encapsulated PDF (PS3.3 A.45.1)."""
    made = SOPClass(
        study_instance_uid=outcome.images[0].StudyInstanceUID,
        sop_class_uid=uid.EncapsulatedPDFStorage,
        modality="DOC",
        transfer_syntax_uid=uid.ExplicitVRLittleEndian,
        **outcome.common("pdf"),
    )
    made.ConversionType, made.BurnedInAnnotation = "WSD", "NO"
    made.AcquisitionDateTime = None
    made.DocumentTitle = TITLE
    made.ConceptNameCodeSequence = [CodedConcept.from_code(codes.cid7021.ImagingMeasurementReport)]
    made.SourceInstanceSequence = [reference(*instance) for instance in outcome.source.instances.items()]
    made.MIMETypeOfEncapsulatedDocument = "application/pdf"
    content = _pdf(outcome)
    made.EncapsulatedDocumentLength = len(content)
    made.EncapsulatedDocument = content + b"\0" * (len(content) % 2)
    return outcome.finish(made, "pdf")


def _pdf(outcome: Outcome) -> bytes:
    file = io.BytesIO()
    created = outcome.created.timetuple()
    page = Image.fromarray(draw_page(outcome))
    page.save(file, "PDF", resolution=_DOTS_PER_INCH, title=TITLE, creationDate=created, modDate=created)
    return file.getvalue()
