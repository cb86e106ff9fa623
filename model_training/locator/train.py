"""Trains a locator on scans drawn from label maps of heads: weights and declaration out."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import log_softmax
from torch.utils.data import DataLoader, Dataset

from model_training.data.case import DataError
from model_training.locator.evaluate import locating
from model_training.locator.heads import LANDMARKS, Head, read_heads
from model_training.locator.recipe import LocatorRecipe
from model_training.locator.synthesis import draw, training_pair
from model_training.training.checkpoint import NAME as CHECKPOINT
from model_training.training.checkpoint import load_checkpoint, save_checkpoint
from model_training.training.train import GRADIENT_NORM, set_learning_rate
from service.bundle.card import Locating
from service.bundle.network import build_network
from service.bundle.schema import Locator
from service.pipeline.locate import locate, multiple_of, padded

WEIGHTS: Final = "locator.safetensors"
"""File of the trained weights in a run's folder."""

DECLARATION: Final = "locator.json"
"""File of the locator's declaration in the same folder; it goes into service.json."""

LOCATING: Final = "locating.json"
"""File of the locator's measurement in the same folder; it goes into the card."""

CHANNELS: Final = 1 + len(LANDMARKS)
"""Output channels of the network: the background and each landmark."""

LEAST_VOXELS: Final = 2.0
"""A landmark with fewer coarse voxels counts as absent from the scan."""


def train_locator(
    recipe: LocatorRecipe, maps: Path, run: Path, *, seed: int, report: Callable[[int, float], None]
) -> None:
    """Train a locator's network on synthetic scans and write weights and declaration to the folder `run`.

    Called again with the same arguments, a killed run resumes from its last checkpoint.

    Args:
        recipe: of the locator.
        maps: folder of the label maps.
        run: folder of the run.
        seed: of the initial weights and of every scan.
        report: called with each step and its loss.

    Raises:
        DataError: the maps are not those of whole heads, or the folder holds another run or a finished one.
    """
    if (run / DECLARATION).exists():
        msg = f"{run} holds a finished run. Choose another folder for a new one."
        raise DataError(msg)
    run.mkdir(parents=True, exist_ok=True)
    heads, _ = recipe.split(read_heads(maps))
    declaration = recipe.declaration(heads)
    torch.manual_seed(seed)
    network = build_network(recipe.network)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=recipe.schedule.weight_decay)
    facts = repr((declaration, recipe.schedule, seed, [head.name for head in heads]))
    identity = hashlib.sha256(facts.encode()).hexdigest()
    position = load_checkpoint(run, network, optimiser, lambda _: identity)
    started = time.monotonic() - position.seconds

    scans = _Scans(heads, recipe, seed, range(position.step + 1, recipe.schedule.steps + 1))
    for step, pairs in zip(
        scans.steps, DataLoader(scans, batch_size=None, num_workers=os.cpu_count() or 1), strict=True
    ):
        set_learning_rate(optimiser, recipe.schedule, step)
        optimiser.zero_grad(set_to_none=True)
        losses = [_descend(network, image, share, multiple_of(declaration), len(pairs)) for image, share in pairs]
        nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
        optimiser.step()
        report(step, float(np.mean(losses)))
        if step % recipe.schedule.validate_every == 0:
            position.step, position.seconds = step, time.monotonic() - started
            save_checkpoint(run, network, optimiser, position, identity)

    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, run / WEIGHTS)
    (run / DECLARATION).write_text(declaration.model_dump_json(indent=2) + "\n")
    (run / CHECKPOINT).unlink(missing_ok=True)


def measure_locator(recipe: LocatorRecipe, maps: Path, run: Path, *, n: int, seed: int) -> Locating:
    """Measure a trained locator on scans of the held-out heads; write the result beside its weights and return it.

    Raises:
        DataError: the run is not finished, or the maps are not those of whole heads.
    """
    declaration, network = read_locator(run)
    _, held_out = recipe.split(read_heads(maps))
    measured = locating(lambda volume: locate(network, volume, declaration), declaration, held_out, n=n, seed=seed)
    (run / LOCATING).write_text(measured.model_dump_json(indent=2) + "\n")
    return measured


def read_locator(run: Path) -> tuple[Locator, nn.Module]:
    """Return declaration and network of a finished run, the network in evaluation mode.

    Raises:
        DataError: the run is not finished.
    """
    if not (run / DECLARATION).is_file():
        msg = f"{run} holds no finished run of calibrant train-locator."
        raise DataError(msg)
    declaration = Locator.model_validate_json((run / DECLARATION).read_bytes())
    network = build_network(declaration.network)
    network.load_state_dict(load_file(run / WEIGHTS))
    return declaration, network.eval()


class _Scans(Dataset[list[tuple[Tensor, Tensor]]]):
    """Coarse images and landmark shares of each step; the images of a step differ in size."""

    def __init__(self, heads: list[Head], recipe: LocatorRecipe, seed: int, steps: range) -> None:
        self.steps = steps
        self._heads, self._recipe, self._seed = heads, recipe, seed

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> list[tuple[Tensor, Tensor]]:
        rng = np.random.default_rng([self._seed, self.steps[index]])
        return [
            training_pair(draw(self._heads, rng), CHANNELS, self._recipe.spacing_mm)
            for _ in range(self._recipe.schedule.batch_size)
        ]


def _descend(network: nn.Module, image: Tensor, share: Tensor, multiple: int, images: int) -> float:
    """Accumulate the gradient of one of several images and return its loss."""
    with torch.autocast(image.device.type, torch.bfloat16):
        logits = network(padded(image, multiple))
    loss = landmark_loss(logits.float()[(..., *(slice(n) for n in image.shape[2:]))], share)
    (loss / images).backward()
    return loss.item()


def landmark_loss(logits: Tensor, share: Tensor) -> Tensor:
    """Return class-balanced cross-entropy plus soft Dice over the landmarks in the scan.

    A landmark has tens of voxels, the background a hundred thousand: the cross-entropy weights every class alike, or small
    landmarks are not learned. Dice keeps the marks from growing in return. Absent landmarks are left out of it: their
    faintest mark would cost as much as a wrong one.

    Args:
        logits: (1, C, D, H, W).
        share: (1, C, D, H, W) share of each voxel that belongs to each class; sums to 1 over C.
    """
    log_probs = log_softmax(logits, dim=1)[0].flatten(1)
    share = share[0].flatten(1)
    voxels = share.sum(dim=1)
    present = voxels > LEAST_VOXELS
    cross_entropy = -((share * log_probs).sum(dim=1)[present] / voxels[present]).mean()
    marks, shares = log_probs.exp()[1:][present[1:]], share[1:][present[1:]]
    if not len(marks):
        return cross_entropy
    dice = 2 * (marks * shares).sum(dim=1) / (marks.sum(dim=1) + shares.sum(dim=1))
    return cross_entropy + 1 - dice.mean()
