import hashlib
import time

import pytest
from pydantic import ValidationError

from service.errors import UnsuitableSeries
from service.pacs.selection import Selection, Series, digest_of, reject_unsuitable

T1 = Series("1.2", "1.2.3", "MR", "Sag T1 MPRAGE", "HIPPOCAMPUS", "SIEMENS", 176)


@pytest.mark.parametrize(
    ("selection", "fits"),
    [
        ({}, True),
        ({"modality": "mr"}, True),
        ({"modality": "CT"}, False),
        ({"description": "t1.*rage"}, True),
        ({"description": "^T1"}, False),
        ({"body_part": "Hippocampus"}, True),
        ({"body_part": "BRAIN"}, False),
        ({"min_instances": 176, "max_instances": 176}, True),
        ({"min_instances": 177}, False),
        ({"max_instances": 175}, False),
        ({"modality": "MR", "description": "T2"}, False),
    ],
)
def test_a_series_must_meet_all_criteria(selection: dict[str, object], *, fits: bool) -> None:
    """Modality, description, body part and number of images must match; criteria left out match any series."""
    assert Selection.model_validate(selection).fits(T1) is fits


def test_a_series_of_unknown_length_fits_no_range() -> None:
    """Without a number of instances the range cannot be checked."""
    unknown = Series("1.2", "1.2.3", "MR")
    assert not Selection(min_instances=1).fits(unknown)
    assert Selection(modality="MR").fits(unknown)


def test_a_pattern_cannot_take_forever() -> None:
    """A pattern that takes exponential time in Python is evaluated at once."""
    hostile = Selection(description="(a+)+$")
    started = time.monotonic()
    assert not hostile.fits(Series("1", "2", "MR", "a" * 60 + "b"))
    assert time.monotonic() - started < 1
    for bad in ("(", r"(a)\1", "(?<=a)b"):
        with pytest.raises(ValidationError):
            Selection(description=bad)


@pytest.mark.parametrize("modality", ["SEG", "SR", "PM", "OT", "DOC", "PR", "KO", "seg", ""])
def test_results_and_documents_are_never_segmented(modality: str) -> None:
    """The first part of the loop guard refuses modalities that are not images."""
    with pytest.raises(UnsuitableSeries, match="results or documents"):
        reject_unsuitable(Series("1.2", "1.2.3", modality))


def test_results_of_this_service_are_never_segmented() -> None:
    """The second part of the loop guard refuses the service's own objects of any modality."""
    with pytest.raises(UnsuitableSeries, match="made by this service"):
        reject_unsuitable(Series("1.2", "1.2.3", "MR", manufacturer="CALIBRANT "))
    reject_unsuitable(T1)


def test_the_digest_depends_on_the_set_of_images_alone() -> None:
    """Order and repetition do not change it; another image does."""
    assert digest_of(["1.2", "1.1", "1.2"]) == hashlib.sha256(b"1.1\n1.2").hexdigest()
    assert digest_of(["1.1"]) != digest_of(["1.1", "1.2"])
