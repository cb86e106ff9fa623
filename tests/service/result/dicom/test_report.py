import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from service.result.dicom.codes import (
    CUT_OFF,
    ESTIMATED_DICE,
    FOUND,
    MEAN_CONFIDENCE,
    STATEMENT_STATUS,
    STATUSES,
    VOLUME_LOWER_BOUND,
    VOLUME_UPPER_BOUND,
)
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
    """DCMTK prints measurements with units, codes, the statement, and that the report is unverified."""
    actual = subprocess.run(
        [program("dsrdump", "dcmtk"), "+Pl", str(report)], capture_output=True, text=True, check=True
    ).stdout

    assert re.search(r"Preliminary Flag +: PRELIMINARY", actual)
    assert re.search(r"Verification Flag +: UNVERIFIED", actual)
    assert 'NUM:(,,"Volume")="180.0" (mm3,UCUM,"cubic millimeter")' in actual
    assert 'NUM:(,,"Mean confidence")="0.75" (1,UCUM,"no units")' in actual
    assert '"p-value against the persons of the calibration card")="0.25"' in actual
    assert '"Number of persons compared with")="33' in actual
    assert '(,,"Status of calibration statement")=(C19,99CALIBRANT,"Statement not compared")' in actual
    assert '"Not compared")="EchoTime, Modality"' in actual
    assert '(,,"Finding Site")=(5366008,SCT,"Hippocampus")' in actual
    assert 'Laterality")=(7771000,SCT,"Left")' in actual
    for text in ("Nothing is known.", "It is too large.", "2 files were left out.", "For research use only."):
        assert text in actual


def test_dciodvfy_finds_no_error(report: Path) -> None:
    """The private designator gives only a warning."""
    assert faults_of(report) == []


def test_highdicom_reads_the_measurements(report: Path) -> None:
    """Each structure has its figures and whether it is cut off; unknown values have no item."""
    content: Any = hd.sr.srread(report).content
    groups = content.get_volumetric_roi_measurement_groups()

    assert [group.tracking_identifier for group in groups] == ["left hippocampus", "tumour", "something"]
    figures = [{item.name.meaning: item.value for item in group.get_measurements()} for group in groups]
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


def test_a_structure_that_was_not_found_is_not_called_whole(changed: Changed, outcome: Outcome, tmp_path: Path) -> None:
    """The report says that it was not found, and nothing of the field of view."""
    first, *others = outcome.summary.structures
    lost = first.model_copy(update={"found": False, "volume_ml": None, "voxels": 0})
    write_objects(changed(summary=outcome.summary.model_copy(update={"structures": [lost, *others]})), tmp_path, ["sr"])
    content: Any = hd.sr.srread(tmp_path / "sr.dcm").content
    group, *_ = content.get_volumetric_roi_measurement_groups()

    assert group.get_qualitative_evaluations(FOUND)[0].value == codes.SCT.No
    assert group.get_qualitative_evaluations(CUT_OFF) == []
    assert faults_of(tmp_path / "sr.dcm") == []


def test_estimates_of_a_card_become_measurements(changed: Changed, tmp_path: Path) -> None:
    """An estimated Dice and the bounds of a volume are separate measurements."""
    write_objects(changed(estimates={11: StructureEstimate(0.84, 150.0, 210.0)}), tmp_path, ["sr"])
    content: Any = hd.sr.srread(tmp_path / "sr.dcm").content
    group, *_ = content.get_volumetric_roi_measurement_groups()
    actual = {(item.name.value, item.unit.value): item.value for item in group.get_measurements()}

    assert actual[ESTIMATED_DICE.value, "1"] == 0.84
    assert actual[VOLUME_LOWER_BOUND.value, "mm3"] == 150
    assert actual[VOLUME_UPPER_BOUND.value, "mm3"] == 210
    assert actual[MEAN_CONFIDENCE.value, "1"] == 0.875
    assert faults_of(tmp_path / "sr.dcm") == []


def test_it_refers_to_the_segmentation_and_to_every_instance(
    outcome: Outcome, report: Path, series: list[Dataset]
) -> None:
    """The UIDs of the segmentation are known before it is made."""
    segmentation = make_segmentation(outcome)
    (study,) = pydicom.dcmread(report).CurrentRequestedProcedureEvidenceSequence
    actual = {
        series_item.SeriesInstanceUID: {
            item.ReferencedSOPInstanceUID: item.ReferencedSOPClassUID for item in series_item.ReferencedSOPSequence
        }
        for series_item in study.ReferencedSeriesSequence
    }

    assert study.StudyInstanceUID == series[0].StudyInstanceUID
    assert actual == {
        series[0].SeriesInstanceUID: {image.SOPInstanceUID: uid.MRImageStorage for image in series},
        segmentation.SeriesInstanceUID: {segmentation.SOPInstanceUID: uid.SegmentationStorage},
    }


def test_a_newer_report_names_the_one_that_it_replaces(changed: Changed) -> None:
    """The old report is named in the predecessors and mentioned in the Series Description."""
    made = make_report(changed(supersedes=Superseded(series_instance_uid="1.2.9", sop_instance_uid="1.2.10")))
    (study,) = made.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence

    assert (study.StudyInstanceUID, series.SeriesInstanceUID) == (made.StudyInstanceUID, "1.2.9")
    (item,) = series.ReferencedSOPSequence
    assert (item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) == (uid.ComprehensiveSRStorage, "1.2.10")
    assert made.SeriesDescription.endswith("; replaces earlier one")


def test_the_private_coding_scheme_is_identified(report: Path) -> None:
    """The report names the organisation that is responsible for the designator."""
    (scheme,) = pydicom.dcmread(report).CodingSchemeIdentificationSequence
    assert (scheme.CodingSchemeDesignator, scheme.CodingSchemeResponsibleOrganization) == ("99CALIBRANT", "Calibrant")


def test_a_withdrawn_report_marks_every_structure_and_refers_to_no_segmentation(
    withdrawn: Outcome, series: list[Dataset], tmp_path: Path
) -> None:
    """A PACS may get it alone: each volume stands beside the status, no estimate is given, and the series says so."""
    marked = replace(withdrawn, estimates={11: StructureEstimate(0.84, 150.0, 210.0)})
    write_objects(marked, tmp_path, ["sr"])
    read = pydicom.dcmread(tmp_path / "sr.dcm")
    content: Any = hd.sr.srread(tmp_path / "sr.dcm").content
    image, *groups = content.get_image_measurement_groups()
    statuses = [group.get_qualitative_evaluations(STATEMENT_STATUS)[0].value for group in (image, *groups)]

    assert content.get_volumetric_roi_measurement_groups() == []
    assert [group.tracking_identifier for group in groups] == ["left hippocampus", "tumour", "something"]
    assert statuses == [STATUSES["withdrawn"]] * 4
    assert {item.name.meaning for item in groups[0].get_measurements()} == {
        *("Volume", "Mean confidence", "5th percentile of confidence"),
    }
    (study,) = read.CurrentRequestedProcedureEvidenceSequence
    assert [item.SeriesInstanceUID for item in study.ReferencedSeriesSequence] == [series[0].SeriesInstanceUID]
    assert read.SeriesDescription == "WITHDRAWN: Report by AI, research use only"
    assert faults_of(tmp_path / "sr.dcm") == []
