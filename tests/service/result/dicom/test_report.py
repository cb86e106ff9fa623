import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from service.result.dicom.codes import CUT_OFF, ESTIMATED_DICE, MEAN_CONFIDENCE, VOLUME_LOWER_BOUND, VOLUME_UPPER_BOUND
from service.result.dicom.objects import write_objects
from service.result.dicom.outcome import Outcome, StructureEstimate
from service.result.dicom.report import make_report
from service.result.dicom.segmentation import make_segmentation
from service.schemas import Superseded
from tests.dicom_checks import faults_of, program

Changed = Callable[..., Outcome]


@pytest.fixture(name="report")
def report_(outcome: Outcome, tmp_path: Path) -> Path:
    """Return the file of a report."""
    write_objects(outcome, tmp_path, ["sr"])
    return tmp_path / "sr.dcm"


def test_dsrdump_reads_it(report: Path) -> None:
    """DCMTK prints the tree: measurements with units, codes, the statement, and that nobody has verified it."""
    found = subprocess.run(
        [program("dsrdump", "dcmtk"), "+Pl", str(report)], capture_output=True, text=True, check=True
    ).stdout

    assert re.search(r"Preliminary Flag +: PRELIMINARY", found)
    assert re.search(r"Verification Flag +: UNVERIFIED", found)
    assert 'NUM:(,,"Volume")="180.0" (mm3,UCUM,"cubic millimeter")' in found
    assert 'NUM:(,,"Mean confidence")="0.75" (1,UCUM,"no units")' in found
    assert 'NUM:(,,"Expected accuracy")="0.8125"' in found
    assert '(,,"Status of calibration statement")=(C10,99CALIBRANT,"Statement withdrawn")' in found
    assert '(,,"Finding Site")=(5366008,SCT,"Hippocampus")' in found
    assert 'Laterality")=(7771000,SCT,"Left")' in found
    for text in ("Nothing is known.", "It is too large.", "2 files were left out.", "For research use only."):
        assert text in found


def test_dciodvfy_finds_no_error(report: Path) -> None:
    """Of the object itself; our designator is a warning."""
    assert faults_of(report) == []


def test_highdicom_reads_the_measurements(report: Path) -> None:
    """By structure: figures of the summary, the segment, cut off or not; what is unknown is not there."""
    found = hd.sr.srread(report)
    groups = found.content.get_volumetric_roi_measurement_groups()

    assert [group.tracking_identifier for group in groups] == ["left hippocampus", "tumour", "something"]
    figures = [{each.name.meaning: each.value for each in group.get_measurements()} for group in groups]
    assert figures == [
        {"Volume": 180.0, "Mean confidence": 0.875, "5th percentile of confidence": 0.5},
        {"Mean confidence": 0.875, "5th percentile of confidence": 0.5},
        {"Volume": 0.0},
    ]
    assert [group.get_qualitative_evaluations(CUT_OFF)[0].value for group in groups] == [
        codes.SCT.No,
        codes.SCT.Yes,
        codes.SCT.No,
    ]


def test_there_is_room_for_what_a_card_may_offer(changed: Changed, tmp_path: Path) -> None:
    """A Dice estimate and the bounds of a volume are measurements of their own."""
    write_objects(changed(estimates={11: StructureEstimate(0.84, 150.0, 210.0)}), tmp_path, ["sr"])
    group, *_ = hd.sr.srread(tmp_path / "sr.dcm").content.get_volumetric_roi_measurement_groups()
    found = {(each.name.value, each.unit.value): each.value for each in group.get_measurements()}

    assert found[ESTIMATED_DICE.value, "1"] == 0.84
    assert found[VOLUME_LOWER_BOUND.value, "mm3"] == 150
    assert found[VOLUME_UPPER_BOUND.value, "mm3"] == 210
    assert found[MEAN_CONFIDENCE.value, "1"] == 0.875
    assert faults_of(tmp_path / "sr.dcm") == []


def test_it_refers_to_the_segmentation_and_to_every_instance(
    outcome: Outcome, report: Path, series: list[Dataset]
) -> None:
    """The UIDs of the segmentation are known before there is one."""
    segmentation = make_segmentation(outcome)
    (study,) = pydicom.dcmread(report).CurrentRequestedProcedureEvidenceSequence
    found = {
        each.SeriesInstanceUID: {
            item.ReferencedSOPInstanceUID: item.ReferencedSOPClassUID for item in each.ReferencedSOPSequence
        }
        for each in study.ReferencedSeriesSequence
    }

    assert study.StudyInstanceUID == series[0].StudyInstanceUID
    assert found == {
        series[0].SeriesInstanceUID: {image.SOPInstanceUID: uid.MRImageStorage for image in series},
        segmentation.SeriesInstanceUID: {segmentation.SOPInstanceUID: uid.SegmentationStorage},
    }


def test_a_newer_report_names_the_one_that_it_replaces(changed: Changed) -> None:
    """In its predecessors, and in the description that every viewer shows."""
    made = make_report(changed(supersedes=Superseded(series_instance_uid="1.2.9", sop_instance_uid="1.2.10")))
    (study,) = made.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence

    assert (study.StudyInstanceUID, series.SeriesInstanceUID) == (made.StudyInstanceUID, "1.2.9")
    (item,) = series.ReferencedSOPSequence
    assert (item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) == (uid.ComprehensiveSRStorage, "1.2.10")
    assert made.SeriesDescription.endswith("; replaces earlier one")


def test_our_codes_are_identified(report: Path) -> None:
    """Whoever meets the designator is told who answers for it."""
    (scheme,) = pydicom.dcmread(report).CodingSchemeIdentificationSequence
    assert (scheme.CodingSchemeDesignator, scheme.CodingSchemeResponsibleOrganization) == ("99CALIBRANT", "Calibrant")
