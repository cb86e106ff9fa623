from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pydicom
import pytest

from service.result.dicom.objects import MAKERS, write_objects
from service.result.dicom.outcome import Outcome
from service.schemas import DEFAULT_OBJECTS, DicomObject
from tests.dicom_checks import faults_of

Changed = Callable[..., Outcome]
OBJECTS = get_args(DicomObject)

KNOWN_FAULTS = {
    "labelmap": {
        "Error - Information Object Not found",  # older than the class, Supplement 243
        "Error - SegmentNumber not monotonically increasing from one by one - have SegmentSequence item number 1 (from one) with SegmentNumber of 0",
    }
}
"""False positives of Debian 12's dciodvfy; docs/dicom.md lists them."""


@pytest.fixture(name="precise")
def precise_(outcome: Outcome) -> Outcome:
    """Return the outcome with a 16-bit confidence, of which all objects can be made."""
    return replace(outcome, confidence_KRC=outcome.confidence_KRC.astype(np.uint16) * 257)


def test_every_object_is_made(precise: Outcome, tmp_path: Path) -> None:
    """Every object that the API names has a maker and gives a valid file."""
    write_objects(precise, tmp_path, OBJECTS)

    assert set(MAKERS) == set(OBJECTS)
    assert {path.stem for path in tmp_path.iterdir()} == set(OBJECTS)
    for name in OBJECTS:
        assert set(faults_of(tmp_path / f"{name}.dcm")) <= KNOWN_FAULTS.get(name, set())
    modalities = {name: pydicom.dcmread(tmp_path / f"{name}.dcm").Modality for name in OBJECTS}
    assert modalities == {
        "seg": "SEG",
        "sr": "SR",
        "sc": "OT",
        "pm": "OT",
        "bands": "SEG",
        "labelmap": "SEG",
        "pdf": "DOC",
    }


def test_equal_results_give_equal_bytes(precise: Outcome, tmp_path: Path) -> None:
    """Objects made twice are equal: they contain no time of creation and nothing random."""
    (tmp_path / "again").mkdir()
    write_objects(precise, tmp_path, OBJECTS)
    write_objects(replace(precise), tmp_path / "again", OBJECTS)

    for name in OBJECTS:
        assert (tmp_path / f"{name}.dcm").read_bytes() == (tmp_path / "again" / f"{name}.dcm").read_bytes(), name


@pytest.mark.parametrize("name", ["Müller^Jörg", "Yamada^Tarou=山田^太郎"])
def test_names_of_every_alphabet_are_written(name: str, outcome: Outcome, tmp_path: Path) -> None:
    """Objects are in Unicode for any character set of the source."""
    alphabetic, _, ideographic = name.partition("=")
    person = {"Alphabetic": alphabetic} | ({"Ideographic": ideographic} if ideographic else {})
    outcome.source.head["00100010"]["Value"] = [person]
    write_objects(outcome, tmp_path, DEFAULT_OBJECTS)

    for dicom_object in DEFAULT_OBJECTS:
        made = pydicom.dcmread(tmp_path / f"{dicom_object}.dcm")
        assert made.SpecificCharacterSet == "ISO_IR 192"
        assert str(made.PatientName) == name


def test_a_source_with_few_attributes_suffices(outcome: Outcome, tmp_path: Path) -> None:
    """Objects of a series with only UIDs and a modality are valid."""
    needed = ("00080016", "00080018", "00080060", "0020000D", "0020000E")
    head = {tag: outcome.source.head[tag] for tag in needed}
    bare = outcome.source.model_copy(update={"head": head, "frame_of_reference": ""})
    write_objects(replace(outcome, source=bare), tmp_path, DEFAULT_OBJECTS)

    assert pydicom.dcmread(tmp_path / "seg.dcm").FrameOfReferenceUID
    for dicom_object in DEFAULT_OBJECTS:
        assert faults_of(tmp_path / f"{dicom_object}.dcm") == []
