import pydicom
import pytest
from pydicom.dataset import Dataset

from service.intake.dicom.stated import MOST_CHARACTERS, MOST_VALUES, stated_of, stated_together
from service.volume import Stated


def test_attributes_are_taken_as_text() -> None:
    """Each keyword gives all of its values, and none that is absent or empty."""
    dataset = Dataset()
    dataset.Modality, dataset.BodyPartExamined, dataset.EchoTime = "MR", "", "2.98"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    dataset.PatientName = "CNRY-73019"

    assert stated_of(dataset) == {"Modality": ("MR",), "ImageType": ("ORIGINAL", "PRIMARY", "M"), "EchoTime": ("2.98",)}


def test_an_enhanced_object_keeps_them_in_functional_groups_and_codes() -> None:
    """Echo time in the shared groups, contrast in the first frame's, the body part and the agent as coded concepts."""
    region, agent, echo, frame_type = Dataset(), Dataset(), Dataset(), Dataset()
    region.AnatomicRegionSequence = [Dataset()]
    region.AnatomicRegionSequence[0].CodeMeaning = "Knee"
    agent.CodeMeaning = "Gadolinium"
    echo.EffectiveEchoTime, frame_type.AcquisitionContrast = 91.0, "FLUID_ATTENUATED"
    dataset, shared, own = Dataset(), Dataset(), Dataset()
    shared.FrameAnatomySequence, shared.MREchoSequence = [region], [echo]
    own.MRImageFrameTypeSequence = [frame_type]
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], [own, Dataset()]
    dataset.ContrastBolusAgentSequence = [agent]

    assert stated_of(dataset) == {
        "BodyPartExamined": ("Knee",),
        "AcquisitionContrast": ("FLUID_ATTENUATED",),
        "ContrastBolusAgent": ("Gadolinium",),
        "EchoTime": ("91.0",),
    }


@pytest.mark.filterwarnings("ignore:The value length")
def test_what_is_kept_is_bounded() -> None:
    """A hostile header cannot fill the answer of the decoding process."""
    dataset = Dataset()
    dataset.ImageType = ["X"] * 1000
    dataset.add(pydicom.DataElement("SeriesDescription", "LO", "y" * 10_000, validation_mode=0))

    stated = stated_of(dataset)

    assert len(stated["ImageType"]) == MOST_VALUES
    assert len(stated["SeriesDescription"][0]) == MOST_CHARACTERS


def test_a_series_states_what_any_of_its_files_states() -> None:
    """Distinct values of all files, so that one echo that is refused is not hidden by the first."""
    files: list[Stated] = [{"EchoTime": ("3",)}, {"EchoTime": ("3", "90"), "Modality": ("MR",)}]

    assert stated_together(files) == {"EchoTime": ("3", "90"), "Modality": ("MR",)}
