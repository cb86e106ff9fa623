import numpy as np
import pytest
import torch

from model_training.recipes.hippocampus import HIPPOCAMPUS
from service.pipeline.features import describe, features_of

CONFIG = HIPPOCAMPUS.service
SHAPE = (40, 44, 36)
ANTERIOR, POSTERIOR = (label.name for label in CONFIG.labels[1:])


def answer(seed: int = 0, shift: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an image and the logits of two balls of radius 5 and 4, 12 voxels apart."""
    generator = torch.Generator().manual_seed(seed)
    at = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in SHAPE), indexing="ij"))
    balls = [
        radius - (at - torch.tensor(centre).view(3, 1, 1, 1)).norm(dim=0)
        for radius, centre in ((5.0, (16.0 + shift, 14.0, 20.0)), (4.0, (18.0 + shift, 26.0, 16.0)))
    ]
    logits = torch.stack([torch.zeros(SHAPE), *(4 * ball for ball in balls)])
    image = torch.randn(SHAPE, generator=generator) * 0.2 + logits[1:].amax(dim=0).sigmoid() - 0.2
    return image[None], logits.half()


def test_volumes_and_offsets_are_those_of_the_balls() -> None:
    """Known shapes give their volumes in ml, their offset in mm, one piece each."""
    found = describe(*answer(), CONFIG)

    assert list(found) == list(features_of(CONFIG))
    assert found[f"volume of {ANTERIOR}"] == pytest.approx(4 / 3 * np.pi * 5**3 / 1000, rel=0.1)
    assert found[f"volume of {POSTERIOR}"] == pytest.approx(4 / 3 * np.pi * 4**3 / 1000, rel=0.1)
    offset = [
        found[f"{axis} offset from {ANTERIOR} to {POSTERIOR}"] for axis in ("sideways", "second-axis", "third-axis")
    ]
    assert offset == pytest.approx([2, 12, -4], abs=0.2)
    assert found[f"number of pieces of {ANTERIOR}"] == 1
    assert found[f"share of the largest piece of {ANTERIOR}"] == 1
    assert found["share of foreground at the edge of what is shown"] == 0


def test_left_and_right_are_not_told_apart() -> None:
    """The mirror image has the same features."""
    image, logits = answer()

    mirrored = describe(image.flip(1), logits.flip(1), CONFIG)

    assert mirrored == pytest.approx(describe(image, logits, CONFIG), rel=1e-4, abs=1e-5)


def test_a_structure_at_the_end_of_what_is_shown_is_told() -> None:
    """Whether the image ends there or padding begins there."""
    image, logits = answer()
    padded = image.clone()
    padded[:, :14] = 0

    ends = describe(image[:, 14:], logits[:, 14:], CONFIG)
    pads = describe(padded, logits, CONFIG)

    name = "share of foreground at the edge of what is shown"
    assert ends[name] > 0.05
    assert pads[name] > 0.05


def test_an_answer_without_foreground_has_finite_features() -> None:
    """Nothing found, nothing shown, a single plane: no figure is NaN."""
    image, logits = answer()
    nothing = torch.zeros_like(logits)
    nothing[0] = 5

    for found in (
        describe(image, nothing, CONFIG),
        describe(torch.zeros_like(image), logits, CONFIG),
        describe(image[:, :1], logits[:, :1], CONFIG),
    ):
        assert np.isfinite(list(found.values())).all()


def test_a_large_box_is_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Volumes and offsets stay about the same when every second voxel is looked at, of a ball eight voxels wide."""
    whole = describe(*answer(), CONFIG)
    monkeypatch.setattr("service.pipeline.features.MOST_VOXELS", int(np.prod(SHAPE)) // 8)

    thinned = describe(*answer(), CONFIG)

    assert thinned[f"volume of {ANTERIOR}"] == pytest.approx(whole[f"volume of {ANTERIOR}"], rel=0.4)
    assert thinned[f"second-axis offset from {ANTERIOR} to {POSTERIOR}"] == pytest.approx(12, abs=1)


@pytest.mark.parametrize("gain", [0.01, 100.0])
def test_fine_detail_follows_the_noise(gain: float) -> None:
    """More noise, more fine detail; the measure is the image's, not the mask's."""
    image, logits = answer()
    noisy = image + 0.01 * gain * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))

    ratio = describe(noisy, logits, CONFIG)["fine detail"] / describe(image, logits, CONFIG)["fine detail"]

    assert (ratio > 2) == (gain > 1)
