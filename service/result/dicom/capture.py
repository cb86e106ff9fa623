"""Outcome -> Secondary Capture (PS3.3 A.8) of the page that sums it up: every viewer shows it."""

from highdicom.base import SOPClass
from highdicom.sc import SCImage
from pydicom import uid

from service.result.dicom.outcome import Outcome
from service.result.dicom.picture import draw_page


def make_capture(outcome: Outcome) -> SOPClass:
    """Return the page as RGB image."""
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
