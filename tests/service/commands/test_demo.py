from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from service.bundle.registry import SHIPPED
from service.bundle.schema import ServiceConfig
from service.commands.demo import SIDES, Images, draw, template
from service.commands.predict import Prediction
from service.errors import SettingsError

SHAPE = (90, 100, 80)


@pytest.fixture
def images() -> Images:
    """Return a noisy scan with two boxes on each side and a confidence that decreases along one axis."""
    scan = np.random.default_rng(0).normal(100, 20, SHAPE)
    mask = np.zeros(SHAPE)
    for (anterior, posterior), start in zip(SIDES.values(), (15, 60), strict=True):
        mask[start : start + 14, 36:50, 30:44] = anterior
        mask[start : start + 14, 50:64, 30:44] = posterior
    confidence = np.broadcast_to(np.linspace(1, 1 / 3, SHAPE[1])[:, np.newaxis], SHAPE)
    return Images(scan, mask, confidence, np.eye(4))


def test_the_template_is_a_whole_head() -> None:
    """Nilearn's template is a whole head in MNI space with 1 mm voxels."""
    pytest.importorskip("nilearn")
    image = nib.Nifti1Image.from_filename(template())

    assert image.shape == (197, 233, 189)
    np.testing.assert_allclose(image.header.get_zooms(), 1.0)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")


def test_the_sides_are_those_of_the_shipped_model() -> None:
    """Label values and names are those of service.json."""
    config = ServiceConfig.model_validate_json((SHIPPED / "hippocampus-mr" / "service.json").read_bytes())
    assert config.locator is not None
    assert {part.name: tuple(label.value for label in part.labels) for part in config.locator.parts} == SIDES


def test_without_nilearn_the_demo_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message gives the command to install nilearn."""
    monkeypatch.setattr("service.commands.demo.find_spec", lambda _: None)

    with pytest.raises(SettingsError, match=r"pip install 'calibrant\[demo\]'"):
        template()


def test_files_along_any_axes_are_read_to_the_right_anterior_superior(tmp_path: Path, images: Images) -> None:
    """An image stored in another orientation gives the same centre of the left side."""
    affine = np.diag([-1.0, 1, 1, 1])
    affine[0, 3] = SHAPE[0] - 1
    paths = [tmp_path / f"{name}.nii.gz" for name in ("scan", "mask", "confidence")]
    for path, array in zip(paths, (images.scan, images.mask, images.confidence), strict=True):
        nib.save(nib.Nifti1Image(array[::-1].astype(np.float32), affine), path)

    read = Images.read(paths[0], Prediction(paths[1], paths[2], tmp_path / "summary.json"))

    np.testing.assert_array_equal(read.mask, images.mask)
    np.testing.assert_allclose(read.middle("left"), [21.5, 49.5, 36.5])
    np.testing.assert_allclose(read.middle("right"), [66.5, 49.5, 36.5])


def test_the_picture_shows_something(images: Images, tmp_path: Path) -> None:
    """The PNG has 1400 x 600 pixels with the scan's greys, the structures' colours and the confidence."""
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    draw(images, tmp_path / "demo.png")

    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG\r\n")
    pixels = imread(tmp_path / "demo.png")[..., :3]
    assert pixels.shape[:2] == (600, 1400)
    for color in ((0.9, 0.62, 0.0), (0.34, 0.71, 0.91)):  # the contours, orange and blue
        assert (np.abs(pixels - color).max(axis=2) < 0.05).sum() > 100
    inner = pixels[100:, 20:1200]
    assert np.ptp(inner) > 0.9
    assert len(np.unique((inner * 255).astype(np.uint8).reshape(-1, 3), axis=0)) > 500


def test_an_empty_mask_is_drawn_too(images: Images, tmp_path: Path) -> None:
    """A mask without foreground can be drawn."""
    pytest.importorskip("matplotlib")
    empty = Images(images.scan, np.zeros(SHAPE), images.confidence, images.affine)

    draw(empty, tmp_path / "demo.png")

    assert (tmp_path / "demo.png").stat().st_size > 10_000
