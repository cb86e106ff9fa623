import gzip
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from service.bundle.acceptance import Acceptance, Words
from service.bundle.card import CalibrationCard
from service.bundle.registry import DEFAULT_MODEL
from service.commands.predict import Prediction, predict_here, predict_there
from service.errors import ConstantVolume, ModelNotFound, ScanNotAccepted, ServerUnreachable
from service.schemas import RESEARCH_USE_ONLY, Statement, Structure, Summary

STATEMENT = Statement(
    status="withdrawn",
    text="Withdrawn: unlike.",
    reasons=["extent along axis 1: 9.0 mm"],
    dataset="d",
    split="s",
    protocol="held-out",
    n_persons=2,
    n_cases=2,
    date="2026-01-31",
    engine="torch",
    precision="fp32",
    figures=None,
)

SUMMARY = Summary(
    model="tiny@0",
    structures=[
        Structure(label=1, name="front", voxels=1234, volume_ml=1.234, mean_confidence=0.8765),
        Structure(label=2, name="back", voxels=0, volume_ml=0.0, mean_confidence=None),
    ],
    foreground_confidence=0.8765,
    statement=STATEMENT,
    warnings=["Two orientations."],
)


@pytest.mark.parametrize("name", ["s.nii.gz", "s.nii", "s.nrrd", "s.zip", "sub-1.T1.nii.gz"])
def test_files_are_named_after_the_scan(tmp_path: Path, name: str) -> None:
    """Three files in the style of BIDS derivatives are written into a new folder."""
    out = tmp_path / "new" / "folder"
    files = Prediction.write(tmp_path / name, out, b"mask", b"confidence", SUMMARY)
    stem = {"sub-1.T1.nii.gz": "sub-1.T1"}.get(name, "s")

    assert {path.name for path in out.iterdir()} == {
        f"{stem}_dseg.nii.gz",
        f"{stem}_desc-confidence_probseg.nii.gz",
        f"{stem}_summary.json",
    }
    assert (files.mask.read_bytes(), files.confidence.read_bytes()) == (b"mask", b"confidence")
    assert Summary.model_validate_json(files.summary.read_bytes()) == SUMMARY
    assert files.summary.read_text().endswith("}\n")


def test_the_report_says_what_matters(tmp_path: Path) -> None:
    """The report has structures with volume and confidence, statement, warnings, notice and files."""
    files = Prediction.write(tmp_path / "s.nii", tmp_path, b"", b"", SUMMARY)

    assert files.report().splitlines() == [
        "*** WITHDRAWN: do not use this mask or its volumes. The reasons are below. ***",
        "",
        "structure                   volume  mean confidence",
        "front                      1.23 ml            0.876",
        "back                       0.00 ml                -",
        "",
        "Withdrawn: unlike.",
        "  extent along axis 1: 9.0 mm",
        "Warning: Two orientations.",
        RESEARCH_USE_ONLY,
        "",
        str(files.mask),
        str(files.confidence),
        str(files.summary),
    ]


def test_a_structure_that_is_cut_off_has_no_volume_in_the_report(tmp_path: Path) -> None:
    """The volume of a truncated structure is unknown and not shown."""
    cut = SUMMARY.structures[0].model_copy(update={"volume_ml": None, "truncated": True})
    files = Prediction.write(tmp_path / "s.nii", tmp_path, b"", b"", SUMMARY.model_copy(update={"structures": [cut]}))

    assert files.report().splitlines()[3] == "front                      cut off            0.876"


def test_a_real_scan_is_segmented_here(hippocampus: Path, tmp_path: Path) -> None:
    """Mask and confidence lie on the scan's grid, both structures are found, and the report states the population."""
    scan = hippocampus / "imagesTr" / "hippocampus_003.nii.gz"
    files = predict_here(scan, tmp_path, None)

    image, mask, confidence = (nib.Nifti1Image.from_filename(path) for path in (scan, files.mask, files.confidence))
    assert mask.shape == confidence.shape == image.shape
    np.testing.assert_array_equal(mask.affine, image.affine)
    np.testing.assert_array_equal(confidence.affine, image.affine)
    assert set(np.unique(np.asarray(mask.dataobj))) == {0, 1, 2}
    values = confidence.get_fdata()
    assert values.min() >= 1 / 3
    assert values.max() <= 1
    summary = json.loads(files.summary.read_text())
    assert summary["model"].startswith(f"{DEFAULT_MODEL}@")
    report = files.report()
    for structure in summary["structures"]:
        assert structure["truncated"] or 0.3 < structure["volume_ml"] < 5  # a drawn one may be cut off
        assert structure["name"] in report
    assert summary["statement"]["text"] in " ".join(report.split())
    assert RESEARCH_USE_ONLY in report


def test_the_segmentation_is_that_of_the_reference(real_hippocampus: Path, tmp_path: Path) -> None:
    """For a real scan, the Dice of both structures together is above 0.7, both have volumes, and the statement holds."""
    name = "hippocampus_003.nii.gz"
    files = predict_here(real_hippocampus / "imagesTr" / name, tmp_path, DEFAULT_MODEL)
    mask, reference = (
        np.asarray(nib.Nifti1Image.from_filename(path).dataobj) > 0
        for path in (files.mask, real_hippocampus / "labelsTr" / name)
    )

    assert 2 * np.sum(mask & reference) / (mask.sum() + reference.sum()) > 0.7
    summary = files.read_summary()
    assert summary.statement.status == "holds"
    assert all(0.3 < (structure.volume_ml or 0) < 5 for structure in summary.structures)


def test_a_bad_scan_writes_nothing(tmp_path: Path, write_nifti: Callable[..., None]) -> None:
    """A scan error leaves no folder behind."""
    write_nifti(tmp_path / "flat.nii", np.full((8, 8, 8), 7, np.int16))
    with pytest.raises(ConstantVolume):
        predict_here(tmp_path / "flat.nii", tmp_path / "out", None)

    assert not (tmp_path / "out").exists()


def test_an_unknown_model_is_said(tmp_path: Path) -> None:
    """The message lists the installed models."""
    with pytest.raises(ModelNotFound, match=DEFAULT_MODEL):
        predict_here(tmp_path / "s.nii", tmp_path / "out", "nobody")


def test_a_model_of_the_bundle_folder_is_used(
    tiny_bundle: Path, tmp_path: Path, write_nifti: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CALIBRANT_BUNDLE_DIR adds models to the shipped ones."""
    monkeypatch.setenv("CALIBRANT_BUNDLE_DIR", str(tiny_bundle.parent))
    write_nifti(tmp_path / "s.nii", np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32))
    files = predict_here(tmp_path / "s.nii", tmp_path / "out", "tiny")

    assert "front" in files.report()
    assert gzip.decompress(files.mask.read_bytes())[344:347] == b"n+1"


def test_another_contrast_by_its_bids_name_is_refused_or_withdrawn(
    tiny_bundle: Path,
    tmp_path: Path,
    write_nifti: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    reseal: Callable[[Path], str],
) -> None:
    """A FLAIR of a T1 model: an error that says how to go on; with accept, a withdrawn result. Its T1w says enough."""
    card = CalibrationCard.model_validate_json((tiny_bundle / "calibration.json").read_bytes())
    declared = card.with_acceptance(Acceptance(words=(Words(name="suffix", accepted=("T1W",)),)))
    (tiny_bundle / "calibration.json").write_text(declared.model_dump_json())
    reseal(tiny_bundle)
    monkeypatch.setenv("CALIBRANT_BUNDLE_DIR", str(tiny_bundle.parent))
    array = np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32)
    for suffix in ("T1w", "FLAIR"):
        write_nifti(tmp_path / f"sub-1_{suffix}.nii", array)
    flair = tmp_path / "sub-1_FLAIR.nii"

    with pytest.raises(ScanNotAccepted, match=r"suffix is FLAIR; accepted: T1W\..*--accept anyway"):
        predict_here(flair, tmp_path / "out", "tiny")
    assert predict_here(flair, tmp_path / "out", "tiny", "anyway").withdrawn
    expected = predict_here(tmp_path / "sub-1_T1w.nii", tmp_path / "out", "tiny").read_summary().statement
    assert (expected.status, "suffix" in expected.not_compared) == ("not compared", False)


def test_a_running_service_gives_the_same_files(server_url: str, hippocampus: Path, tmp_path: Path) -> None:
    """A running service and this machine give equal masks, confidences and summaries."""
    scan = hippocampus / "imagesTr" / "hippocampus_003.nii.gz"
    here, there = predict_here(scan, tmp_path / "here", None), predict_there(scan, tmp_path / "there", None, server_url)

    for name in ("mask", "confidence", "summary"):
        assert getattr(here, name).read_bytes() == getattr(there, name).read_bytes(), name


def test_without_a_service_nothing_is_written(tmp_path: Path) -> None:
    """Without a service there is an error and no folder."""
    (tmp_path / "s.nii").write_bytes(b"voxels")
    with pytest.raises(ServerUnreachable):
        predict_there(tmp_path / "s.nii", tmp_path / "out", None, "http://127.0.0.1:1")

    assert not (tmp_path / "out").exists()
