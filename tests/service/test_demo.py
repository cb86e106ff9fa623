from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from service.demo import CENTRES_MM, CROP_VOXELS, Side, crop_template, draw
from service.errors import SettingsError
from service.predict import Prediction

SHAPE = (36, 52, 40)


@pytest.fixture
def side(tmp_path: Path) -> Side:
    """Return a noisy scan with a mask of two boxes and a confidence that falls along one axis."""
    scan = np.random.default_rng(0).normal(100, 20, SHAPE).astype(np.float32)
    mask = np.zeros(SHAPE, np.uint8)
    mask[10:26, 12:26, 14:26] = 1
    mask[10:26, 26:40, 14:26] = 2
    confidence = np.broadcast_to(np.linspace(1, 1 / 3, SHAPE[1])[:, np.newaxis], SHAPE).astype(np.float32)
    paths = [tmp_path / f"{name}.nii.gz" for name in ("scan", "mask", "confidence")]
    for path, array in zip(paths, (scan, mask, confidence), strict=True):
        nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return Side("left", paths[0], Prediction(paths[1], paths[2], tmp_path / "summary.json"))


@pytest.mark.parametrize("name", CENTRES_MM)
def test_the_crop_lies_around_its_centre(name: str, tmp_path: Path) -> None:
    """36 x 52 x 40 voxels of 1 mm whose middle is the point asked for, with something to see in them."""
    pytest.importorskip("nilearn")
    path = crop_template(CENTRES_MM[name], tmp_path / "crop.nii.gz")
    crop = nib.load(path)

    assert path == tmp_path / "crop.nii.gz"
    assert crop.shape == CROP_VOXELS == SHAPE
    np.testing.assert_allclose(crop.header.get_zooms(), 1.0)
    np.testing.assert_allclose(crop.affine @ [*(np.array(SHAPE) / 2), 1], [*CENTRES_MM[name], 1], atol=0.51)
    assert np.asarray(crop.dataobj).std() > 0


def test_the_two_crops_are_of_two_sides() -> None:
    """Left is at negative x in RAS."""
    assert CENTRES_MM["left"][0] < 0 < CENTRES_MM["right"][0]
    assert CENTRES_MM["left"][1:] == CENTRES_MM["right"][1:]


def test_without_nilearn_the_demo_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy is a command."""
    monkeypatch.setattr("service.demo.find_spec", lambda _: None)

    with pytest.raises(SettingsError, match=r"pip install 'calibrant\[demo\]'"):
        crop_template(CENTRES_MM["left"], tmp_path / "crop.nii.gz")


def test_the_picture_shows_something(side: Side, tmp_path: Path) -> None:
    """A PNG of about 1200 x 640 pixels with greys of the scan, the structures' colours and the confidence."""
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    draw([side, side], tmp_path / "demo.png")

    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG\r\n")
    pixels = imread(tmp_path / "demo.png")[..., :3]
    assert pixels.shape[:2] == (640, 1200)
    for color in ((0.9, 0.62, 0.0), (0.34, 0.71, 0.91)):  # the contours, orange and blue
        assert (np.abs(pixels - color).max(axis=2) < 0.05).sum() > 100
    inner = pixels[100:, 20:1000]
    assert np.ptp(inner) > 0.9
    assert len(np.unique((inner * 255).astype(np.uint8).reshape(-1, 3), axis=0)) > 500


def test_an_empty_mask_is_drawn_too(side: Side, tmp_path: Path) -> None:
    """A mask without foreground does not break the picture."""
    pytest.importorskip("matplotlib")
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), np.eye(4)), side.files.mask)

    draw([side, side], tmp_path / "demo.png")

    assert (tmp_path / "demo.png").stat().st_size > 10_000
