from pathlib import Path

import torch

from model_training.data.case import load_sample
from model_training.data.layouts.msd import read_msd
from model_training.data.transforms import one_model_for_both_sides, small_affine_about_foreground
from model_training.training.batches import draw_batch
from service.bundle.schema import ServiceConfig


def test_batches_follow_from_seed_and_step(tiny_msd: Path, tiny_config: ServiceConfig) -> None:
    """The same seed and step draw the same batch, whatever was drawn before; another seed or step draws another one."""
    samples = [load_sample(case, tiny_config) for case in read_msd(tiny_msd, str)["fold1"]]
    augment = one_model_for_both_sides(tiny_config)

    images = [draw_batch(samples, augment, 2, seed=s, step=t)[0] for s, t in ((1, 5), (1, 6), (2, 5), (1, 5))]

    assert torch.equal(images[0], images[3])
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_a_batch_holds_every_patch_of_its_images(tiny_msd: Path, tiny_config: ServiceConfig) -> None:
    """Two images with four patches each make a batch of eight plain tensors, each patch with its own label."""
    samples = [load_sample(case, tiny_config) for case in read_msd(tiny_msd, str)["fold1"]]

    images, labels = draw_batch(samples, small_affine_about_foreground(tiny_config), 2, seed=0, step=1)

    assert images.shape == labels.shape == (8, 1, 8, 8, 8)
    assert type(images) is type(labels) is torch.Tensor
    for image, label in zip(images, labels, strict=True):
        means = [float(image[label == value].mean()) for value in label.unique()]
        assert means == sorted(means)
