import pickle
from pathlib import Path

import pytest
import torch

from model_training.config import Recipe
from model_training.data.case import load_sample
from model_training.data.layouts.msd import read_msd
from model_training.data.samples import stored_samples
from model_training.data.transforms import one_model_for_both_sides, small_affine_about_foreground
from model_training.recipes import RECIPES
from model_training.training.batches import Batches, draw_batch
from model_training.training.parallel import ALONE
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


def test_spawned_workers_draw_the_same_batches(
    recipe: Recipe, tiny_msd: Path, tiny_config: ServiceConfig, tmp_path: Path
) -> None:
    """Two processes, which open the samples from their files, draw what this one draws, in order."""
    samples = stored_samples(read_msd(tiny_msd, str)["fold1"], tiny_config, tmp_path)
    batches = Batches(samples, recipe, 3, ALONE, range(1, 5))

    here, there = list(batches.drawn_by(0)), list(batches.drawn_by(2))

    assert len(here) == len(there) == 4
    for (images, labels), (theirs, their_labels) in zip(here, there, strict=True):
        assert torch.equal(images, theirs)
        assert torch.equal(labels, their_labels)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_sent_to_a_worker(name: str) -> None:
    """A spawned worker receives the augmentation of each recipe as bytes."""
    batches = Batches([], RECIPES[name], 0, ALONE, range(1, 2))

    assert len(pickle.loads(pickle.dumps(batches))) == 1  # noqa: S301 - made here
