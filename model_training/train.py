"""The training loop, read from top to bottom: recipe and data in, weights out."""

import datetime as dt
import hashlib
import json
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from monai.transforms import Compose
from safetensors.torch import save_file
from torch import nn

from model_training.checkpoint import NAME as CHECKPOINT
from model_training.checkpoint import load_checkpoint, save_checkpoint
from model_training.config import Recipe, Schedule
from model_training.data import DataError, Sample, load_sample
from model_training.losses import ACEDiceCELoss
from model_training.progress import Progress
from model_training.transforms import augmentation
from service.bundle.network import build_network
from service.bundle.schema import ServiceConfig
from service.pipeline.infer import sliding_window_logits

WEIGHTS: Final = "model.safetensors"
"""File of the trained weights in a run's folder."""

RECORD: Final = "training.json"
"""File that says how they came about."""

GRADIENT_NORM: Final = 5.0
"""Gradients are clipped to this norm: one odd batch must not throw the weights away."""


def train(recipe: Recipe, data: Path, run: Path, *, seed: int, device: torch.device, progress: Progress) -> None:
    """Train the recipe's network and write weights and record to the folder `run`.

    A run that was killed goes on from its last checkpoint to the same weights, when called again with the same
    arguments. The weights of the last step are kept: validation is shown, never used to choose.

    Raises:
        DataError: the data set is not as the recipe expects, or the folder holds another run.
        ValueError: the loss became NaN.
    """
    if (run / RECORD).exists():
        msg = f"{run} holds a finished run. Choose another folder for a new one."
        raise DataError(msg)
    splits = recipe.cases(data)
    samples = [load_sample(case, recipe.service) for split in recipe.train_splits for case in splits[split]]
    validation = [load_sample(case, recipe.service) for case in splits[recipe.validation_split]]

    torch.manual_seed(seed)
    network = build_network(recipe.service.network).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=recipe.schedule.weight_decay)
    loss_of = ACEDiceCELoss(recipe.binning, ace_weight=0.0)
    augment = augmentation(recipe.service)
    run.mkdir(parents=True, exist_ok=True)
    identity = _identity(recipe, seed, [sample.case.name for sample in samples])
    position = load_checkpoint(run, network, optimiser, identity)
    started = time.monotonic() - position.seconds

    for step in range(position.step + 1, recipe.schedule.steps + 1):
        images, labels = draw_batch(samples, augment, recipe.schedule.batch_size, seed=seed, step=step)
        for group in optimiser.param_groups:
            group["lr"] = recipe.schedule.learning_rate * learning_rate_factor(step - 1, recipe.schedule)
        loss_of.ace_weight = recipe.ace_weight if step > recipe.ace_after else 0.0

        with torch.autocast(device.type, torch.bfloat16):
            logits = network(images.to(device))
        terms = loss_of.terms(logits, labels.to(device))
        optimiser.zero_grad(set_to_none=True)
        terms["total"].backward()
        nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
        optimiser.step()

        values = {name: term.item() for name, term in terms.items()}
        progress.step(step, values)
        if step % recipe.schedule.validate_every == 0 or step == recipe.schedule.steps:
            dsc = validation_dsc(network, validation, recipe.service, device)
            progress.validated(step, dsc)
            position.history.append({"step": step, "validation_dsc": dsc, **values})
            position.step, position.seconds = step, time.monotonic() - started
            save_checkpoint(run, network, optimiser, position, identity)

    facts = {"seed": seed, "train_cases": len(samples), "steps": position.step, "seconds": round(position.seconds)}
    _write_run(run, network, recipe, facts | {"history": position.history})


def _identity(recipe: Recipe, seed: int, cases: list[str]) -> str:
    """Return what makes a run this run: everything that its weights follow from, but for the code and the machine."""
    facts = [
        recipe.service.model_dump_json(),
        repr(recipe.schedule),
        recipe.binning,
        recipe.ace_weight,
        recipe.ace_after,
    ]
    return hashlib.sha256(repr([*facts, seed, cases]).encode()).hexdigest()


def _write_run(run: Path, network: nn.Module, recipe: Recipe, facts: dict[str, Any]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in network.cpu().state_dict().items()}, run / WEIGHTS)
    record = {
        "recipe": recipe.service.name,
        "train_splits": recipe.train_splits,
        "binning": recipe.binning,
        "ace_weight": recipe.ace_weight,
        "ace_after": recipe.ace_after,
        "torch": torch.__version__,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        **facts,
    }
    (run / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    (run / CHECKPOINT).unlink()


def draw_batch(
    samples: list[Sample], augment: Compose, batch_size: int, *, seed: int, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the batch of a step: images (B, C, D, H, W) float32 and labels (B, 1, D, H, W), chosen and augmented at random.

    The draw follows from seed and step alone, so that a run that was interrupted goes on with the batches it would
    have seen.
    """
    generator = np.random.default_rng([seed, step])
    chosen = generator.integers(len(samples), size=batch_size)
    augment.set_random_state(int(generator.integers(1 << 32)))
    patches = [augment({"image": samples[i].image, "label": samples[i].label}) for i in chosen]
    images = torch.stack([torch.as_tensor(patch["image"]) for patch in patches])
    labels = torch.stack([torch.as_tensor(patch["label"]) for patch in patches])
    return images, labels


def learning_rate_factor(step: int, schedule: Schedule) -> float:
    """Return the fraction of the peak learning rate at a step: linear warm-up, then half a cosine to 0."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    done = (step - schedule.warmup_steps) / (schedule.steps - schedule.warmup_steps)
    return 0.5 * (1 + float(np.cos(np.pi * done)))


def validation_dsc(network: nn.Module, samples: list[Sample], config: ServiceConfig, device: torch.device) -> float:
    """Return the mean foreground DSC over whole validation images on the network's grid: a quick look, not the card."""
    network.eval()
    scores = []
    for sample in samples:
        mask = sliding_window_logits(network, sample.image.to(device), config).argmax(dim=0).cpu()
        for c in range(1, len(config.labels)):
            predicted, reference = mask == c, sample.label[0] == c
            if reference.any():
                scores.append(2 * float((predicted & reference).sum()) / float(predicted.sum() + reference.sum()))
    network.train()
    return float(np.mean(scores))
