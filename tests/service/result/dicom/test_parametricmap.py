from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest

from service.result.dicom.objects import write_objects
from service.result.dicom.outcome import Outcome
from service.result.dicom.parametricmap import make_parametric_map
from service.volume import Volume
from tests.dicom_checks import faults_of

Changed = Callable[..., Outcome]


@pytest.fixture(name="precise")
def precise_(changed: Changed) -> Outcome:
    """Return the outcome with a 16-bit confidence."""
    confidence = np.random.default_rng(8).integers(20_000, 65_536, (8, 10, 12)).astype(np.uint16)
    return changed(confidence_KRC=confidence)


def test_the_map_holds_every_slice_in_order(precise: Outcome, volume: Volume, tmp_path: Path) -> None:
    """Frames are uncompressed 16 bits, in descending order along the normal, row x column."""
    write_objects(precise, tmp_path, ["pm"])
    made = pydicom.dcmread(tmp_path / "pm.dcm")

    assert not made.file_meta.TransferSyntaxUID.is_compressed
    assert (made.BitsAllocated, made.NumberOfFrames) == (16, 8)
    np.testing.assert_array_equal(made.pixel_array, precise.confidence_KRC[::-1])
    places = np.array([frame.PlanePositionSequence[0].ImagePositionPatient for frame in made.PerFrameFunctionalGroupsSequence], float)  # fmt: skip
    ras = (volume.affine @ [np.zeros(8), np.zeros(8), np.arange(8)[::-1], np.ones(8)])[:3].T
    np.testing.assert_allclose(places * [-1, -1, 1], ras, atol=1e-3)


def test_highdicom_reads_probabilities(precise: Outcome, tmp_path: Path) -> None:
    """Real-world values are the stored values divided by 65535."""
    write_objects(precise, tmp_path, ["pm"])
    frames = hd.imread(tmp_path / "pm.dcm").get_frames(apply_real_world_transform=True)

    np.testing.assert_allclose(frames, precise.confidence_KRC[::-1] / 65535, atol=1e-7)


def test_dciodvfy_finds_no_error(precise: Outcome, tmp_path: Path) -> None:
    """The object is valid even if the source names no body part."""
    write_objects(precise, tmp_path, ["pm"])
    assert faults_of(tmp_path / "pm.dcm") == []

    del precise.source.head["00180015"]
    write_objects(precise, tmp_path, ["pm"])
    assert faults_of(tmp_path / "pm.dcm") == []


def test_eight_bits_are_no_parametric_map(outcome: Outcome) -> None:
    """Viewers would misread 8-bit maps, so they are refused."""
    with pytest.raises(ValueError, match="expected uint16"):
        make_parametric_map(outcome)
