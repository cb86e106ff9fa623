from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error, binary_f1_score

from service.bundle.schema import Region, ServiceConfig
from service.calibration.cohort import measure_case
from service.calibration.scores import ace, mce
from service.derived.measure import measure
from service.derived.surfaces import hd95_mm
from service.pipeline.grid import grid_of
from service.pipeline.predict import probabilities
from service.result.files import FRAME, LOGITS
from service.result.frame import Frame
from service.result.logits import encode_logits

MODEL = "tiny@0"


def result_of(folder: Path, frame: Frame, logits: npt.NDArray[np.float16]) -> Path:
    """Write the files of a result that `measure` reads."""
    (folder / LOGITS).write_bytes(b"".join(encode_logits(logits)))
    (folder / FRAME).write_text(frame.model_dump_json())
    return folder


def frame_of(
    config: ServiceConfig,
    scan_shape: tuple[int, int, int],
    orientation: list[tuple[int, int]],
    network: tuple[int, int, int],
) -> Frame:
    """Return a frame of voxels of 1 mm."""
    oriented = [0, 0, 0]
    for n, (axis, _flip) in zip(scan_shape, orientation, strict=True):
        oriented[axis] = n
    header = nib.Nifti1Header()
    header.set_data_shape(scan_shape)
    return Frame(
        scan_shape=scan_shape,
        orientation=orientation,
        oriented_shape=(oriented[0], oriented[1], oriented[2]),
        network_shape=network,
        step=(1, 1, 1),
        affine=np.eye(4).tolist(),
        header=header.binaryblock.hex(),
        config=config,
    )


IDENTITY = [(0, 1), (1, 1), (2, 1)]


def test_four_voxels_by_hand(tiny_config: ServiceConfig, tmp_path: Path) -> None:
    """Front has 2 of its 3 voxels and one of back's: DSC 2*2/(3+3); back is missed: DSC 0."""
    probs = np.array([[0.2, 0.2, 0.6, 0.2], [0.6, 0.6, 0.2, 0.6], [0.2, 0.2, 0.2, 0.2]])
    reference = np.array([1, 1, 1, 2], np.uint8).reshape(4, 1, 1)
    logits = np.log(probs).astype(np.float16).reshape(3, 4, 1, 1)
    result = result_of(tmp_path, frame_of(tiny_config, (4, 1, 1), IDENTITY, (4, 1, 1)), logits)

    actual = measure(result, reference, MODEL)

    front, back = actual.structures
    assert (front.name, front.reference_voxels, front.predicted_voxels) == ("front", 3, 3)
    assert front.dsc == pytest.approx(4 / 6)
    # Front: one voxel of p = 0.2 that is front, three of p = 0.6 of which two are.
    assert front.ace == pytest.approx((0.8 + abs(0.6 - 2 / 3)) / 2, abs=1e-3)
    assert front.ece == pytest.approx((0.8 + 3 * abs(0.6 - 2 / 3)) / 4, abs=1e-3)
    assert front.mce == pytest.approx(0.8, abs=1e-3)
    # On a line of single voxels all are surface: the stray fourth is 1 mm off, 0.9 mm at the percentile.
    assert front.hd95_mm == pytest.approx(0.9)
    assert back.hd95_mm is None
    assert (back.reference_voxels, back.predicted_voxels, back.dsc) == (1, 0, 0)
    assert actual.nll == pytest.approx(-np.log([0.6, 0.6, 0.2, 0.2]).mean(), abs=1e-3)
    assert actual.brier == pytest.approx((2 * (0.16 + 0.04 + 0.04) + (0.36 + 0.64 + 0.04) * 2) / 4, abs=1e-3)
    assert (actual.basis, actual.model) == ("measured", MODEL)


def test_a_structure_that_the_reference_lacks_has_no_scores(tiny_config: ServiceConfig, tmp_path: Path) -> None:
    """Scores are null, not 0 or NaN, which JSON lacks; the histogram exists all the same."""
    logits = np.zeros((3, 2, 2, 1), np.float16)
    logits[1] = 3
    result = result_of(tmp_path, frame_of(tiny_config, (2, 2, 1), IDENTITY, (2, 2, 1)), logits)

    actual = measure(result, np.ones((2, 2, 1), np.uint8), MODEL)

    assert [(structure.dsc is None, structure.ace is None) for structure in actual.structures] == [
        (False, False),
        (True, True),
    ]
    assert sum(actual.reliability.structures[1].count) == 4
    assert "NaN" not in actual.model_dump_json()


@pytest.mark.parametrize("slab_values", [1, 1 << 24], ids=["plane by plane", "at once"])
def test_scores_are_those_of_all_voxels_at_once(
    tiny_config: ServiceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slab_values: int
) -> None:
    """On a permuted, flipped and resampled grid sums equal `measure_case`'s, and ECE and DSC torchmetrics'."""
    monkeypatch.setattr("service.pipeline.preprocess.to_scan_slabs.__defaults__", (slab_values,))
    generator = np.random.default_rng(5)
    frame = frame_of(tiny_config, (7, 9, 8), [(2, -1), (0, 1), (1, -1)], (5, 6, 7))
    frame = frame.model_copy(update={"affine": np.diag([2.0, 0.5, 1.0, 1.0]).tolist()})
    logits = generator.normal(0, 2, (3, 5, 6, 7)).astype(np.float16)
    reference = generator.integers(3, size=(7, 9, 8)).astype(np.uint8)

    actual = measure(result_of(tmp_path, frame, logits), reference, MODEL)

    probs = probabilities(torch.from_numpy(logits), grid_of(frame), tiny_config)
    mask = probs.argmax(axis=0).astype(np.uint8)
    sums = measure_case("", "", probs, mask, reference)
    assert actual.brier == pytest.approx(sums.brier / reference.size)
    assert actual.nll == pytest.approx(sums.nll / reference.size)
    for c, structure in enumerate(actual.structures, start=1):
        is_c = torch.from_numpy(reference == c).int()
        in_place = mask == c
        assert structure.hd95_mm == pytest.approx(hd95_mm(reference == c, in_place, [2.0, 0.5, 1.0]))
        expected = binary_calibration_error(torch.from_numpy(probs[c]), is_c, n_bins=20)
        assert structure.ece == pytest.approx(float(expected), abs=1e-5)
        assert structure.dsc == pytest.approx(float(binary_f1_score(torch.from_numpy(mask == c).int(), is_c)))
        assert structure.ace == pytest.approx(ace(sums.histogram)[c])
        assert structure.mce == pytest.approx(mce(sums.histogram)[c])
        assert actual.reliability.structures[c - 1].count == sums.histogram.count[c].tolist()


def test_regions_are_scored_where_the_bundle_declares_them(tiny_config: ServiceConfig, tmp_path: Path) -> None:
    """A region of both labels covers the voxels of either."""
    config = tiny_config.model_copy(update={"regions": [Region(name="both", labels=[1, 2])]})
    logits = np.zeros((3, 2, 1, 1), np.float16)
    logits[1, 0], logits[0, 1] = 4, 4
    result = result_of(tmp_path, frame_of(config, (2, 1, 1), IDENTITY, (2, 1, 1)), logits)

    actual = measure(result, np.array([2, 0], np.uint8).reshape(2, 1, 1), MODEL)

    assert [(structure.name, structure.dsc) for structure in actual.structures] == [("both", 1)]
