from collections.abc import Hashable

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from model_training.data.artefacts import ARTEFACTS, RandArtefactsd, RandCutPlanesd, thick_planes

SHAPE = (20, 24, 18)


def image(seed: int = 0) -> np.ndarray:
    """Return a smooth picture above 0."""
    return (1000 + 100 * gaussian_filter(np.random.default_rng(seed).standard_normal(SHAPE), 1) * 10).astype(np.float32)


@pytest.mark.parametrize("name", ARTEFACTS)
def test_an_artefact_changes_more_the_severer_it_is(name: str) -> None:
    """Each keeps shape and type, follows from its generator, and grows with the severity."""
    before = image()

    mild, severe, again = (ARTEFACTS[name](before, severity, np.random.default_rng(5)) for severity in (1.05, 3.0, 3.0))
    almost_none = ARTEFACTS[name](before, 1e-3, np.random.default_rng(5))

    assert severe.shape == SHAPE
    assert severe.dtype == np.float32
    np.testing.assert_array_equal(severe, again)
    if name != "ghosting":  # which weakens a line by at most all of it
        assert abs(mild - before).mean() < abs(severe - before).mean()
    if name != "low resolution":  # a thickness, of which 1 is that of the image
        assert abs(almost_none - before).mean() < 0.1 * abs(mild - before).mean()


def test_noise_has_the_stated_deviation() -> None:
    """In units of the image's own."""
    before = image()

    added = ARTEFACTS["noise"](before, 0.5, np.random.default_rng(0)) - before

    assert added.std() == pytest.approx(0.5 * before.std(), rel=0.03)


def test_a_bias_field_is_positive_and_smooth() -> None:
    """It multiplies, and its logarithm is a polynomial: third differences along an axis are constant."""
    field = np.log(
        ARTEFACTS["bias field"](np.ones(SHAPE, np.float32), 0.5, np.random.default_rng(1)).astype(np.float64)
    )

    fourth = np.diff(field, 4, axis=0)

    assert np.isfinite(field).all()
    np.testing.assert_allclose(fourth, 0, atol=1e-5)


def test_thick_planes_blur_one_axis_only() -> None:
    """A pattern along another axis is left alone; one along the axis is flattened."""
    stripes = np.indices(SHAPE)[1] % 2 * np.float32(100)

    along, across = thick_planes(stripes, 4, 1), thick_planes(stripes, 4, 0)

    assert along.std() < 0.3 * stripes.std()
    np.testing.assert_allclose(across, stripes, atol=1e-3)


def test_cut_planes_are_the_same_in_image_and_label() -> None:
    """What shows nothing in the image is background in the label; the rest is untouched."""
    cut = RandCutPlanesd(("image", "label"), probability=0.7, most=5)
    cut.set_random_state(3)
    data: dict[Hashable, torch.Tensor] = {"image": torch.rand(1, *SHAPE) + 1, "label": torch.ones(1, *SHAPE)}

    result = cut(data)

    shown = result["image"] != 0
    assert 0 < shown.sum() < shown.numel()
    assert torch.equal(shown, result["label"] == 1)
    assert torch.equal(result["image"][shown], data["image"][shown])
    box = shown[0].nonzero()
    assert shown.sum() == (box.amax(dim=0) - box.amin(dim=0) + 1).prod()


def test_spoilt_images_are_normalised_and_padding_stays_0() -> None:
    """Training sees what serving would: mean 0 and deviation 1 of what is shown."""
    spoil = RandArtefactsd("image")
    spoil.set_random_state(0)
    normal = torch.randn(1, *SHAPE)
    normal[:, :4] = 0
    results = [spoil({"image": normal})["image"] for _ in range(20)]

    changed = [result for result in results if not torch.equal(result, normal)]

    assert 10 <= len(changed) < 20
    for result in changed:
        assert (result[:, :4] == 0).all()
        assert result[:, 4:].mean().item() == pytest.approx(0, abs=1e-3)
        assert result[:, 4:].std().item() == pytest.approx(1, abs=1e-3)
