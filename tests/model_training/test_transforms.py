from pathlib import Path

import pytest
import torch
from monai.transforms import Compose

from model_training.data import Case, Sample
from model_training.transforms import one_model_for_both_sides
from service.bundle.schema import ServiceConfig

CASE = Case("a1", "A", (Path("image"),), Path("label"))


def half_bright(shape: tuple[int, int, int]) -> Sample:
    """Return a sample whose upper half along the first axis is bright and labelled, the rest 0."""
    label = torch.zeros((1, *shape), dtype=torch.uint8)
    label[:, shape[0] // 2 :] = 1
    return Sample(CASE, label.float(), label)


def batch_of(samples: list[Sample], transform: Compose) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the augmented images and labels as batches."""
    patches = [transform({"image": sample.image, "label": sample.label}) for sample in samples]
    return torch.stack([patch["image"] for patch in patches]), torch.stack([patch["label"] for patch in patches])


def seeded(config: ServiceConfig, seed: int) -> Compose:
    """Return the augmentation whose draws follow from a seed."""
    transform = one_model_for_both_sides(config)
    transform.set_random_state(seed)
    return transform


@pytest.mark.parametrize("shape", [(8, 8, 8), (5, 6, 7), (12, 9, 11)])
def test_a_batch_has_the_size_of_the_window(tiny_config: ServiceConfig, shape: tuple[int, int, int]) -> None:
    """Smaller images are padded, larger ones cropped; labels keep their values."""
    images, labels = batch_of([half_bright(shape)] * 3, seeded(tiny_config, 0))

    assert images.shape == labels.shape == (3, 1, 8, 8, 8)
    assert images.dtype == torch.float32
    assert set(labels.flatten().tolist()) == {0, 1}


def test_augmentation_is_reproducible_by_its_seed(tiny_config: ServiceConfig) -> None:
    """The same seed gives the same batches one after another, another seed others."""
    first, again, other = (
        [batch_of([half_bright((9, 9, 9))] * 2, transform) for _ in range(2)]
        for transform in (seeded(tiny_config, seed) for seed in (1, 1, 2))
    )

    assert all(torch.equal(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True))
    assert not torch.equal(first[0][0], first[1][0])
    assert not torch.equal(first[0][0], other[0][0])


def test_image_and_label_are_moved_together(tiny_config: ServiceConfig) -> None:
    """After any flip, crop, rotation and noise the labelled voxels are still the bright ones."""
    transform = seeded(tiny_config, 3)

    for _ in range(20):
        images, labels = batch_of([half_bright((10, 10, 10))], transform)
        inside, outside = images[labels == 1], images[labels == 0]
        assert inside.numel() > 0
        assert outside.numel() == 0 or inside.mean() > outside.mean() + 0.3


@pytest.mark.parametrize(("orientation", "axis"), [("RAS", 0), ("LPS", 0), ("ASR", 2), ("SLA", 1)])
def test_only_left_and_right_are_flipped(tiny_config: ServiceConfig, orientation: str, axis: int) -> None:
    """Of marks before the centre of each axis the one of the left-right axis is found behind it at times, no other."""
    config = tiny_config.model_copy(update={"orientation": orientation, "patch_size": (24, 24, 24)})
    transform = seeded(config, 4)
    marks = torch.zeros((24, 24, 24), dtype=torch.uint8)
    for value, (i, j, k) in enumerate([(6, 12, 12), (12, 6, 12), (12, 12, 6), (12, 12, 12)], start=1):
        marks[i - 1 : i + 2, j - 1 : j + 2, k - 1 : k + 2] = value
    sample = Sample(CASE, marks[None].float(), marks[None])

    flips = []
    for _ in range(20):
        _, labels = batch_of([sample], transform)
        first, second, third, centre = (
            torch.nonzero(labels[0, 0] == value).float().mean(dim=0) for value in (1, 2, 3, 4)
        )
        flips.append([bool(mark[a] > centre[a]) for a, mark in enumerate((first, second, third))])

    assert {tuple(flip) for flip in flips} == {(False, False, False), tuple(a == axis for a in range(3))}
