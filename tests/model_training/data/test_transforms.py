from pathlib import Path

import pytest
import torch

from model_training.config import Augmentation
from model_training.data.case import Case, Sample
from model_training.data.transforms import (
    one_model_for_both_sides,
    small_affine,
    small_affine_about_foreground,
    turned_in_plane,
    zoom_turn_blur,
)
from service.bundle.schema import ServiceConfig

CASE = Case("a1", "A", (Path("image"),), Path("label"))
PATCHES: dict[Augmentation, int] = {
    one_model_for_both_sides: 1,
    turned_in_plane: 1,
    small_affine: 1,
    small_affine_about_foreground: 4,
    zoom_turn_blur: 1,
}
"""Every augmentation, with the number of patches that it cuts from an image."""

EACH = pytest.mark.parametrize("augmentation", PATCHES, ids=lambda augmentation: augmentation.__name__)


def half_bright(shape: tuple[int, int, int]) -> Sample:
    """Return a sample whose upper half along the first axis is bright and labelled; the rest is 0."""
    label = torch.zeros((1, *shape), dtype=torch.uint8)
    label[:, shape[0] // 2 :] = 1
    return Sample(CASE, label.float(), label)


class Seeded:
    """An augmentation whose draws follow from a seed, one image after another."""

    def __init__(self, augmentation: Augmentation, config: ServiceConfig, seed: int) -> None:
        """Build the transform and seed it."""
        self.transform = augmentation(config)
        self.transform.set_random_state(seed)

    def __call__(self, sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the augmented patches of an image: images and labels, (patches, 1, D, H, W)."""
        drawn = self.transform({"image": sample.image, "label": sample.label})
        patches = drawn if isinstance(drawn, list) else [drawn]
        images, labels = (torch.stack([patch[key] for patch in patches]) for key in ("image", "label"))
        return images.as_subclass(torch.Tensor), labels.as_subclass(torch.Tensor)


@EACH
@pytest.mark.parametrize("shape", [(8, 8, 8), (5, 6, 7), (12, 9, 11)])
def test_a_patch_has_the_size_of_the_window(
    tiny_config: ServiceConfig, augmentation: Augmentation, shape: tuple[int, int, int]
) -> None:
    """Smaller images are padded and larger ones cropped to the expected number of patches; labels keep their values."""
    augment = Seeded(augmentation, tiny_config, 0)

    for _ in range(4):
        images, labels = augment(half_bright(shape))
        assert images.shape == labels.shape == (PATCHES[augmentation], 1, 8, 8, 8)
        assert images.dtype == torch.float32
        assert set(labels.flatten().tolist()) <= {0, 1}
        assert torch.isfinite(images).all()


@EACH
def test_augmentation_is_reproducible_by_its_seed(tiny_config: ServiceConfig, augmentation: Augmentation) -> None:
    """The same seed gives the same sequence of patches, another seed another sequence."""
    sample = half_bright((12, 13, 14))
    first, again, other = ([augment(sample) for _ in range(6)] for augment in seeds(augmentation, tiny_config, 1, 1, 2))

    assert all(torch.equal(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True))
    assert any(not torch.equal(x[0], first[0][0]) for x in first)
    assert any(not torch.equal(x[0], y[0]) for x, y in zip(first, other, strict=True))


@EACH
def test_image_and_label_are_moved_together(tiny_config: ServiceConfig, augmentation: Augmentation) -> None:
    """After any flip, crop, rotation, zoom and noise the labelled voxels are still the bright ones."""
    augment = Seeded(augmentation, tiny_config.model_copy(update={"patch_size": (24, 24, 8)}), 3)
    seen = 0

    for _ in range(20):
        images, labels = augment(half_bright((26, 26, 10)))
        for image, label in zip(images, labels, strict=True):
            inside, outside = image[label == 1], image[label == 0]
            if inside.numel() and outside.numel():
                seen += 1
                assert inside.mean() > outside.mean() + 0.3

    assert seen >= 15


@pytest.mark.parametrize("augmentation", [one_model_for_both_sides, zoom_turn_blur])
@pytest.mark.parametrize(("orientation", "axis"), [("RAS", 0), ("LPS", 0), ("ASR", 2), ("SLA", 1)])
def test_only_left_and_right_are_flipped(
    tiny_config: ServiceConfig, augmentation: Augmentation, orientation: str, axis: int
) -> None:
    """Of marks off the centre along each axis, only the one along the left-right axis changes sides."""
    config = tiny_config.model_copy(update={"orientation": orientation, "patch_size": (24, 24, 24)})
    augment = Seeded(augmentation, config, 4)

    flips = set()
    for _ in range(20):
        _, labels = augment(marks())
        first, second, third, centre = (
            torch.nonzero(labels[0, 0] == value).float().mean(dim=0) for value in (1, 2, 3, 4)
        )
        flips.add(tuple(bool(mark[a] > centre[a]) for a, mark in enumerate((first, second, third))))

    assert flips == {(False, False, False), tuple(a == axis for a in range(3))}


@pytest.mark.parametrize("augmentation", [small_affine, small_affine_about_foreground])
def test_small_affine_moves_every_second_patch_a_little(tiny_config: ServiceConfig, augmentation: Augmentation) -> None:
    """About half of the patches are unchanged; in the others a mark moves by 0.5 to 6 voxels."""
    config = tiny_config.model_copy(update={"patch_size": (24, 24, 24)})
    augment = Seeded(augmentation, config, 5)
    sample = marks()
    still = torch.nonzero(sample.label[0] == 1).float().mean(dim=0)

    patches = [(image, label) for _ in range(40) for image, label in zip(*augment(sample), strict=True)]

    unmoved = sum(torch.equal(label, sample.label.float()) for _, label in patches) / len(patches)
    assert 0.3 < unmoved < 0.7
    ways = [(torch.nonzero(label[0] == 1).float().mean(dim=0) - still).norm() for _, label in patches]
    assert 0.5 < max(ways) < 6


@pytest.mark.parametrize("augmentation", [turned_in_plane, small_affine_about_foreground])
def test_every_second_patch_holds_a_structure(tiny_config: ServiceConfig, augmentation: Augmentation) -> None:
    """About half of the patches contain the structure, which by chance would be in one of fourteen."""
    label = torch.zeros((1, 96, 96, 24), dtype=torch.uint8)
    label[:, 40:43, 26:29, 12:15] = 1
    augment = Seeded(augmentation, tiny_config.model_copy(update={"patch_size": (24, 24, 8)}), 6)

    patches = torch.cat([augment(Sample(CASE, label.float(), label))[1] for _ in range(60)])

    share = float((patches == 1).flatten(1).any(dim=1).float().mean())
    assert 0.3 < share < 0.75


def test_an_image_without_a_structure_gives_patches_too(tiny_config: ServiceConfig) -> None:
    """Without foreground, patches are cut anywhere, and MONAI warns."""
    nothing = torch.zeros((1, 9, 9, 9), dtype=torch.uint8)

    with pytest.warns(UserWarning, match="Num foregrounds 0"):
        images, _ = Seeded(small_affine_about_foreground, tiny_config, 7)(Sample(CASE, nothing.float(), nothing))

    assert len(images) == 4


def test_thick_slices_are_turned_in_their_plane_only(tiny_config: ServiceConfig) -> None:
    """No plane mixes with another, while within the planes the mark turns to every side."""
    config = tiny_config.model_copy(update={"patch_size": (24, 24, 6)})
    augment = Seeded(turned_in_plane, config, 8)
    label = torch.zeros((1, 24, 24, 6), dtype=torch.uint8)
    for plane in range(6):
        label[:, 16:22, 10:14, plane] = plane + 1

    sides = set()
    for _ in range(30):
        _, labels = augment(Sample(CASE, label.float(), label))
        for plane in range(6):
            assert set(labels[0, 0, :, :, plane].unique().tolist()) <= {0, plane + 1}
        i, j = torch.nonzero(labels[0, 0, :, :, 0]).float().mean(dim=0)[:2] - 11.5
        sides.add((bool(i > 0), bool(j > 0)))

    assert len(sides) == 4


def test_zoom_changes_the_size_of_things(tiny_config: ServiceConfig) -> None:
    """A cube of 8^3 voxels becomes smaller and larger, between 0.7 and 1.5 times its edge."""
    config = tiny_config.model_copy(update={"patch_size": (24, 24, 24)})
    augment = Seeded(zoom_turn_blur, config, 9)
    label = torch.zeros((1, 24, 24, 24), dtype=torch.uint8)
    label[:, 8:16, 8:16, 8:16] = 1

    volumes = [float(augment(Sample(CASE, label.float(), label))[1].sum()) for _ in range(40)]

    assert 0.7**3 * 512 * 0.8 < min(volumes) < 0.8 * 512
    assert 1.3 * 512 < max(volumes) < 1.5**3 * 512 * 1.2


def marks() -> Sample:
    """Return 24^3 voxels with a mark before the centre of each axis (1, 2, 3) and one at the centre (4)."""
    label = torch.zeros((1, 24, 24, 24), dtype=torch.uint8)
    for value, (i, j, k) in enumerate([(6, 12, 12), (12, 6, 12), (12, 12, 6), (12, 12, 12)], start=1):
        label[:, i - 1 : i + 2, j - 1 : j + 2, k - 1 : k + 2] = value
    return Sample(CASE, label.float(), label)


def seeds(augmentation: Augmentation, config: ServiceConfig, *of: int) -> list[Seeded]:
    """Return the augmentation once for each seed."""
    return [Seeded(augmentation, config, seed) for seed in of]
