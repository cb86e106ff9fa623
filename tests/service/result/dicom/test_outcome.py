import uuid
from collections.abc import Callable

import pytest
from pydicom import uid

from service.result.dicom.outcome import SERIES, ModelIdentity, Outcome
from service.result.dicom.pageobjects import make_capture
from service.result.dicom.segmentation import make_segmentation
from service.schemas import Superseded
from tests.dicom_series import CANARY_ID, CANARY_NAME

Changed = Callable[..., Outcome]


def test_uids_follow_from_the_content(outcome: Outcome, changed: Changed) -> None:
    """Equal outcomes have equal UIDs; each object and series has its own name-based UUID (PS3.5 B.2)."""
    uids = {outcome.uid(dicom_object, what) for dicom_object in SERIES for what in ("series", "instance")}

    assert len(uids) == 2 * len(SERIES)
    assert outcome.uid("seg", "instance") == changed().uid("seg", "instance")
    for text in uids:
        assert uid.UID(text).is_valid
        assert uuid.UUID(int=int(text.removeprefix("2.25."))).version == 5


@pytest.mark.parametrize(
    "fields",
    [
        {"content": "0" * 64},
        {"model": ModelIdentity("tiny", "0.0.1", "b" * 64, "0" * 64, "c" * 64)},
        {"model": ModelIdentity("tiny", "0.0.1", "b" * 64, "w" * 64, "0" * 64)},
        {"supersedes": Superseded(series_instance_uid="1.2", sop_instance_uid="1.3")},
    ],
    ids=["content", "weights", "card", "supersedes"],
)
def test_a_changed_outcome_has_other_uids(fields: dict[str, object], outcome: Outcome, changed: Changed) -> None:
    """A PACS keeps the first object of a UID, so a changed object must not reuse it."""
    other = changed(**fields)
    assert other.uid("seg", "instance") != outcome.uid("seg", "instance")
    assert other.uid("seg", "series") != outcome.uid("seg", "series")


def test_other_instances_give_other_uids_in_any_order(outcome: Outcome, changed: Changed) -> None:
    """A missing slice changes the UIDs; the order of the slices does not."""
    source = outcome.source
    fewer = source.model_copy(update={"slices": source.slices[:-1]})
    reversed_slices = source.model_copy(update={"slices": source.slices[::-1]})

    assert changed(source=fewer).key("seg") != outcome.key("seg")
    assert changed(source=reversed_slices).key("seg") == outcome.key("seg")


def test_identity_is_copied_and_dates_are_the_results(outcome: Outcome) -> None:
    """Patient attributes are the source's, even invalid ones; dates are those of the result."""
    head = outcome.source.head
    head["00100040"]["Value"], head["00100030"]["Value"] = ["X"], ["yesterdy"]
    made = make_capture(outcome)

    assert (made.PatientName, made.PatientID) == (CANARY_NAME, CANARY_ID)
    assert (made.PatientSex, str(made.PatientBirthDate)) == ("X", "yesterdy")
    assert (made.AccessionNumber, made.StudyDescription) == ("CANARY-ACC", "CANARY study")
    assert (str(made.ContentDate), str(made.ContentTime)) == ("20260304", "050607")
    assert (str(made.InstanceCreationDate), str(made.InstanceCreationTime)) == ("20260304", "050607")
    assert "CANARY series" not in str(made)
    assert "CANARY hospital" not in str(made)


def test_the_series_says_what_it_is_for(outcome: Outcome, changed: Changed) -> None:
    """The description says research use only, and whether the series replaces another, within 64 characters."""
    newer = changed(supersedes=Superseded(series_instance_uid="1.2", sop_instance_uid="1.3"))

    for dicom_object in SERIES:
        assert outcome.common(dicom_object)["series_description"].endswith("by AI, research use only")
        note = newer.common(dicom_object)["series_description"]
        assert note.endswith("; replaces earlier one")
        assert len(note) <= 64


def test_references_name_the_true_class(outcome: Outcome, changed: Changed) -> None:
    """References have the source's SOP class, here Secondary Capture, not the placeholder for highdicom."""
    slices = [
        source.model_copy(update={"sop_class": uid.SecondaryCaptureImageStorage}) for source in outcome.source.slices
    ]
    made = make_segmentation(changed(source=outcome.source.model_copy(update={"slices": slices})))

    items = made.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert {item.ReferencedSOPClassUID for item in items} == {uid.SecondaryCaptureImageStorage}
    frame = made.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    assert frame.ReferencedSOPClassUID == uid.SecondaryCaptureImageStorage
    assert "ReferencedFrameNumber" not in frame
