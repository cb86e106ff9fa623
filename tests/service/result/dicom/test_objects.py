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
KINDS = get_args(DicomObject)

KNOWN_FAULTS = {
    "labelmap": {
        "Error - Information Object Not found",  # older than the class, Supplement 243
        "Error - SegmentNumber not monotonically increasing from one by one - have SegmentSequence item number 1 (from one) with SegmentNumber of 0",
    }
}
"""What dciodvfy of Debian 12 finds though it is right; docs/dicom.md repeats it."""


@pytest.fixture(name="precise")
def precise_(outcome: Outcome) -> Outcome:
    """Return the outcome with a confidence of 16 bits, of which everything can be made."""
    return replace(outcome, confidence_KRC=outcome.confidence_KRC.astype(np.uint16) * 257)


def test_every_kind_is_made(precise: Outcome, tmp_path: Path) -> None:
    """One file a kind, of the kind that the API names, valid as far as dciodvfy knows it."""
    write_objects(precise, tmp_path, KINDS)

    assert set(MAKERS) == set(KINDS)
    assert {path.stem for path in tmp_path.iterdir()} == set(KINDS)
    for kind in KINDS:
        assert set(faults_of(tmp_path / f"{kind}.dcm")) <= KNOWN_FAULTS.get(kind, set())
    modalities = {kind: pydicom.dcmread(tmp_path / f"{kind}.dcm").Modality for kind in KINDS}
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
    """Made twice, at two times: nothing of the clock and nothing random is in them."""
    (tmp_path / "again").mkdir()
    write_objects(precise, tmp_path, KINDS)
    write_objects(replace(precise), tmp_path / "again", KINDS)

    for kind in KINDS:
        assert (tmp_path / f"{kind}.dcm").read_bytes() == (tmp_path / "again" / f"{kind}.dcm").read_bytes(), kind


@pytest.mark.parametrize("name", ["Müller^Jörg", "Yamada^Tarou=山田^太郎"])
def test_names_of_every_alphabet_are_written(name: str, outcome: Outcome, tmp_path: Path) -> None:
    """The objects are in Unicode, whatever the source was in."""
    alphabetic, _, ideographic = name.partition("=")
    person = {"Alphabetic": alphabetic} | ({"Ideographic": ideographic} if ideographic else {})
    outcome.source.head["00100010"]["Value"] = [person]
    write_objects(outcome, tmp_path, DEFAULT_OBJECTS)

    for kind in DEFAULT_OBJECTS:
        made = pydicom.dcmread(tmp_path / f"{kind}.dcm")
        assert made.SpecificCharacterSet == "ISO_IR 192"
        assert str(made.PatientName) == name


def test_the_source_need_not_say_much(outcome: Outcome, tmp_path: Path) -> None:
    """A series with nothing but UIDs and a modality, and without a frame of reference."""
    needed = ("00080016", "00080018", "00080060", "0020000D", "0020000E")
    head = {tag: outcome.source.head[tag] for tag in needed}
    bare = outcome.source.model_copy(update={"head": head, "frame_of_reference": ""})
    write_objects(replace(outcome, source=bare), tmp_path, DEFAULT_OBJECTS)

    assert pydicom.dcmread(tmp_path / "seg.dcm").FrameOfReferenceUID
    for kind in DEFAULT_OBJECTS:
        assert faults_of(tmp_path / f"{kind}.dcm") == []
