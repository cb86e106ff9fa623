from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import torch

from service.bundle.reader import load_bundle
from service.derived.dicom import read_outcome, write_dicom
from service.pipeline.run import run_case
from service.schemas import CaseResult, Summary
from tests.dicom_checks import faults_of, labels_by_place
from tests.dicom_series import series_of_array, write_series, zip_of_series


@pytest.fixture(name="result")
def result_(tiny_bundle: Path, oblique: npt.NDArray[np.float64], tmp_path: Path) -> Path:
    """Return the folder of a result of an oblique series whose third axis runs against the slices' normal."""
    array = np.random.default_rng(1).normal(100, 9, (12, 10, 8)).astype(np.float32)
    images = series_of_array(array, oblique @ np.diag([1.0, 1, -1, 1]))
    (tmp_path / "scan.zip").write_bytes(zip_of_series(images))
    write_series(images, tmp_path / "source")
    (tmp_path / "result").mkdir()
    bundle = load_bundle(tiny_bundle, torch.device("cpu"))
    run_case(tmp_path / "scan.zip", bundle, tmp_path / "result", lambda _stage, _done: None)
    return tmp_path / "result"


def test_the_segmentation_lies_on_the_mask(result: Path, tmp_path: Path) -> None:
    """Frames and mask.nii.gz agree voxel by voxel in patient coordinates."""
    write_dicom(result, tmp_path, ["seg", "sr"], None)
    mask = nib.Nifti1Image.from_filename(result / "mask.nii.gz")
    actual = labels_by_place(pydicom.dcmread(tmp_path / "seg.dcm"), mask.affine, mask.shape)

    np.testing.assert_array_equal(actual, np.asarray(mask.dataobj))  # the tiny bundle's labels are 1 and 2
    assert len(np.unique(actual)) > 1
    assert faults_of(tmp_path / "seg.dcm") == faults_of(tmp_path / "sr.dcm") == []


def test_the_map_has_the_probabilities_of_the_logits(result: Path, tmp_path: Path) -> None:
    """It has 16 bits of the confidence that is stored with 8."""
    write_dicom(result, tmp_path, ["pm"], None)
    frames = pydicom.dcmread(tmp_path / "pm.dcm").pixel_array / 65535
    stored = nib.Nifti1Image.from_filename(result / "confidence.nii.gz").get_fdata()

    np.testing.assert_allclose(frames[::-1], stored.T, atol=0.5 / 255 + 1e-4)
    assert len(np.unique(frames)) > len(np.unique(stored))


def test_an_outcome_is_what_the_folder_holds(result: Path) -> None:
    """It has the summary, the date and the hashes of weights and card."""
    case = CaseResult.model_validate_json((result / "result.json").read_bytes())
    outcome = read_outcome(result)

    assert outcome.summary == Summary.model_validate_json((result / "summary.json").read_bytes())
    assert outcome.created == case.created
    assert (outcome.model.weights_sha256, outcome.model.card_sha256) == (case.weights_sha256, case.card_sha256)
    assert case.model == f"{outcome.model.name}@{outcome.model.bundle_sha256}"
    assert [label.value for label in outcome.labels] == [1, 2]


@pytest.mark.parametrize("name", ["mask.nii.gz", "confidence.nii.gz", "summary.json"])
def test_other_content_has_another_key(name: str, result: Path) -> None:
    """The UIDs depend on each of the files that are shown."""
    before = read_outcome(result).key("seg")
    case = CaseResult.model_validate_json((result / "result.json").read_bytes())
    changed = case.model_copy(update={"files": case.files | {name: "0" * 64}})
    (result / "result.json").write_text(changed.model_dump_json())

    assert read_outcome(result).key("seg") != before


def test_an_older_result_is_refused(result: Path) -> None:
    """Without a date the objects would not be reproducible."""
    case = CaseResult.model_validate_json((result / "result.json").read_bytes())
    (result / "result.json").write_text(case.model_copy(update={"created": None}).model_dump_json())

    with pytest.raises(ValueError, match="neither its date nor"):
        read_outcome(result)
