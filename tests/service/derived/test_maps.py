import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK
import torch

from service.bundle.acceptance import Admission
from service.bundle.reader import load_bundle
from service.derived.maps import normalised_entropy, slabs_of, write_map
from service.intake.decode import decode_scan
from service.pipeline.grid import Grid, frame_of, grid_of
from service.pipeline.predict import probabilities
from service.pipeline.run import run_case
from service.result.frame import read_frame
from service.result.logits import read_logits
from service.result.nifti import Content, VoxelType

Nifti = Callable[..., bytes]

PERMUTED = np.array([[0, 0, -1.5, 70], [-1, 0, 0, 31.5], [0, 2, 0, -12.25], [0, 0, 0, 1]])


@pytest.fixture(name="result", params=["oblique", "permuted"])
def result_(
    request: pytest.FixtureRequest, tiny_bundle: Path, nifti: Nifti, tmp_path: Path, oblique: npt.NDArray[np.float64]
) -> Path:
    """Return the folder of a result on an oblique grid, or on one with permuted and flipped axes."""
    affine = {"oblique": oblique, "permuted": PERMUTED}[request.param]
    array = np.random.default_rng(7).normal(100, 10, (9, 10, 6)).astype(np.float32)
    (tmp_path / "scan.nii").write_bytes(nifti(array, affine))
    (tmp_path / "result").mkdir()
    bundle = load_bundle(tiny_bundle, torch.device("cpu"))
    run_case(tmp_path / "scan.nii", bundle, tmp_path / "result", lambda _stage, _done: None)
    return tmp_path / "result"


@pytest.fixture(name="probs")
def probs_(result: Path) -> npt.NDArray[np.float32]:
    """Return the probabilities of the result, (3, D, H, W)."""
    frame = read_frame(result)
    return probabilities(torch.from_numpy(read_logits(result)), grid_of(frame), frame.config)


def written(result: Path, content: Content, voxel_type: VoxelType = "float32") -> Any:  # noqa: ANN401 - nibabel's own
    """Write a map and read it back."""
    out = result.parent / f"{content}-{voxel_type}.nii.gz"
    write_map(result, out, content, voxel_type)
    return nib.load(out)


def test_the_frame_leads_back_to_the_grid(result: Path, tmp_path: Path) -> None:
    """A stored frame restores the grid and the affine of the scan to the last bit."""
    volume, frame = decode_scan(tmp_path / "scan.nii"), read_frame(result)

    expected, actual = Grid.of(volume, frame.config), grid_of(frame)

    assert (actual.scan_shape, actual.oriented_shape, actual.network_shape) == (
        *(expected.scan_shape, expected.oriented_shape, expected.network_shape),
    )
    assert np.array_equal(actual.orientation, expected.orientation)
    assert frame.affine_ras.tobytes() == volume.affine.tobytes()
    assert frame == frame_of(volume, expected, frame.config)


def test_probabilities_are_a_volume_per_label(result: Path, probs: npt.NDArray[np.float32], tmp_path: Path) -> None:
    """The 4-D file holds the float32 values of all classes bit for bit, at the place of the scan."""
    image = written(result, "probabilities")
    scan: Any = nib.load(tmp_path / "scan.nii")

    assert image.shape == (9, 10, 6, 3)
    assert image.get_data_dtype() == np.float32
    assert np.array_equal(np.moveaxis(np.asarray(image.dataobj), -1, 0), probs)
    assert image.affine.tobytes() == scan.affine.tobytes()
    for name in ("srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d", "qform_code", "sform_code"):
        assert np.array_equal(image.header[name], scan.header[name])


def test_declared_padding_is_certain_background_in_every_map(
    tiny_bundle: Path, slices_of: Nifti, zip_of: Nifti, tmp_path: Path
) -> None:
    """Mask, confidence and the maps of later agree: padding is background with probability 1."""
    array = np.random.default_rng(7).integers(100, 900, (9, 10, 6)).astype("<i2")
    nothing = np.zeros(array.shape, bool)
    nothing[:4, :6, 1:], nothing[2, 7] = True, True
    images: Any = slices_of(np.where(nothing, -2000, array).astype("<i2"), PERMUTED)
    for image in images:
        image.PixelPaddingValue = -2000
    (tmp_path / "scan").write_bytes(zip_of(images))
    (tmp_path / "result").mkdir()
    bundle = load_bundle(tiny_bundle, torch.device("cpu"))

    anyway = Admission(accept="anyway")  # the series says that it is CT
    run_case(tmp_path / "scan", bundle, tmp_path / "result", lambda _stage, _done: None, admission=anyway)

    files: list[Any] = [nib.load(tmp_path / "result" / f"{name}.nii.gz") for name in ("mask", "confidence")]
    mask, confidence = (np.asarray(file.dataobj) for file in files)
    probs = written(tmp_path / "result", "probabilities").get_fdata()
    assert not mask[nothing].any()
    assert mask.any()
    assert (confidence[nothing] > 0.9999).all()
    assert (probs[nothing] == [1, 0, 0]).all()
    assert (np.argmax(probs, axis=-1) == mask).all()
    assert not written(tmp_path / "result", "uncertainty").get_fdata()[nothing].any()


def test_simpleitk_reads_the_same_probabilities(result: Path, probs: npt.NDArray[np.float32], tmp_path: Path) -> None:
    """An independent reader finds three volumes at the scan's place."""
    out = tmp_path / "probabilities.nii.gz"
    write_map(result, out, "probabilities", "float32")

    image, scan = SimpleITK.ReadImage(out), SimpleITK.ReadImage(tmp_path / "scan.nii")

    assert image.GetSize() == (9, 10, 6, 3)
    assert image.GetOrigin()[:3] == scan.GetOrigin()
    assert np.array_equal(SimpleITK.GetArrayFromImage(image).transpose(0, 3, 2, 1), probs)


@pytest.mark.parametrize(("voxel_type", "step"), [("uint8", 1 / 255), ("uint16", 1 / 65535), ("float32", 0)])
def test_confidence_is_the_largest_probability(
    result: Path, probs: npt.NDArray[np.float32], voxel_type: VoxelType, step: float
) -> None:
    """At each precision it is within one step of max_c p and in [1/C, 1]."""
    actual = written(result, "confidence", voxel_type).get_fdata()

    np.testing.assert_allclose(actual, probs.max(axis=0), rtol=0, atol=step)
    assert actual.min() >= 1 / 3
    assert actual.max() <= 1


def test_the_eight_bits_of_the_confidence_are_those_of_the_result(result: Path) -> None:
    """A confidence map computed later equals the stored one voxel by voxel."""
    stored: Any = nib.load(result / "confidence.nii.gz")

    assert np.array_equal(written(result, "confidence", "uint8").dataobj.get_unscaled(), stored.dataobj.get_unscaled())


def test_uncertainty_is_the_entropy_in_float64(result: Path, probs: npt.NDArray[np.float32]) -> None:
    """It agrees with the definition in float64 and lies in [0, 1]."""
    p = probs.astype(np.float64)

    actual = written(result, "uncertainty").get_fdata()

    np.testing.assert_allclose(actual, -(p * np.log(p)).sum(axis=0) / np.log(3), atol=1e-5)
    assert 0 <= actual.min() <= actual.max() <= 1


def test_entropy_by_hand() -> None:
    """It is 0 for certainty, 1 for equal probabilities, and ln 2 / ln 4 = 1/2 for two equal classes of four."""
    probs = np.array([[1, 0.25, 0.5], [0, 0.25, 0.5], [0, 0.25, 0], [0, 0.25, 0]], np.float32)

    np.testing.assert_allclose(normalised_entropy(probs), [0, 1, 0.5], atol=1e-6)


def test_a_map_leaves_no_scratch_file_and_contains_no_time(
    result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder holds only the map, and the same request gives the same bytes at any time."""
    out = tmp_path / "maps"
    out.mkdir()
    write_map(result, out / "first", "uncertainty", "uint8")
    monkeypatch.setattr("time.time", lambda: 4e9)
    write_map(result, out / "second", "uncertainty", "uint8")

    assert sorted(path.name for path in out.iterdir()) == ["first", "second"]
    assert (out / "first").read_bytes() == (out / "second").read_bytes()


def test_thin_slabs_give_the_same_map(result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plane by plane, voxels differ at most by the last digit of torch's exponentials."""
    whole = np.asarray(written(result, "probabilities").dataobj)
    monkeypatch.setattr("service.pipeline.preprocess.to_scan_slabs.__defaults__", (1,))
    thin = np.asarray(written(result, "probabilities").dataobj)

    assert len(list(slabs_of(result, read_frame(result)))) > 1
    np.testing.assert_allclose(thin, whole, rtol=1e-6)


def test_nothing_of_the_patient_is_kept(result: Path, canary: str) -> None:
    """No file of a result contains the text of the scan's header."""
    for path in result.iterdir():
        content = path.read_bytes()
        unpacked = gzip.decompress(content) if path.suffix == ".gz" else content
        assert canary.encode() not in unpacked
        assert canary.encode().hex().encode() not in unpacked
