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


def test_uids_follow_from_what_is_shown(outcome: Outcome, changed: Changed) -> None:
    """The same again gives the same; each kind and each part has its own; they are name-based UUIDs (PS3.5 B.2)."""
    actual = {outcome.uid(kind, what) for kind in SERIES for what in ("series", "instance")}

    assert len(actual) == 2 * len(SERIES)
    assert outcome.uid("seg", "instance") == changed().uid("seg", "instance")
    for each in actual:
        assert uid.UID(each).is_valid
        assert uuid.UUID(int=int(each.removeprefix("2.25."))).version == 5


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
def test_what_changes_gets_other_uids(fields: dict[str, object], outcome: Outcome, changed: Changed) -> None:
    """A PACS keeps the first object of a UID: a changed one must not have it."""
    other = changed(**fields)
    assert other.uid("seg", "instance") != outcome.uid("seg", "instance")
    assert other.uid("seg", "series") != outcome.uid("seg", "series")


def test_other_instances_get_other_uids_in_whatever_order(outcome: Outcome, changed: Changed) -> None:
    """Late slices make another result; the order of the slices does not."""
    source = outcome.source
    fewer = source.model_copy(update={"slices": source.slices[:-1]})
    turned = source.model_copy(update={"slices": source.slices[::-1]})

    assert changed(source=fewer).key("seg") != outcome.key("seg")
    assert changed(source=turned).key("seg") == outcome.key("seg")


def test_identity_is_copied_and_dates_are_the_results(outcome: Outcome) -> None:
    """Whose it is as in the source, also a sex and a date that are none; when it was made as the result says."""
    head = outcome.source.head
    head["00100040"]["Value"], head["00100030"]["Value"] = ["X"], ["yesterdy"]
    made = make_capture(outcome)

    assert (made.PatientName, made.PatientID) == (CANARY_NAME, CANARY_ID)
    assert (made.PatientSex, made.PatientBirthDate) == ("X", "yesterdy")
    assert (made.AccessionNumber, made.StudyDescription) == ("CANARY-ACC", "CANARY study")
    assert (str(made.ContentDate), str(made.ContentTime)) == ("20260304", "050607")
    assert (str(made.InstanceCreationDate), str(made.InstanceCreationTime)) == ("20260304", "050607")
    assert "CANARY series" not in str(made)
    assert "CANARY hospital" not in str(made)


def test_the_series_says_what_it_is_for(outcome: Outcome, changed: Changed) -> None:
    """Research use only, within the 64 characters of a description; one that replaces another says that, too."""
    newer = changed(supersedes=Superseded(series_instance_uid="1.2", sop_instance_uid="1.3"))

    for kind in SERIES:
        assert outcome.common(kind)["series_description"].endswith("by AI, research use only")
        note = newer.common(kind)["series_description"]
        assert note.endswith("; replaces earlier one")
        assert len(note) <= 64


def test_references_name_the_true_class(outcome: Outcome, changed: Changed) -> None:
    """What highdicom was told is MR is what it really was, here a secondary capture with a place in the patient."""
    slices = [each.model_copy(update={"sop_class": uid.SecondaryCaptureImageStorage}) for each in outcome.source.slices]
    made = make_segmentation(changed(source=outcome.source.model_copy(update={"slices": slices})))

    items = made.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert {item.ReferencedSOPClassUID for item in items} == {uid.SecondaryCaptureImageStorage}
    frame = made.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    assert frame.ReferencedSOPClassUID == uid.SecondaryCaptureImageStorage
    assert "ReferencedFrameNumber" not in frame
