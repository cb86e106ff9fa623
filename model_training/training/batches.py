"""The batches of a training run, each drawn from seed and step alone."""

import os
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from monai.transforms import Compose
from torch.utils.data import DataLoader, Dataset

from model_training.config import Recipe
from model_training.data.case import Sample
from model_training.training.parallel import Group

_MAX_WORKERS: Final = 8

Batch = tuple[torch.Tensor, torch.Tensor]
"""Images (B, C, D, H, W) float32 and labels (B, 1, D, H, W)."""


class Batches(Dataset[Batch]):
    """This process's share of the batch of each step."""

    def __init__(self, samples: Sequence[Sample], recipe: Recipe, seed: int, group: Group, steps: range) -> None:
        """Prepare without drawing anything.

        Args:
            samples: training images.
            recipe: gives batch size and augmentation.
            seed: of the run.
            group: the processes that share each batch.
            steps: numbers of the steps, in order.
        """
        self.steps = steps
        self._samples = samples
        self._augment = recipe.augmentation(recipe.service)
        self._schedule = recipe.schedule
        self._seed = seed
        self._group = group

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> Batch:
        images, labels = draw_batch(
            self._samples, self._augment, self._schedule.batch_size, seed=self._seed, step=self.steps[index]
        )
        share = len(images) // self._group.size
        mine = slice(self._group.rank * share, (self._group.rank + 1) * share)
        return images[mine], labels[mine]

    def loader(self) -> DataLoader[Batch]:
        """Return the batches in order; for a GPU, worker processes draw them ahead."""
        cuda = self._group.device.type == "cuda"
        workers = min(_MAX_WORKERS, (os.cpu_count() or 1) // self._group.size, len(self)) if cuda else 0
        return self.drawn_by(workers, pinned=cuda)

    def drawn_by(self, workers: int, *, pinned: bool = False) -> DataLoader[Batch]:
        """Return the batches in order, drawn by so many worker processes, or by this one.

        Workers are spawned: a process that has begun to use CUDA must not fork.
        """
        return DataLoader(
            self,
            batch_size=None,
            shuffle=False,
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
            pin_memory=pinned,
        )


def draw_batch(samples: Sequence[Sample], augment: Compose, batch_size: int, *, seed: int, step: int) -> Batch:
    """Return the batch of a step: randomly chosen images, augmented.

    The draw follows from seed and step alone, so a resumed run continues with the batches that it would have seen.

    Args:
        samples: training images.
        augment: image -> one patch, or a list of several.
        batch_size: number of images; with several patches an image the batch is larger.
        seed: of the run.
        step: number of the step.
    """
    generator = np.random.default_rng([seed, step])
    chosen = generator.integers(len(samples), size=batch_size)
    augment.set_random_state(int(generator.integers(1 << 32)))
    drawn = [augment({"image": samples[i].image, "label": samples[i].label}) for i in chosen]
    patches = [patch for patches in drawn for patch in (patches if isinstance(patches, list) else [patches])]
    # Plain tensors: MONAI's carry metadata, which makes every operation of the network a slower Python call.
    images = torch.stack([patch["image"].as_subclass(torch.Tensor) for patch in patches])
    labels = torch.stack([patch["label"].as_subclass(torch.Tensor) for patch in patches])
    return images, labels
